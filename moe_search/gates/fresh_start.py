"""How modules start anew, when they are made and after they were emptied."""

from __future__ import annotations

from torch import Tensor, nn


def reset_children(module: nn.Module) -> None:
    """Start all submodules anew that can, those that can by themselves with all below them."""
    for child in module.children():
        reset = getattr(child, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            reset_children(child)


def is_loaded(tensor: Tensor) -> bool:
    """Return whether a tensor came from a checkpoint, and must not start anew with the others of its model.

    Transformers marks it so, and its initialization runs over all modules after it has loaded some. It sees to
    `torch.nn.init` itself, but not to what is written in other ways.
    """
    return bool(getattr(tensor, "_is_hf_initialized", False))
