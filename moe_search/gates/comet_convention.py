"""Where the published versions of COMET differ from its formula, and from each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CometConvention:
    """What a version of COMET does where the paper's formula leaves it, or numbers run out.

    Parameters
    ----------
    split_bias : bool
        Whether splits are affine in x, or only linear.
    least : float or None
        A leaf with a probability below it has weight 0. None for one of exactly 0.
    offset : float
        Added to p in the log p of the weights.
    entropy_least : float
        In the penalty, p is raised to it.
    entropy_offset, entropy_log_offset : float
        In the penalty, added to p before and in the logarithm.
    small_start : bool
        Whether splits start within gamma / 100 of 0 and leaves within 0.05, or all as `torch.nn.Linear`.
    leaf_bias_start : bool
        With a small start: whether the bias of leaves starts within 0.05 of 0, or at 0.
    """

    split_bias: bool = True
    least: float | None = None
    offset: float = 0.0
    entropy_least: float = 0.0
    entropy_offset: float = 0.0
    entropy_log_offset: float = 0.0
    small_start: bool = False
    leaf_bias_start: bool = True

    def log(self, p: Tensor) -> Tensor:
        """Return log p of leaf probabilities, -inf where a leaf has weight 0; its gradient is finite everywhere."""
        dead = p <= 0 if self.least is None else p < self.least
        if not self.offset:
            dead = dead | _underflown(p)
        # The logarithm is kept away from 0, where its infinite slope times the zero slope of the splits would be NaN.
        return (p.masked_fill(dead, 1.0) + self.offset).log().masked_fill(dead, -torch.inf)

    def entropy(self, p: Tensor) -> Tensor:
        """Return the terms -p log p of the penalty, the shape of ``p``."""
        if self.entropy_least:
            p = p.clamp(min=self.entropy_least)
        if not self.entropy_log_offset:
            # 1 log 1 = 0 stands for 0 log 0, whose slope is infinite.
            p = p.masked_fill(_underflown(p), 1.0)
        return -(p + self.entropy_offset) * (p + self.entropy_log_offset).log()


CONVENTIONS = {
    "paper": CometConvention(),
    "torch": CometConvention(
        split_bias=False,
        least=1e-5,
        offset=1e-6,
        entropy_least=1e-6,
        entropy_offset=1e-6,
        entropy_log_offset=1e-6,
        small_start=True,
        leaf_bias_start=False,
    ),
    "tensorflow": CometConvention(offset=1e-8, entropy_log_offset=1e-6, small_start=True),
}


def _underflown(p: Tensor) -> Tensor:
    return p < torch.finfo(p.dtype).tiny
