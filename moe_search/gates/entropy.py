"""The entropy that gates penalize."""

from __future__ import annotations

import torch
from torch import Tensor


def entropy_terms(p: Tensor) -> Tensor:
    """Return -p log p elementwise, 0 where p is 0 or below the least normal number of its dtype.

    Its gradient is finite everywhere, and 0 there.
    """
    # 1 log 1 = 0 stands for 0 log 0, whose slope is infinite.
    p = p.masked_fill(p < torch.finfo(p.dtype).tiny, 1.0)
    return -p * p.log()
