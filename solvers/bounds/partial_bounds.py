"""The Gilmore-Lawler bound of what is left of an assignment once some slots have their seats, as kernels."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import kernel
from moe_search.solvers.bounds.linear_assignment import Duals, assign


class KoopmansBeckmann(NamedTuple):
    """Costs ``flow[i, j] * distance[k, l]`` of pairs; both diagonals are zero.

    Parameters
    ----------
    flow, distance : ndarray, shape (n, n)
        The matrices.
    flow_order, distance_order : ndarray of int64, shape (n, n - 1)
        Columns but the diagonal, by rising flow and by falling distance in the row.
    sorted_flow, sorted_distance : ndarray, shape (n, n)
        Scratch: what is free of every row, sorted; the distances transposed.
    """

    flow: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    flow_order: npt.NDArray[np.int64]
    distance_order: npt.NDArray[np.int64]
    sorted_flow: npt.NDArray[Any]
    sorted_distance: npt.NDArray[Any]


class Lawler(NamedTuple):
    """Costs ``coupling[s, e, t, f]`` of unordered pairs of slots under their experts.

    All totals are twice the cost, since each slot of a pair bounds one half of it.

    Parameters
    ----------
    coupling : ndarray, shape (m, n, m, n)
        The costs, symmetric under an exchange of the pairs (s, e) and (t, f).
    expert : ndarray of int64, shape (m,)
        Expert of every seat.
    block_size : int
        Slots of a block.
    inner : ndarray, shape (m, m)
        Scratch: costs of the other slots, given one slot and its seat.
    duals : Duals
        Scratch for their assignment.
    """

    coupling: npt.NDArray[Any]
    expert: npt.NDArray[np.int64]
    block_size: int
    inner: npt.NDArray[Any]
    duals: Duals


class Free(NamedTuple):
    """The slots and seats that are free.

    Parameters
    ----------
    slots, seats : ndarray of int64, shape (m,)
        The free ones in rising order, `count` of each.
    slot_is_free, seat_is_free : ndarray of bool, shape (m,)
        The same as flags.
    """

    slots: npt.NDArray[np.int64]
    seats: npt.NDArray[np.int64]
    slot_is_free: npt.NDArray[np.bool_]
    seat_is_free: npt.NDArray[np.bool_]


@singledispatch
def fix_pair(costs: Any, linear: Any, fixed: Any, free: Free, count: int, slot: int, seat: int) -> None:
    """Write to `fixed` the linear costs of the free slots and seats once `slot` has `seat`, from those before."""


@singledispatch
def row_bounds(costs: Any, linear: Any, free: Free, count: int, bounds: Any) -> None:
    """Write to ``bounds[a, b]`` the least that the a-th free slot can contribute on the b-th free seat of its block."""


@kernel(fix_pair, KoopmansBeckmann)
def _fix_flow(costs: KoopmansBeckmann, linear: Any, fixed: Any, free: Free, count: int, slot: int, seat: int) -> None:
    flow, distance = costs.flow, costs.distance
    for a in range(count):
        i = free.slots[a]
        out, back = flow[slot, i], flow[i, slot]
        for b in range(count):
            k = free.seats[b]
            fixed[i, k] = linear[i, k] + out * distance[seat, k] + back * distance[k, seat]


@kernel(row_bounds, KoopmansBeckmann)
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


@kernel(fix_pair, Lawler)
def _fix_coupling(costs: Lawler, linear: Any, fixed: Any, free: Free, count: int, slot: int, seat: int) -> None:
    coupling = costs.coupling[slot, costs.expert[seat]]
    for a in range(count):
        t = free.slots[a]
        for b in range(count):
            k = free.seats[b]
            pays = coupling[t, costs.expert[k]]
            fixed[t, k] = linear[t, k] + pays + pays


@kernel(row_bounds, Lawler)
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
