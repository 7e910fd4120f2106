"""The Gilmore-Lawler bound of quadratic and pairwise assignments, and as kernels once some slots have their seats."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import EXACT_IN_FLOAT64
from moe_search.problems.kernels import kernel
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.solvers.bounds.linear_assignment import Duals, assign, empty_duals, linear_bound
from moe_search.solvers.bounds.rounding import proved

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
        No permutation has a lower value. Of floats, what rounding can add is taken off.
    least : ndarray, shape (n, n)
        ``least[i, k]`` is the least that facility i can contribute at location k: its linear cost and the least
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
    least = _exact_product(flow, distance[:, ::-1].T) + costs.unary
    if n > COMPILED_UP_TO:
        bound = linear_bound(least, 1)
    else:
        bound = np.asarray(assign(least, 0, n, empty_duals(n, least.dtype))).item()
    if not costs.integral:
        # Each scalar product is off by n units of rounding at most, and so is their sum.
        size = np.linalg.norm(costs.factors[0]) * np.linalg.norm(costs.factors[1]) + np.abs(costs.unary).sum()
        bound -= 8 * n * np.finfo(np.float64).eps * float(size)
    return proved(bound, costs), least


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
        twice += problem.coupling.min(axis=3).sum(axis=2)
    else:
        for s in range(m):
            others = [np.flatnonzero((block == t) & (np.arange(m) != s)) for t in range(block[-1] + 1)]
            for e in range(n):
                columns = np.repeat(np.arange(n), c)
                for t, slots in enumerate(others):
                    left = np.delete(columns, e * c) if t == block[s] else columns
                    if len(slots):
                        twice[s, e] += linear_bound(problem.coupling[s, e][np.ix_(slots, left)], 1)
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


class KoopmansBeckmann(NamedTuple):
    """Costs ``flow[i, j] * distance[k, l]`` of pairs, shapes (n, n); both diagonals are zero."""

    flow: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    flow_order: npt.NDArray[np.int64]  # (n, n - 1): columns but the diagonal, by rising flow in the row
    distance_order: npt.NDArray[np.int64]  # (n, n - 1): columns but the diagonal, by falling distance in the row
    sorted_flow: npt.NDArray[Any]  # scratch: what is free of every row, sorted
    sorted_distance: npt.NDArray[Any]  # scratch: the same of the distances, transposed

    def with_scratch(self) -> KoopmansBeckmann:
        """Return the same costs for another thread."""
        return self._replace(sorted_flow=self.sorted_flow.copy(), sorted_distance=self.sorted_distance.copy())


class Lawler(NamedTuple):
    """Costs ``coupling[s, e, t, f]`` of unordered pairs of slots under their experts.

    All totals are twice the cost, since each slot of a pair bounds one half of it.
    """

    coupling: npt.NDArray[Any]  # (m, n, m, n), symmetric under an exchange of the pairs (s, e) and (t, f)
    expert: npt.NDArray[np.int64]  # (m,): the expert of every seat
    block_size: int
    inner: npt.NDArray[Any]  # scratch, (m, m): costs of the other slots, given one slot and its seat
    duals: Duals  # scratch for their assignment

    def with_scratch(self) -> Lawler:
        """Return the same costs for another thread."""
        return self._replace(inner=self.inner.copy(), duals=empty_duals(len(self.inner), self.inner.dtype))


class Free(NamedTuple):
    """The slots and seats that are free: as flags, and `count` of each listed in rising order."""

    slots: npt.NDArray[np.int64]
    seats: npt.NDArray[np.int64]
    slot_is_free: npt.NDArray[np.bool_]
    seat_is_free: npt.NDArray[np.bool_]


# The linear costs of a free slot on a free seat are its own, and those of the pairs with slots that have seats; seating
# one more slot adds its pairs. A row bound adds the least that the pairs with free slots can cost: with flows in rising
# and distances in falling order their scalar product is least, and couplings need an assignment for each entry.


@singledispatch
def fix_pair(costs: Any, linear: Any, fixed: Any, free: Free, count: int, slot: int, seat: int) -> None:
    """Write to `fixed` the linear costs of the free slots and seats once `slot` has `seat`, from those before."""


@singledispatch
def row_bounds(costs: Any, linear: Any, free: Free, count: int, bounds: Any) -> None:
    """Write to ``bounds[a, b]`` the least that the a-th free slot can contribute on the b-th free seat of its block."""


@kernel(fix_pair, KoopmansBeckmann, allocates=False)
def _fix_flow(costs: KoopmansBeckmann, linear: Any, fixed: Any, free: Free, count: int, slot: int, seat: int) -> None:
    flow, distance = costs.flow, costs.distance
    for a in range(count):
        i = free.slots[a]
        out, back = flow[slot, i], flow[i, slot]
        for b in range(count):
            k = free.seats[b]
            fixed[i, k] = linear[i, k] + out * distance[seat, k] + back * distance[k, seat]


@kernel(row_bounds, KoopmansBeckmann, allocates=False)
def _flow_bounds(costs: KoopmansBeckmann, linear: Any, free: Free, count: int, bounds: Any) -> None:
    flow, distance = costs.sorted_flow, costs.sorted_distance
    for a in range(count):
        i = free.slots[a]
        filled = 0
        for x in range(costs.flow_order.shape[1]):
            j = costs.flow_order[i, x]
            if free.slot_is_free[j]:
                flow[a, filled] = costs.flow[i, j]
                filled += 1
    for b in range(count):
        k = free.seats[b]
        filled = 0
        for x in range(costs.distance_order.shape[1]):
            l = costs.distance_order[k, x]  # noqa: E741
            if free.seat_is_free[l]:
                distance[filled, b] = costs.distance[k, l]
                filled += 1
    for a in range(count):
        for b in range(count):
            bounds[a, b] = linear[free.slots[a], free.seats[b]]
        # A row of seats at a time: each step is independent, so the compiler uses SIMD.
        for x in range(count - 1):
            factor = flow[a, x]
            for b in range(count):
                bounds[a, b] += factor * distance[x, b]


@kernel(fix_pair, Lawler, allocates=False)
def _fix_coupling(costs: Lawler, linear: Any, fixed: Any, free: Free, count: int, slot: int, seat: int) -> None:
    coupling = costs.coupling[slot, costs.expert[seat]]
    for a in range(count):
        t = free.slots[a]
        for b in range(count):
            k = free.seats[b]
            pays = coupling[t, costs.expert[k]]
            fixed[t, k] = linear[t, k] + pays + pays


@kernel(row_bounds, Lawler, allocates=False)
def _coupling_bounds(costs: Lawler, linear: Any, free: Free, count: int, bounds: Any) -> None:
    block_size, expert, inner = costs.block_size, costs.expert, costs.inner
    for a in range(count):
        s = free.slots[a]
        for b in range(count):
            k = free.seats[b]
            if k // block_size != s // block_size:
                continue
            if b > 0 and free.seats[b - 1] // block_size == k // block_size and expert[free.seats[b - 1]] == expert[k]:
                # A seat of the same expert costs the same.
                bounds[a, b] = bounds[a, b - 1]
                continue
            coupling = costs.coupling[s, expert[k]]
            for x in range(count - 1):
                t = free.slots[x + (x >= a)]
                for y in range(count - 1):
                    inner[x, y] = coupling[t, expert[free.seats[y + (y >= b)]]]
            total = linear[s, k]
            first = 0
            while first < count - 1:
                block = free.slots[first + (first >= a)] // block_size
                last = first + 1
                while last < count - 1 and free.slots[last + (last >= a)] // block_size == block:
                    last += 1
                total += assign(inner, first, last, costs.duals)
                first = last
            bounds[a, b] = total
