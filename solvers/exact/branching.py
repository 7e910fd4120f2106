"""Kernels of branch and bound: a depth-first search tree on an explicit stack."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled
from moe_search.solvers.bounds.gilmore_lawler import Free, fix_pair, row_bounds
from moe_search.solvers.bounds.linear_assignment import Duals, assign, empty_duals
from moe_search.solvers.engine.compiled_search import LOG_LENGTH
from moe_search.solvers.exact.symmetry import Symmetry

TREE_COUNTS = np.dtype(
    [
        ("depth", np.int64),  # of the node whose children are visited, -1 before the root
        ("nodes", np.int64),  # nodes bounded
        ("logged", np.int64),  # improvements in this slice
        ("done", np.bool_),  # the whole tree is searched, or the target is reached
        ("proved", np.bool_),  # the whole tree is searched
    ]
)


BEST, STEP = range(2)


class Tree(NamedTuple):
    """A search tree: for each depth d the node on the way, with d slots seated, and its children."""

    counts: npt.NDArray[Any]  # of `TREE_COUNTS`, (1,)
    totals: npt.NDArray[
        Any
    ]  # (2,): value of the incumbent, and the least difference of two values (floats: that counts)
    incumbent: npt.NDArray[np.int64]  # (m,): the best permutation met
    free: Free  # at the node
    block_size: int
    linear: npt.NDArray[
        Any
    ]  # (m + 1, m, m): linear costs at every depth, those of the pairs with seated slots among them
    fixed: npt.NDArray[Any]  # (m + 1,): costs of the seated slots among themselves
    prices: npt.NDArray[Any]  # (m + 1, m): dual variables of the seats, from which the assignments below start
    slot: npt.NDArray[np.int64]  # (m, m): the slot that each child seats; children stand by rising bound
    seat: npt.NDArray[np.int64]  # (m, m): where it seats it
    bound: npt.NDArray[Any]  # (m, m): the least value below the child
    children: npt.NDArray[np.int64]  # (m,): number of children
    visited: npt.NDArray[np.int64]  # (m,): how many of them have been visited
    bounds: npt.NDArray[Any]  # scratch, (m, m): what each free slot contributes at least on each free seat
    below: npt.NDArray[Any]  # scratch, (m, m): the least value below each child that the node could have
    look_ahead: int  # children of nodes less deep than this are bounded before one slot or seat is chosen
    duals: Duals  # scratch: the assignment over them
    redundant_slot: npt.NDArray[
        np.bool_
    ]  # scratch, (m,): which free ones, by position, have a symmetric one before them
    redundant_seat: npt.NDArray[np.bool_]
    slot_maps: npt.NDArray[np.int64]  # (g, m): automorphisms
    seat_maps: npt.NDArray[np.int64]
    slot_alive: npt.NDArray[
        np.int64
    ]  # (m + 1, g + 1): how many of them leave all seated slots where they are, and which
    seat_alive: npt.NDArray[np.int64]  # the same of the taken seats
    slot_twin: npt.NDArray[np.int64]  # (m,): the previous slot that could be exchanged with each, or -1
    seat_twin: npt.NDArray[np.int64]
    log_values: npt.NDArray[Any]  # improvements of the incumbent in this slice
    log_nodes: npt.NDArray[np.int64]


def empty_tree(
    linear: npt.NDArray[Any],
    block_size: int,
    incumbent: npt.NDArray[np.int64],
    totals: tuple[Any, Any],
    slots: Symmetry,
    seats: Symmetry,
    look_ahead: int,
) -> Tree:
    """Return the tree before its root is bounded."""
    m, dtype = len(linear), linear.dtype
    levels = np.zeros((m + 1, m, m), dtype=dtype)
    levels[0] = linear
    alive = []
    for symmetry in (slots, seats):
        known = len(symmetry.maps)
        alive.append(np.zeros((m + 1, known + 1), dtype=np.int64))
        alive[-1][0] = np.r_[known, np.arange(known)]
    return Tree(
        counts=np.array([(-1, 0, 0, False, False)], dtype=TREE_COUNTS).view(np.recarray),
        totals=np.array(totals, dtype=dtype),
        incumbent=incumbent,
        free=Free(np.arange(m), np.arange(m), np.ones(m, dtype=np.bool_), np.ones(m, dtype=np.bool_)),
        block_size=block_size,
        linear=levels,
        fixed=np.zeros(m + 1, dtype=dtype),
        prices=np.zeros((m + 1, m), dtype=dtype),
        slot=np.zeros((m, m), dtype=np.int64),
        seat=np.zeros((m, m), dtype=np.int64),
        bound=np.zeros((m, m), dtype=dtype),
        children=np.zeros(m, dtype=np.int64),
        visited=np.zeros(m, dtype=np.int64),
        bounds=np.zeros((m, m), dtype=dtype),
        below=np.zeros((m, m), dtype=dtype),
        look_ahead=look_ahead,
        duals=empty_duals(m, dtype),
        redundant_slot=np.zeros(m, dtype=np.bool_),
        redundant_seat=np.zeros(m, dtype=np.bool_),
        slot_maps=slots.maps,
        seat_maps=seats.maps,
        slot_alive=alive[0],
        seat_alive=alive[1],
        slot_twin=slots.previous_twin,
        seat_twin=seats.previous_twin,
        log_values=np.zeros(LOG_LENGTH, dtype=dtype),
        log_nodes=np.zeros(LOG_LENGTH, dtype=np.int64),
    )


def open_bound(tree: Tree) -> Any:
    """Return the least bound of the children not yet visited, the incumbent's value if there are none.

    None before the root is bounded.
    """
    depth = int(tree.counts[0].depth)
    if depth < 0:
        return None
    bounds = [tree.bound[d, tree.visited[d]] for d in range(depth + 1) if tree.visited[d] < tree.children[d]]
    return min(bounds, default=tree.totals[BEST])


# At every depth d up to that of the node whose children are visited, ``slot[d, visited[d] - 1]`` sits on ``seat[d,
# visited[d] - 1]``, and `free` holds what none of them took. ``fixed[d]`` is what the first d of them cost with each
# other, and ``linear[d]`` what a free slot costs on a free seat by itself and with them. Children stand by rising
# bound, which no permutation below them falls short of; those behind ``visited[d]`` are still open.


@compiled
def branch_slice(costs: Any, tree: Tree, budget: int, target: float) -> int:
    """Bound at most `budget` more nodes; return how many. Ends early at the target or with a full log."""
    counts, totals, free, bounds, duals = tree.counts[0], tree.totals, tree.free, tree.bounds, tree.duals
    before = counts.nodes
    while counts.nodes - before < budget and not counts.done and counts.logged < tree.log_values.shape[0]:
        depth = counts.depth
        if depth >= 0:
            child = tree.visited[depth]
            # The children stand by rising bound: if one is of no use, so are those behind it.
            if child == tree.children[depth] or tree.bound[depth, child] > totals[BEST] - totals[STEP]:
                counts.depth = depth - 1
                if depth == 0:
                    counts.done = counts.proved = True
                else:
                    last = tree.visited[depth - 1] - 1
                    free.slot_is_free[tree.slot[depth - 1, last]] = True
                    free.seat_is_free[tree.seat[depth - 1, last]] = True
                continue
            tree.visited[depth] += 1
            free.slot_is_free[tree.slot[depth, child]] = False
            free.seat_is_free[tree.seat[depth, child]] = False
        # A node is bounded here and not in a kernel of its own, which would be optimized once more within this one.
        depth += 1
        counts.nodes += 1
        counts.depth = depth
        tree.children[depth] = 0
        tree.visited[depth] = 0
        # Of the root nothing is read one level up.
        above = max(depth - 1, 0)
        last = tree.visited[above] - 1
        slot, seat = tree.slot[above, last], tree.seat[above, last]
        count = list_free(free)
        bound = bound_node(costs, tree, depth, count, slot, seat)
        if depth > 0:
            bound = max(bound, tree.bound[above, last])
        if bound > totals[BEST] - totals[STEP]:
            continue
        if count <= 2:
            # Nothing is left to choose from in the rows, so the bound is the value.
            record(tree, depth, count, bound)
            if bound <= target:
                counts.done = True
            continue
        if depth > 0:
            keep_alive(tree.slot_maps, tree.slot_alive, depth, slot)
            keep_alive(tree.seat_maps, tree.seat_alive, depth, seat)
        slots_alive, seats_alive = tree.slot_alive[depth], tree.seat_alive[depth]
        mark_redundant(
            tree.slot_maps, slots_alive, tree.slot_twin, free.slots, free.slot_is_free, count, tree.redundant_slot
        )
        mark_redundant(
            tree.seat_maps, seats_alive, tree.seat_twin, free.seats, free.seat_is_free, count, tree.redundant_seat
        )
        for a in range(count):
            for b in range(count):
                bounds[a, b] = bound + (bounds[a, b] - duals.row[a] - duals.column[b])
        if depth < tree.look_ahead:
            look_ahead(costs, tree, depth, count)
        branch(tree, depth, count, bound)
    return counts.nodes - before


@compiled
def look_ahead(costs: Any, tree: Tree, depth: int, count: int) -> None:
    """Raise the bounds of the children that the node could have to those that they will have when visited."""
    free, below = tree.free, tree.below
    limit = tree.totals[BEST] - tree.totals[STEP]
    for a in range(count):
        for b in range(count):
            below[a, b] = tree.bounds[a, b]
    for a in range(count):
        for b in range(count):
            slot, seat = free.slots[a], free.seats[b]
            same = tree.redundant_slot[a] or tree.redundant_seat[b]
            if same or below[a, b] > limit or slot // tree.block_size != seat // tree.block_size:
                continue
            free.slot_is_free[slot] = False
            free.seat_is_free[seat] = False
            fewer = list_free(free)
            below[a, b] = max(below[a, b], bound_node(costs, tree, depth + 1, fewer, slot, seat))
            free.slot_is_free[slot] = True
            free.seat_is_free[seat] = True
            list_free(free)
    for a in range(count):
        for b in range(count):
            tree.bounds[a, b] = below[a, b]


@compiled
def bound_node(costs: Any, tree: Tree, depth: int, count: int, slot: int, seat: int) -> Any:
    """Return the least value below a node at `depth` that seats one slot more than the one above it."""
    free, duals, bounds = tree.free, tree.duals, tree.bounds
    above = max(depth - 1, 0)
    if depth > 0:
        tree.fixed[depth] = tree.fixed[above] + tree.linear[above, slot, seat]
        fix_pair(costs, tree.linear[above], tree.linear[depth], free, count, slot, seat)
    row_bounds(costs, tree.linear[depth], free, count, bounds)
    for b in range(count):
        duals.column[b] = tree.prices[above, free.seats[b]]
    bound = tree.fixed[depth]
    first = 0
    while first < count:
        last_of_block = block_end(free.slots, first, count, tree.block_size)
        bound += assign(bounds, first, last_of_block, duals)
        first = last_of_block
    for b in range(count):
        tree.prices[depth, free.seats[b]] = duals.column[b]
    return bound


@compiled
def list_free(free: Free) -> int:
    """List the free slots and seats; return how many there are of each."""
    count = 0
    for s in range(free.slot_is_free.shape[0]):
        if free.slot_is_free[s]:
            free.slots[count] = s
            count += 1
    count = 0
    for k in range(free.seat_is_free.shape[0]):
        if free.seat_is_free[k]:
            free.seats[count] = k
            count += 1
    return count


@compiled
def block_end(slots: Any, first: int, count: int, block_size: int) -> int:
    """Return the end of the run of free slots of one block that starts at position `first`."""
    last = first + 1
    while last < count and slots[last] // block_size == slots[first] // block_size:
        last += 1
    return last


@compiled
def record(tree: Tree, depth: int, count: int, value: Any) -> None:
    """Take the seated slots and the assignment of the free ones as the incumbent."""
    for d in range(depth):
        last = tree.visited[d] - 1
        tree.incumbent[tree.slot[d, last]] = tree.seat[d, last]
    for a in range(count):
        tree.incumbent[tree.free.slots[a]] = tree.free.seats[tree.duals.column_of[a]]
    counts = tree.counts[0]
    tree.totals[BEST] = value
    tree.log_values[counts.logged] = value
    tree.log_nodes[counts.logged] = counts.nodes
    counts.logged += 1


@compiled
def keep_alive(maps: Any, alive: Any, depth: int, taken: int) -> None:
    """List the automorphisms that were alive one level up and leave the index that was taken where it is."""
    kept = 0
    for x in range(1, alive[depth - 1, 0] + 1):
        g = alive[depth - 1, x]
        if maps[g, taken] == taken:
            kept += 1
            alive[depth, kept] = g
    alive[depth, 0] = kept


@compiled
def mark_redundant(maps: Any, alive: Any, twin: Any, indices: Any, is_free: Any, count: int, redundant: Any) -> None:
    """Mark the free indices that a symmetry of what is left maps to one before them: the same subtrees come there."""
    for a in range(count):
        index = indices[a]
        redundant[a] = False
        other = twin[index]
        while other >= 0 and not redundant[a]:
            redundant[a] = is_free[other]
            other = twin[other]
        for x in range(1, alive[0] + 1):
            if redundant[a]:
                break
            redundant[a] = maps[alive[x], index] < index


@compiled
def branch(tree: Tree, depth: int, count: int, bound: Any) -> None:
    """Give the node the children of one slot or one seat: the one whose bounds, by reduced costs, add up to most."""
    below, free = tree.bounds, tree.free
    limit = tree.totals[BEST] - tree.totals[STEP]
    best_sum, best, by_slot = below.dtype.type(-1), 0, True
    first = 0
    while first < count:
        last = block_end(free.slots, first, count, tree.block_size)
        for a in range(first, last):
            row_sum = below.dtype.type(0)
            column_sum = below.dtype.type(0)
            for b in range(first, last):
                row_sum += limit - bound if tree.redundant_seat[b] else min(below[a, b], limit) - bound
                column_sum += limit - bound if tree.redundant_slot[b] else min(below[b, a], limit) - bound
            if row_sum > best_sum:
                best_sum, best, by_slot = row_sum, a, True
            if column_sum > best_sum:
                best_sum, best, by_slot = column_sum, a, False
        first = last
    children = 0
    block = (free.slots[best] if by_slot else free.seats[best]) // tree.block_size
    for x in range(count):
        a, b = (best, x) if by_slot else (x, best)
        if (free.seats[x] if by_slot else free.slots[x]) // tree.block_size != block:
            continue
        if tree.redundant_seat[x] if by_slot else tree.redundant_slot[x]:
            continue
        value = below[a, b]
        if value > limit:
            continue
        # Insertion by rising bound.
        place = children
        while place > 0 and tree.bound[depth, place - 1] > value:
            tree.slot[depth, place] = tree.slot[depth, place - 1]
            tree.seat[depth, place] = tree.seat[depth, place - 1]
            tree.bound[depth, place] = tree.bound[depth, place - 1]
            place -= 1
        tree.slot[depth, place] = free.slots[a]
        tree.seat[depth, place] = free.seats[b]
        tree.bound[depth, place] = value
        children += 1
    tree.children[depth] = children
