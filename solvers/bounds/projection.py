"""The projection bound of quadratic assignments, from the eigenvalues of both matrices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_search.problems.pair_costs import PairCosts
from moe_search.solvers.bounds.linear_assignment import assignment_seconds, solve_dense
from moe_search.solvers.bounds.rounding import proved

Matrix = npt.NDArray[np.float64]


def projection_seconds(costs: PairCosts) -> float:
    """Return the seconds that the bound takes for costs in factors, at worst."""
    size = costs.block_size
    if not _one_symmetric(costs):
        return 400e-6 + 3e-9 * size**3 + assignment_seconds(size)
    return 200e-6 + 0.6e-9 * size**3 + (assignment_seconds(size) if costs.unary.any() else 0.0)


def projection_bound(costs: PairCosts) -> int | float:
    """Return the projection bound of costs in factors.

    Permutations are relaxed to orthogonal matrices with row and column sums of one, ``X = e e' / n + V Y V'`` with an
    orthonormal basis V of all vectors that sum to zero, and Y orthogonal. The part of the value that is quadratic in Y
    is least where Y pairs the eigenvalues of ``V' A V`` with those of ``V' B V`` in opposite orders; the rest is linear
    in X, and an assignment. Symmetric and skew halves are bounded apart, so that either matrix may be asymmetric.

    Parameters
    ----------
    costs : PairCosts
        With `factors`, symmetric or not, of any sign.

    Returns
    -------
    int or float
        No permutation has a lower value: what rounding may have added is taken off.

    References
    ----------
    S. W. Hadley, F. Rendl, H. Wolkowicz, "A new lower bound via projection for the quadratic assignment problem",
    Mathematics of Operations Research 17 (1992), 727-739, theorem 4.1.
    """
    assert costs.factors is not None
    n = costs.block_size
    flow, distance = (factor.astype(np.float64) for factor in costs.factors)
    # The diagonals are in the linear costs.
    np.fill_diagonal(flow, 0.0)
    np.fill_diagonal(distance, 0.0)
    projected = _projected(flow), _projected(distance)
    eigenvalues = np.linalg.eigvalsh
    least = float(eigenvalues(projected[0] + projected[0].T) @ eigenvalues(projected[1] + projected[1].T)[::-1]) / 4
    rows, columns = (np.stack([a.sum(axis=axis) for a in (flow, distance)]) for axis in (1, 0))
    one_symmetric = _one_symmetric(costs)
    if not one_symmetric:
        # The eigenvalues of a skew matrix are imaginary; those of i times it are real, and pair to the same sums.
        skew = [eigenvalues(1j * (a - a.T)) for a in projected]
        least -= float(skew[0] @ skew[1]) / 4
    linear = (np.outer(*rows) + np.outer(*columns)) / n + costs.unary
    if one_symmetric and not costs.unary.any():
        # Of rank one: what sends most goes where least arrives.
        sums = np.sort(rows + columns, axis=1)
        assigned = float(sums[0] @ sums[1][::-1]) / (2 * n)
    else:
        assigned = float(linear[np.arange(n), solve_dense(linear, 1)].sum())
    total = least + assigned - float(flow.sum()) * float(distance.sum()) / n**2
    # Each eigenvalue is off by n units of rounding of the norm at most, each sum by as many.
    size = np.linalg.norm(flow) * np.linalg.norm(distance) * n**0.5 + np.abs(linear).sum(axis=1).max() * n
    return proved(total - 8 * n * np.finfo(np.float64).eps * float(size), costs)


def _one_symmetric(costs: PairCosts) -> bool:
    """Return whether one of the two factors is symmetric."""
    assert costs.factors is not None
    return any(np.array_equal(factor, factor.T) for factor in costs.factors)


def _projected(matrix: Matrix) -> Matrix:
    """Return ``V' M V``."""
    turn = reflection(len(matrix))
    return (turn @ matrix @ turn)[1:, 1:]


def reflection(size: int) -> Matrix:
    """Return a symmetric orthogonal matrix ``(e / sqrt(n), V)``, whose other columns V sum to zero."""
    v = np.full(size, size**-0.5)
    v[0] -= 1.0
    length = v @ v
    return np.eye(size) - np.outer(v, v) * (2.0 / length if length else 0.0)
