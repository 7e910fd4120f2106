"""Floats as integers on a grid, for solvers that compute in integers."""

from __future__ import annotations

import math
import sys


def grid_scale(reach: float, steps: float) -> float:
    """Return the power of two that scales `reach` to `steps` at most, and to no less than a quarter of it.

    Scaling by a power of two is exact, so that the error of rounding to the grid can be measured. It is 1 if `reach` is
    0, and coarser near the least of floats, where it would overflow.
    """
    if reach == 0:
        return 1.0
    # The exponent e that frexp gives for x has 2**(e - 1) <= x < 2**e.
    exponent = math.frexp(steps)[1] - 1 - math.frexp(max(reach, sys.float_info.min))[1]
    return math.ldexp(1.0, min(exponent, sys.float_info.max_exp - 1))
