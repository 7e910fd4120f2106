"""Checks of the batch a module is given, before anything is computed."""

from __future__ import annotations

import torch
from torch import Tensor


def require_samples(inputs: Tensor) -> None:
    """Raise ValueError unless ``inputs`` holds floating-point samples, at least one, along its first axis.

    Raises
    ------
    TypeError
        If it is not a tensor.
    ValueError
        If it has no axes, no samples or integer entries.
    """
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


def require_dtype(inputs: Tensor, dtype: torch.dtype, owner: str) -> None:
    """Raise ValueError if ``inputs`` is of another precision than its ``owner``, unless autocast takes care of it."""
    if inputs.dtype != dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise ValueError(f"inputs must have the dtype of the {owner}, {dtype}, got {inputs.dtype}")
