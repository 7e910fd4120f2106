"""Limits on the loads of experts: permutations within them, to start a search from, and the lowest that are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.permutation_problem import Permutation, expert_of_seat, seats_by_expert

RANDOM_STARTS = 20
MOST_NODES = 100_000
# Bisections in finding a lowest limit.
ROUNDS = 10


class InfeasibleLimitsError(ValueError):
    """No permutation is within the load limits, or none was found.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.LinearAssignment([[4, 1], [2, 3]])
    >>> try:
    ...     ms.LoadLimited(problem, slot_loads=[5, 1], limits=[3, 3])
    ... except ms.InfeasibleLimitsError as error:
    ...     print(error)
    limits must hold one of at least 5, the load of slot 0, got 3 at most
    """


@dataclass(frozen=True, eq=False)
class LoadLimits:
    """What slots weigh and experts bear, in integers."""

    slot_load: npt.NDArray[np.int64]  # (size,)
    limit: npt.NDArray[np.int64]  # (n,): the most that the slots of an expert may weigh together, over all blocks
    block_size: int
    capacity: int  # slots of an expert in a block

    @property
    def size(self) -> int:
        """Number of slots in all blocks."""
        return self.slot_load.size

    def experts(self, permutation: Permutation) -> Permutation:
        """Return the expert of every slot under a permutation."""
        return expert_of_seat(self.size, self.block_size, self.capacity)[permutation]

    def loads(self, experts: Permutation) -> npt.NDArray[np.int64]:
        """Return the load of every expert, shape (n,), from the expert of every slot."""
        loads = np.zeros(self.limit.size, dtype=np.int64)
        np.add.at(loads, experts, self.slot_load)
        return loads

    def excess(self, permutation: Permutation) -> int:
        """Return by how much the experts are loaded beyond their limits, in all."""
        return int(np.maximum(self.loads(self.experts(permutation)) - self.limit, 0).sum())


def find_start(
    limits: LoadLimits, draw: Callable[[np.random.Generator], Permutation], near: Permutation | None = None
) -> Permutation:
    """Return a permutation within the limits, by repair of ``near``, greedily, or by exhaustion.

    Slots in order of falling load go to the expert with the most room left that still has a seat in their block
    (longest processing time first); swaps then repair what is over. If that and the repair of random permutations fail,
    a depth-first search in the same order looks at all assignments, up to a number of steps.

    Raises
    ------
    InfeasibleLimitsError
        If there is no such permutation, or, on large problems with tight limits, none was found.

    References
    ----------
    R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17 (1969), 416-429.
    """
    full = "limits must leave room for a permutation, but each puts an expert over its own"
    if least_highest_load(limits) > limits.limit.max():
        raise InfeasibleLimitsError(full)
    rng = np.random.default_rng(0)
    attempts = chain([] if near is None else [near], [greedy(limits)], (draw(rng) for _ in range(RANDOM_STARTS)))
    for start in attempts:
        repaired = repair(limits, start)
        if limits.excess(repaired) == 0:
            return repaired
    found, exhausted = depth_first(limits, MOST_NODES)
    if found is not None:
        return found
    if exhausted:
        raise InfeasibleLimitsError(full)
    raise InfeasibleLimitsError(
        f"limits must leave room for a permutation that can be found, but none was, by greedy assignment, swaps and"
        f" {MOST_NODES:,} steps of depth-first search; raise them"
    )


def least_highest_load(limits: LoadLimits) -> int:
    """Return a lower bound on the highest load of an expert, over all permutations.

    The largest of the mean load, rounded up, and of this, for every j: among the j n + 1 heaviest slots, some expert
    has j + 1. It bears at least the lightest j + 1 of these, and the lightest of all slots at its other seats.
    """
    n = limits.limit.size
    seats = limits.size // n
    load = -np.sort(-limits.slot_load)
    heavier = np.concatenate([[0], np.cumsum(load)])
    lightest = np.concatenate([[0], np.cumsum(load[::-1])])
    j = np.arange(seats)
    bounds = heavier[j * n + 1] - heavier[j * n - j] + lightest[seats - j - 1]
    return max(-(-int(heavier[-1]) // n), int(bounds.max()))


def greedy(limits: LoadLimits) -> Permutation:
    """Return the permutation that longest processing time first gives, within the limits or not."""
    room = limits.limit.copy()
    seats = np.full((limits.size // limits.block_size, limits.limit.size), limits.capacity)
    experts = np.empty(limits.size, dtype=np.int64)
    for slot in _by_falling_load(limits):
        block = slot // limits.block_size
        e = int(np.argmax(np.where(seats[block] > 0, room, np.iinfo(np.int64).min)))
        experts[slot] = e
        seats[block, e] -= 1
        room[e] -= limits.slot_load[slot]
    return seats_by_expert(experts, limits.block_size)


def repair(limits: LoadLimits, permutation: Permutation) -> Permutation:
    """Return the permutation after swaps that each lessen the sum of squared excess loads, until none does.

    Each swap takes load from the expert that is most over its limit, to the first of the others, in order of falling
    room, that can give less for it.
    """
    p = permutation.copy()
    experts = limits.experts(p)
    over = (limits.loads(experts) - limits.limit).astype(np.float64)
    blocks = np.arange(limits.size) // limits.block_size
    load = limits.slot_load.astype(np.float64)
    while over.max() > 0:
        e = int(np.argmax(over))
        mine = np.flatnonzero(experts == e)
        for f in np.argsort(over, kind="stable"):
            theirs = np.flatnonzero(experts == f)
            moved = load[mine][:, None] - load[theirs]
            moved[blocks[mine][:, None] != blocks[theirs]] = 0.0
            after = np.maximum(over[e] - moved, 0.0) ** 2 + np.maximum(over[f] + moved, 0.0) ** 2
            least = int(np.argmin(after))
            # The sum must fall by more than rounding, or swaps could go round in circles.
            if after.flat[least] < (1.0 - 1e-12) * (np.maximum(over[[e, f]], 0.0) ** 2).sum():
                i, j = divmod(least, theirs.size)
                a, b = mine[i], theirs[j]
                p[a], p[b] = p[b], p[a]
                experts[a], experts[b] = f, e
                over[e] -= moved[i, j]
                over[f] += moved[i, j]
                break
        else:
            return p
    return p


def depth_first(limits: LoadLimits, most_nodes: int) -> tuple[Permutation | None, bool]:
    """Assign slot after slot, heaviest first, and step back where a slot has no expert left.

    Returns
    -------
    permutation : ndarray or None
        The first one within the limits.
    exhausted : bool
        Whether all assignments were looked at, so that None is a proof that there is none.
    """
    order = _by_falling_load(limits)
    room = limits.limit.copy()
    seats = np.full((limits.size // limits.block_size, limits.limit.size), limits.capacity)
    experts = np.empty(limits.size, dtype=np.int64)
    choices: list[list[int]] = []
    for _ in range(most_nodes):
        depth = len(choices)
        if depth == order.size:
            return seats_by_expert(experts, limits.block_size), False
        slot = order[depth]
        fitting = np.flatnonzero((seats[slot // limits.block_size] > 0) & (room >= limits.slot_load[slot]))
        # The most room last, where it is popped first.
        choices.append(fitting[np.argsort(room[fitting], kind="stable")].tolist())
        while not choices[-1]:
            choices.pop()
            if not choices:
                return None, True
            slot = order[len(choices) - 1]
            seats[slot // limits.block_size, experts[slot]] += 1
            room[experts[slot]] += limits.slot_load[slot]
        slot = order[len(choices) - 1]
        e = choices[-1].pop()
        experts[slot] = e
        seats[slot // limits.block_size, e] -= 1
        room[e] -= limits.slot_load[slot]
    return None, False


def _by_falling_load(limits: LoadLimits) -> Permutation:
    return np.argsort(-limits.slot_load, kind="stable")


def lowest_limit(limits: LoadLimits, near: Permutation) -> tuple[int, Permutation]:
    """Return a low limit for all experts alike, and a permutation whose highest load it is.

    Bisection between `least_highest_load` and the highest load found so far; at each limit, swaps repair ``near`` and
    what longest processing time first gives. Where one heavy slot decides, this is mostly exact; the lowest limit of
    all is a bin-packing problem, and a somewhat lower one may exist. The limits of ``limits`` are not looked at.
    """

    def highest(permutation: Permutation) -> int:
        return int(limits.loads(limits.experts(permutation)).max())

    trial = least_highest_load(limits)
    return _bisect(limits, near, highest, lambda limit: np.full_like(limits.limit, limit), trial, integers=True)


def lowest_multiple(
    limits: LoadLimits, shares: npt.NDArray[np.float64], near: Permutation
) -> tuple[npt.NDArray[np.int64], Permutation]:
    """Return low limits in the proportions of ``shares``, shape (n,) and positive, and a permutation that keeps them.

    It bisects the multiple as `lowest_limit` the limit, from the larger of these on: all loads to all shares, and the
    heaviest slot to the largest share.
    """

    def multiple(permutation: Permutation) -> float:
        return float((limits.loads(limits.experts(permutation)) / shares).max())

    def limit(multiple: float) -> npt.NDArray[np.int64]:
        return np.floor(multiple * shares).astype(np.int64)

    loads = limits.slot_load
    low = max(loads.sum() / shares.sum(), loads.max() / shares.max())
    best, found = _bisect(limits, near, multiple, limit, low, integers=False)
    return np.maximum(limits.loads(limits.experts(found)), limit(best)), found


def _bisect(
    limits: LoadLimits,
    near: Permutation,
    measure: Callable[[Permutation], Any],
    limit: Callable[[Any], npt.NDArray[np.int64]],
    low: Any,
    *,
    integers: bool,
) -> tuple[Any, Permutation]:
    """Return the least measure met of a permutation, and that permutation; none is below `low`.

    Every trial repairs permutations to the limits of a measure halfway between `low` and the least met.
    """
    best, found = measure(near), near
    trial = low
    for _ in range(ROUNDS):
        if low >= best:
            break
        tried = replace(limits, limit=limit(trial))
        for start in (near, greedy(tried)):
            repaired = repair(tried, start)
            if measure(repaired) < best:
                best, found = measure(repaired), repaired
        if best > trial:
            low = trial + 1 if integers else trial
        trial = (low + best) // 2 if integers else (low + best) / 2
    return best, found
