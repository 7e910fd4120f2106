"""What a bound proves of integers."""

from __future__ import annotations

import math

import numpy as np

from moe_search.problems.pair_costs import PairCosts


def proved(bound: float, costs: PairCosts) -> int | float:
    """Return the least value from `bound` on that costs can have: integers, and even ones where all are paid twice."""
    if not costs.integral:
        return bound
    least = math.ceil(bound)
    twice = costs.factors is not None and all(np.array_equal(matrix, matrix.T) for matrix in costs.factors)
    return least + least % 2 if twice and not costs.unary.any() else least
