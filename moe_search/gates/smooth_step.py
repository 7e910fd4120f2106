"""The smooth-step function, a sigmoid that reaches 0 and 1, and the entropy of probabilities that are made of it."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
    """Return S(t), elementwise.

    S(t) = 0 for t <= -gamma / 2, 1 for t >= gamma / 2, and -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2 between: once
    continuously differentiable, with S(-t) = 1 - S(t).

    Parameters
    ----------
    t : Tensor
        Floating point, any shape.
    gamma : float
        Width of the part that is neither 0 nor 1, greater than 0.

    Returns
    -------
    Tensor
        The shape of t. Exactly 0 and 1, with gradient exactly 0, outside of that part.

    Notes
    -----
    Hazimeh, Ponomareva, Mol, Tan and Mazumder (2020), The Tree Ensemble Layer, equation 3.
    """
    # The same cubic in u = t / gamma + 1/2, where both ends are exact in floating point.
    u = torch.clamp(t / gamma + 0.5, 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def entropy_terms(p: Tensor) -> Tensor:
    """Return -p log p elementwise, 0 where p is 0 or below the least normal number of its dtype.

    Its gradient is finite everywhere, and 0 there.
    """
    # 1 log 1 = 0 stands for 0 log 0, whose slope is infinite.
    p = p.masked_fill(p < torch.finfo(p.dtype).tiny, 1.0)
    return -p * p.log()
