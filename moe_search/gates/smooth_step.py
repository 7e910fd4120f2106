"""The smooth-step function: a sigmoid that reaches 0 and 1."""

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
