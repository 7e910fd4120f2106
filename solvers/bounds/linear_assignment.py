"""Linear assignment: scipy's, and a compiled one for the inside of other kernels, which cannot call scipy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import EXACT_IN_FLOAT64
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.kernels import compiled
from moe_search.problems.permutation_problem import Permutation


def solve_dense(cost: npt.NDArray[Any], capacity: int) -> Permutation:
    """Return an optimal permutation for costs of shape (m, n) with m = n * capacity."""
    # Imported here: it takes longer than many a search that needs none of it.
    with compile_time():
        from scipy.optimize import linear_sum_assignment

    # Subtracting the minimum of a row changes no comparison and keeps large integers within float64.
    reduced = cost - cost.min(axis=1, keepdims=True)
    columns = linear_sum_assignment(np.repeat(reduced, capacity, axis=1))[1]
    return columns.astype(np.int64)


def linear_bound(cost: npt.NDArray[Any], capacity: int) -> int | float:
    """Return the least total cost of slots under experts, shape (m, n); less where float64 cannot hold the integers."""
    if cost.dtype.kind == "i" and 2 * len(cost) * int(np.ptp(cost)) >= EXACT_IN_FLOAT64:
        # The assignment found might not be optimal; the row minima always bound.
        return sum(int(x) for x in cost.min(axis=1))
    return cost[np.arange(len(cost)), solve_dense(cost, capacity) // capacity].sum().item()


def assignment_seconds(size: int) -> float:
    """Return the seconds that scipy takes for a dense linear assignment of `size` slots, at worst.

    Independent costs take a twentieth of it; nearly equal ones, as in a Gilmore-Lawler matrix, take all.
    """
    return 100e-6 + 1.2e-9 * size**3


class Duals(NamedTuple):
    """Dual variables of a linear assignment, its solution, and scratch space, each of shape (n,)."""

    row: npt.NDArray[Any]
    column: npt.NDArray[Any]
    column_of: npt.NDArray[np.int64]
    row_of: npt.NDArray[np.int64]
    shortest: npt.NDArray[Any]  # scratch: length of the shortest path to a column
    previous: npt.NDArray[np.int64]  # scratch: the row before a column on that path
    scanned: npt.NDArray[np.int64]  # scratch: columns in the order in which their distance became final, then others


def empty_duals(size: int, dtype: npt.DTypeLike) -> Duals:
    """Return the arrays for assignments of up to `size` rows."""
    row, column, shortest = (np.zeros(size, dtype=dtype) for _ in range(3))
    column_of, row_of, previous, scanned = (np.zeros(size, dtype=np.int64) for _ in range(4))
    return Duals(row, column, column_of, row_of, shortest, previous, scanned)


# Once ``row`` is set, ``cost[i, j] - row[i] - column[j]`` is never negative, and zero where i and j are assigned to one
# another: a complete assignment is optimal. Each path assigns one row more, and moves the duals so far that all its
# steps cost zero. A column without a row has ``row_of[j] == -1``, a row without a column ``column_of[i] == -1``.


@compiled
def assign(cost: Any, first: int, last: int, duals: Duals) -> Any:
    """Solve the assignment of rows and columns first .. last - 1 of `cost`; return its least total.

    It starts from ``duals.column``, which may hold anything: the closer to optimal, the fewer paths are left.

    References
    ----------
    R. Jonker, A. Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment problems",
    Computing 38 (1987), 325-340.
    """
    row, column, column_of, row_of = duals.row, duals.column, duals.column_of, duals.row_of
    for j in range(first, last):
        row_of[j] = -1
    for i in range(first, last):
        least = cost[i, first] - column[first]
        where = first
        for j in range(first + 1, last):
            reduced = cost[i, j] - column[j]
            if reduced < least:
                least = reduced
                where = j
        row[i] = least
        column_of[i] = -1
        if row_of[where] < 0:
            row_of[where] = i
            column_of[i] = where
    for i in range(first, last):
        if column_of[i] < 0:
            augment(cost, first, last, duals, i)
    total = cost.dtype.type(0)
    for i in range(first, last):
        total += cost[i, column_of[i]]
    return total


@compiled
def augment(cost: Any, first: int, last: int, duals: Duals, start: int) -> None:
    """Give row `start` a column along a shortest path of reduced costs, and move the duals along."""
    row, column, column_of, row_of = duals.row, duals.column, duals.column_of, duals.row_of
    shortest, previous, scanned = duals.shortest, duals.previous, duals.scanned
    for j in range(first, last):
        shortest[j] = cost[start, j] - row[start] - column[j]
        previous[j] = start
        scanned[j] = j
    final = first
    while True:
        best = final
        for x in range(final + 1, last):
            if shortest[scanned[x]] < shortest[scanned[best]]:
                best = x
        end = scanned[best]
        scanned[best] = scanned[final]
        scanned[final] = end
        final += 1
        i = row_of[end]
        if i < 0:
            break
        distance = shortest[end]
        for x in range(final, last):
            j = scanned[x]
            length = distance + (cost[i, j] - row[i] - column[j])
            if length < shortest[j]:
                shortest[j] = length
                previous[j] = i
    distance = shortest[end]
    row[start] += distance
    for x in range(first, final - 1):
        j = scanned[x]
        row[row_of[j]] += distance - shortest[j]
        column[j] -= distance - shortest[j]
    while True:
        i = previous[end]
        row_of[end] = i
        following = column_of[i]
        column_of[i] = end
        if i == start:
            break
        end = following
