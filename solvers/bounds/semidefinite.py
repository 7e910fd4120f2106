"""A semidefinite bound of quadratic and pairwise assignments, better the longer it runs."""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt

from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.solvers.bounds.gilmore_lawler import pairwise_gilmore_lawler
from moe_search.solvers.bounds.projection import reflection
from moe_search.solvers.bounds.rounding import proved

Matrix = npt.NDArray[np.float64]

# A matrix of the method has n^4 entries: at 30 slots an iteration takes some tenths of a second.
SEMIDEFINITE_UP_TO = 30
# A bound takes about as long as an iteration, and the first iterates bound little.
BOUND_EVERY = 25
# Oliveira, Wolkowicz and Xu's step of the multipliers.
STEP = 1.618


def semidefinite(costs: PairCosts) -> bool:
    """Return whether the bound takes some costs: pairs of one block of slots, with a seat of its own for each."""
    slots, experts = costs.shape
    pairs = costs.factors is not None or costs.make_pairwise is not None
    return pairs and slots == costs.block_size == experts and 2 <= slots <= SEMIDEFINITE_UP_TO


def semidefinite_bound(costs: PairCosts, seconds: float, target: float = math.inf) -> float:
    """Return a lower bound from the semidefinite relaxation with nonnegative entries, by alternating directions.

    With ``y = (1, vec X)`` for a permutation matrix X, the value is ``<L, y y'>``. The matrix ``Y = y y'`` is relaxed
    to ``Y = V R V'``, R positive semidefinite of trace n + 1, whose range V is that of all X with row and column sums
    of one, and to ``0 <= Y <= 1``, zero where a slot would have two seats or a seat two slots. The method alternates
    between the two and moves multipliers Z. At any Z a valid bound is that of Gilmore and Lawler for the costs
    ``L + Z`` minus ``(n + 1) lambda_max(V' Z V)``; the best of those met is returned.

    Parameters
    ----------
    costs : PairCosts
        Those that `semidefinite` tells.
    seconds : float
        Time after which no further iteration begins; a bound takes about as long as one. The first is always made.
    target : float, optional
        A bound that is enough.

    Returns
    -------
    float
        A bound, from which the rounding of its last steps is taken off.

    References
    ----------
    D. E. Oliveira, H. Wolkowicz, Y. Xu, "ADMM for the SDP relaxation of the QAP", Mathematical Programming Computation
    10 (2018), 631-658; Q. Zhao, S. E. Karisch, F. Rendl, H. Wolkowicz, "Semidefinite programming relaxations for the
    quadratic assignment problem", Journal of Combinatorial Optimization 2 (1998), 71-109.
    """
    deadline = time.perf_counter() + seconds
    n = costs.block_size
    lifted, scale = _lifted_costs(costs)
    beta = n / 3.0
    forbidden = _forbidden(n)
    y, z = _barycentre(n), np.zeros_like(lifted)
    best = -math.inf
    iteration = 0
    while best < target and (iteration == 0 or time.perf_counter() < deadline):
        iteration += 1
        reduced = _reduce(y + z / beta, n)
        values, vectors = np.linalg.eigh(reduced)
        positive = values > 0.0
        # The positive part, from the smaller side of the spectrum.
        if positive.sum() * 2 <= len(values):
            half = vectors[:, positive] * np.sqrt(values[positive])
            within = _lift(half @ half.T, n)
        else:
            half = vectors[:, ~positive] * np.sqrt(-values[~positive])
            within = _lift(reduced + half @ half.T, n)
        y = np.clip(within - (lifted + z) / beta, 0.0, 1.0)
        y[forbidden] = 0.0
        y[0, 0] = 1.0
        z += STEP * beta * (y - within)
        if iteration % BOUND_EVERY == 0 or time.perf_counter() >= deadline:
            best = max(best, proved(_bound(lifted, (z + z.T) / 2, n) * scale, costs))
    return best


def _lifted_costs(costs: PairCosts) -> tuple[Matrix, float]:
    """Return L in the order ``(1, x[0, 0], x[0, 1], ...)``, over its largest entry, and that entry."""
    n = costs.block_size
    lifted = np.zeros((n * n + 1, n * n + 1))
    if costs.factors is None:
        lifted[1:, 1:] = costs.pairwise.coupling.reshape(n * n, n * n)
        lifted /= 2
    else:
        flow, distance = (np.where(np.eye(n, dtype=bool), 0, factor).astype(np.float64) for factor in costs.factors)
        lifted[1:, 1:] = (np.kron(flow, distance) + np.kron(flow.T, distance.T)) / 2
    lifted[0, 1:] = lifted[1:, 0] = costs.unary.ravel() / 2
    scale = float(np.abs(lifted).max()) or 1.0
    return lifted / scale, scale


