"""The Gilmore-Lawler bound of quadratic and pairwise assignments."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.solvers.bounds.linear_assignment import EXACT_IN_FLOAT64, least_total, linear_bound

# Up to here the compiled assignment is as fast as scipy's, whose import it saves.
COMPILED_UP_TO = 128


def gilmore_lawler(costs: PairCosts) -> tuple[int | float, npt.NDArray[Any]]:
    """Return the Gilmore-Lawler bound of costs in factors, and the matrix it is the linear assignment of.

    Parameters
    ----------
    costs : PairCosts
        With `factors`, symmetric or not, of any sign.

    Returns
    -------
    bound : int or float
        No permutation has a lower value (for floats: up to rounding).
    row_bounds : ndarray, shape (n, n)
        ``row_bounds[i, k]`` is the least that facility i can contribute at location k: its linear cost and the least
        scalar product of ``flow[i, j]`` with ``distance[k, l]``, j != i and l != k.

    References
    ----------
    P. C. Gilmore, "Optimal and suboptimal algorithms for the quadratic assignment problem", SIAM Journal 10 (1962),
    305-313; E. L. Lawler, "The quadratic assignment problem", Management Science 9 (1963), 586-599.
    """
    assert costs.factors is not None
    n = costs.block_size
    off_diagonal = ~np.eye(n, dtype=bool)
    flow, distance = (np.sort(factor[off_diagonal].reshape(n, n - 1), axis=1) for factor in costs.factors)
    row_bounds = _exact_product(flow, distance[:, ::-1].T) + costs.unary
    bound = least_total(row_bounds) if n <= COMPILED_UP_TO else linear_bound(row_bounds, 1)
    symmetric = all(np.array_equal(matrix, matrix.T) for matrix in costs.factors)
    if costs.integral and symmetric and not costs.unary.any():
        # Every pair is paid twice, so that all values are even.
        bound += bound % 2
    return bound, row_bounds


def pairwise_gilmore_lawler(problem: PairwiseAssignment, seconds: float = math.inf) -> int | float:
    """Return the Gilmore-Lawler bound of a pairwise assignment, in Lawler's general form.

    Each slot s under each expert e pays half its pairs with the other slots, at least what an assignment of those costs
    at best; one more assignment over s and e gives the bound. Where the inner assignments would take more than
    `seconds` they are replaced by the least cost of each other slot, which bounds less tightly.

    References
    ----------
    E. L. Lawler, "The quadratic assignment problem", Management Science 9 (1963), 586-599, section 5.
    """
    m, n, c = problem.size, problem.num_experts, problem.capacity
    block = np.arange(m) // problem.block_size
    # Twice the cost, so that the half pairs of integer problems stay integers.
    twice = 2 * problem.unary
    if m * n * (20e-6 + 5e-9 * problem.block_size**2.2) * (m // problem.block_size) > seconds:
        rest = problem.coupling.min(axis=3).sum(axis=2)
        twice = twice + rest
    else:
        twice = twice.copy()
        for s in range(m):
            others = [np.flatnonzero((block == t) & (np.arange(m) != s)) for t in range(block[-1] + 1)]
            for e in range(n):
                columns = np.repeat(np.arange(n), c)
                for t, slots in enumerate(others):
                    taken = columns
                    if t == block[s]:
                        taken = np.delete(columns, e * c)
                    if len(slots):
                        cost = problem.coupling[s, e][np.ix_(slots, taken)]
                        twice[s, e] += linear_bound(cost, 1)
    total = sum(linear_bound(twice[start : start + problem.block_size], c) for start in range(0, m, problem.block_size))
    return -(-total // 2) if problem.integral else total / 2


def _exact_product(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if a.dtype.kind == "f" or a.size == 0:
        return a @ b
    reach = a.shape[1] * int(np.abs(a).max()) * int(np.abs(b).max())
    if reach >= EXACT_IN_FLOAT64:
        return a @ b
    # BLAS has no integer product; below 2**53 the one of float64 is exact and far faster.
    return np.rint(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)
