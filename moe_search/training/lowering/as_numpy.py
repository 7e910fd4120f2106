"""Tensors as the arrays that problems are made of."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from moe_search.training.lowering.at_least_single import at_least_single


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return the array of a tensor, on any device and with any graph; half precision comes as float32."""
    # numpy has no bfloat16.
    return at_least_single(tensor.detach()).cpu().numpy()
