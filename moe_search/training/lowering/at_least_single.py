"""Half precision made single."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_single(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 where it has floats of less; any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
