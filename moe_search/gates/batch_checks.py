"""Checks of the batch that a module is given, and whether its numbers can be read at all."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def require_rows(inputs: Tensor) -> None:
    """Raise an error unless ``inputs`` is a tensor of floating-point features, of at least one row, shape [..., d]."""
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs must be a tensor, got {type(inputs).__name__}")
    if inputs.ndim == 0:
        raise ValueError("inputs must have the features of a row along its last axis, got a scalar")
    if any(size == 0 for size in inputs.shape[:-1]):
        raise ValueError(f"inputs must hold at least one row, got shape {tuple(inputs.shape)}")
    if not inputs.is_floating_point():
        raise ValueError(f"inputs must be floating point, got dtype {inputs.dtype}")


def require_device(name: str, tensor: Tensor, device: torch.device, owner: str) -> None:
    """Raise ValueError if ``tensor`` lies elsewhere than its ``owner``."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of the {owner}, {device}, got {tensor.device}")


def require_mask(mask: Tensor, inputs: Tensor) -> None:
    """Raise an error unless ``mask`` is a tensor that says of every row of ``inputs`` whether it is one."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.is_floating_point() or mask.is_complex():
        raise ValueError(
            f"mask must hold booleans, or integers, not 0 for a row that is no padding, got dtype {mask.dtype}"
        )
    if mask.shape != inputs.shape[:-1]:
        raise ValueError(
            f"mask must have shape {tuple(inputs.shape[:-1])}, an entry for each row of inputs, "
            f"got shape {tuple(mask.shape)}"
        )
    require_device("mask", mask, inputs.device, "inputs")


def rows_of(inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return inputs of shape [..., d] as rows, shape [R, d], with zeros in those that a mask says are padding."""
    rows = inputs if inputs.ndim == 2 else inputs.reshape(-1, inputs.shape[-1])
    return rows if mask is None else rows.masked_fill(mask.reshape(-1, 1).logical_not(), 0.0)


def like_rows(outputs: Tensor, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return outputs of all rows, shape [R, ...], with the leading axes of the inputs: [..., ...]; 0 for padding."""
    if mask is not None:
        outputs = outputs.masked_fill(mask.reshape(-1, *[1] * (outputs.ndim - 1)).logical_not(), 0.0)
    return outputs if inputs.ndim == 2 else outputs.reshape(*inputs.shape[:-1], *outputs.shape[1:])


def weight_dtype(layer: nn.Module) -> torch.dtype | None:
    """Return the precision of the inputs that an affine layer takes; None for a quantized one, which says itself.

    The weight of a layer that torch quantized is a method, that of others holds integers.
    """
    weight = layer.weight
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else None


def require_dtype(inputs: Tensor, dtype: torch.dtype | None, owner: str) -> None:
    """Raise ValueError if ``inputs`` is of another precision than its ``owner``, unless autocast takes care of it."""
    if dtype is None or inputs.dtype == dtype:
        return
    if inputs.is_meta or not torch.is_autocast_enabled(inputs.device.type):
        raise ValueError(f"inputs must have the dtype of the {owner}, {dtype}, got {inputs.dtype}")


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which there is no autocast; the device "meta" knows none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


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
    device "meta", and while a CUDA graph is captured. What depends on a number, such as a shape, an error or the choice
    of a path, has to do without it there. To ask this waits for no device.
    """
    if torch.compiler.is_compiling() or _is_traced():
        return True
    try:
        for tensor in tensors:
            if not tensor.is_cpu and has_memory(tensor):
                if is_captured(tensor):
                    return True
                continue
            # A number that is read off no element: torch refuses it where it refuses all.
            bool(tensor.new_empty(0).any())
    except RuntimeError:
        return True
    return False


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor is a plain one, with numbers: none that `torch.func` or a subclass of tensors made."""
    try:
        return type(tensor) in (Tensor, nn.Parameter) and tensor.data_ptr() != 0
    except RuntimeError:
        return False


def is_captured(tensor: Tensor) -> bool:
    """Return whether what is done to a tensor becomes part of a CUDA graph now."""
    return not torch.compiler.is_compiling() and tensor.is_cuda and torch.cuda.is_current_stream_capturing()
