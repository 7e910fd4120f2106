"""Checks of the batch that a module is given, and whether its numbers can be read at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def require_samples(inputs: Tensor) -> None:
    """Raise an error unless ``inputs`` is a tensor of floating-point samples, at least one, along its first axis."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if inputs.ndim == 0:
        raise ValueError("inputs must have the samples along its first axis, got a scalar")
    if inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {tuple(inputs.shape)}")
    if not inputs.is_floating_point():
        raise ValueError(f"inputs must be floating point, got dtype {inputs.dtype}")


def require_device(name: str, tensor: Tensor, device: torch.device, owner: str) -> None:
    """Raise ValueError if ``tensor`` lies elsewhere than its ``owner``."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of the {owner}, {device}, got {tensor.device}")


def weight_dtype(layer: nn.Module) -> torch.dtype | None:
    """Return the precision of the inputs that an affine layer takes; None for a quantized one, which says itself.

    The weight of a layer that torch quantized is a method, that of others holds integers.
    """
    weight = layer.weight
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else None


def require_dtype(inputs: Tensor, dtype: torch.dtype | None, owner: str) -> None:
    """Raise ValueError if ``inputs`` is of another precision than its ``owner``, unless autocast takes care of it."""
    if dtype is not None and inputs.dtype != dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise ValueError(f"inputs must have the dtype of the {owner}, {dtype}, got {inputs.dtype}")


def is_exporting() -> bool:
    """Return whether a graph is being made that runs without this code: where what no graph holds must be left out."""
    # Before torch 2.7, nothing tells an exported graph from a compiled one.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    return _is_traced() or exporting()


def _is_traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_recomputing() -> bool:
    """Return whether a forward runs anew for a backward pass, as those under `torch.utils.checkpoint` do."""
    # There is no public way to ask.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() >= 0


def cannot_read_values(*tensors: Tensor) -> bool:
    """Return whether no number can be read off one of some tensors.

    It is so in compiled, exported and traced code, inside of `torch.func.vmap`, of fake tensors and of those of the
    device "meta". What depends on a number, such as a shape, an error or the choice of a path, has to do without it
    there.
    """
    if torch.compiler.is_compiling() or _is_traced():
        return True
    try:
        for tensor in tensors:
            # A number that is read off no element: torch refuses it where it refuses all.
            bool(tensor.new_empty(0).any())
    except RuntimeError:
        return True
    return False
