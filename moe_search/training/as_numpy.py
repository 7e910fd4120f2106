"""Tensors as the arrays that problems are made of."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return the array of a tensor, on any device and with any graph; half precision comes as float32."""
    # numpy has no bfloat16.
    wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(wide).cpu().numpy()