def _forbidden(n: int) -> npt.NDArray[np.bool_]:
    """Return which entries no permutation has: those of two seats of a slot, or of two slots on a seat."""
    same, other = np.eye(n, dtype=bool), ~np.eye(n, dtype=bool)
    forbidden = np.zeros((n * n + 1, n * n + 1), dtype=bool)
    forbidden[1:, 1:] = np.kron(same, other) | np.kron(other, same)
    return forbidden


def _barycentre(n: int) -> Matrix:
    """Return the mean of ``y y'`` over all permutations."""
    same, other = np.eye(n), 1.0 - np.eye(n)
    mean = np.empty((n * n + 1, n * n + 1))
    mean[1:, 1:] = np.kron(same, same) / n + np.kron(other, other) / (n * (n - 1))
    mean[0] = mean[:, 0] = np.diagonal(mean)
    mean[0, 1:] = mean[1:, 0] = 1.0 / n
    mean[0, 0] = 1.0
    return mean


# V has the columns ``(1, e e' / n) / sqrt(2)`` and ``(0, v w')``, with v and w of a basis of the vectors that sum to
# zero: once rows and columns are reflected, the first coordinate, and those of no first row and no first column.


def _reduce(matrix: Matrix, n: int) -> Matrix:
    """Return ``V' M V``, shape ((n - 1)^2 + 1,) * 2, of a matrix whose symmetric half counts."""
    turned = _turned(matrix[1:, 1:], n)
    border = _turned_border((matrix[0, 1:] + matrix[1:, 0]) / 2, n)
    reduced = np.empty(((n - 1) ** 2 + 1,) * 2)
    inner = turned[1:, 1:, 1:, 1:].reshape((n - 1) ** 2, (n - 1) ** 2)
    reduced[1:, 1:] = (inner + inner.T) / 2
    first = (turned[0, 0, 1:, 1:] + turned[1:, 1:, 0, 0]) / 2
    reduced[0, 1:] = reduced[1:, 0] = ((border[1:, 1:] + first) / 2**0.5).ravel()
    reduced[0, 0] = (matrix[0, 0] + 2 * border[0, 0] + turned[0, 0, 0, 0]) / 2
    return reduced


def _lift(reduced: Matrix, n: int) -> Matrix:
    """Return ``V R V'``."""
    turned, border = np.zeros((n,) * 4), np.zeros((n, n))
    turned[1:, 1:, 1:, 1:] = reduced[1:, 1:].reshape((n - 1,) * 4)
    border[1:, 1:] = reduced[0, 1:].reshape(n - 1, n - 1) / 2**0.5
    turned[0, 0] = border
    turned[:, :, 0, 0] = border
    turned[0, 0, 0, 0] = border[0, 0] = reduced[0, 0] / 2
    lifted = np.empty((n * n + 1, n * n + 1))
    lifted[1:, 1:] = _turned(turned.reshape(n * n, n * n), n).reshape(n * n, n * n)
    lifted[0, 1:] = lifted[1:, 0] = _turned_border(border, n).ravel()
    lifted[0, 0] = reduced[0, 0] / 2
    return lifted


def _turned(matrix: Matrix, n: int) -> Matrix:
    """Return a matrix (n n, n n) with all four indices reflected, shape (n, n, n, n)."""
    turn = reflection(n)
    for _ in range(4):
        # The first index comes last, reflected.
        matrix = matrix.reshape(n, -1).T @ turn
    return matrix.reshape((n,) * 4)


def _turned_border(border: Matrix, n: int) -> Matrix:
    turn = reflection(n)
    return turn @ border.reshape(n, n) @ turn


def _bound(lifted: Matrix, z: Matrix, n: int) -> float:
    """Return a valid bound at the multipliers `z`, less what its rounding may be."""
    largest = float(np.linalg.eigvalsh(_reduce(z, n))[-1])
    costs = lifted + z
    # As Lawler's costs: of slots s and t under experts e and f, and of single slots where s = t.
    pairs = costs[1:, 1:].reshape((n,) * 4).transpose(0, 2, 1, 3).copy()
    diagonal = np.arange(n)
    pairs[diagonal, diagonal] = 0.0
    single = np.diagonal(costs)[1:] + 2 * costs[0, 1:]
    pairs[diagonal[:, None], diagonal[:, None], diagonal, diagonal] = single.reshape(n, n)
    rest = pairwise_gilmore_lawler(PairwiseAssignment(pairs)) + float(costs[0, 0])
    rounding = 8 * n**3 * np.finfo(np.float64).eps * float(np.linalg.norm(costs) + np.linalg.norm(z))
    return rest - (n + 1) * largest - rounding
