"""Kernels on one layer of a placement: descent by swap and retarget, the way back, kicks.

All experts are on devices of their region, a node where groups stay on nodes and else the whole cluster. A swap
exchanges the experts of two slots; a retarget makes a replica of one expert a replica of another, by which the loads of
all devices that hold either change.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled
from moe_search.solvers.engine.random_state import random_unit

# A gain must be this part of the largest load, beyond rounding errors.
LEAST_GAIN = 1e-10
# Where migrations count, a gain must be this part of what is to be gained, and a move without migrations counts as
# half of one.
LEAST_SHARE = 0.05
FREE_MOVE = 0.5
# The first swap is taken that gains this part of the span of loads.
GOOD_SHARE = 0.25
# A kick is up to this many moves, of so many tries; so often it is the most loaded device that they are about.
MOST_KICKS, TRIES, ON_TOP = 5, 40, 0.67
DRAWS = 8


class Board(NamedTuple):
    """One layer at work: what is fixed for all layers, the experts in the slots, and all that follows from these."""

    first: npt.NDArray[np.int64]  # (devices + 1,) the first slot of every device
    region: npt.NDArray[np.int64]  # (devices,) the region of every device
    regions: npt.NDArray[np.int64]  # (regions + 1,) the first device of every region
    home: npt.NDArray[np.int64]  # (experts,) the region of every expert
    place: npt.NDArray[np.int64]  # (slots,) the expert in every slot
    copies: npt.NDArray[np.int64]  # (experts,) how many devices hold an expert
    on: npt.NDArray[np.int64]  # (experts, devices) these devices
    slot: npt.NDArray[np.int64]  # (experts, devices) the slot of an expert on a device, -1 if it is not there
    share: npt.NDArray[np.float64]  # (experts,) the load of a replica
    load: npt.NDArray[np.float64]  # (devices,)
    change: npt.NDArray[np.float64]  # (devices,) of the loads, by a retarget that is looked at
    part: npt.NDArray[np.float64]  # (devices + 2,) what one of so many replicas bears of a load
    draws: npt.NDArray[np.float64]  # (DRAWS,) random numbers


def empty_board(first: npt.NDArray[np.int64], regions: npt.NDArray[np.int64], num_experts: int) -> Board:
    """Return a board without experts."""
    devices, table = len(first) - 1, (num_experts, len(first) - 1)
    return Board(
        first=first,
        region=np.repeat(np.arange(len(regions) - 1), np.diff(regions)),
        regions=regions,
        home=np.zeros(num_experts, dtype=np.int64),
        place=np.zeros(first[-1], dtype=np.int64),
        copies=np.zeros(num_experts, dtype=np.int64),
        on=np.zeros(table, dtype=np.int64),
        slot=np.full(table, -1),
        share=np.zeros(num_experts),
        load=np.zeros(devices),
        change=np.zeros(devices),
        part=1.0 / np.maximum(np.arange(devices + 2), 1),
        draws=np.zeros(DRAWS),
    )


@compiled
def settle(board: Board, w: Any, was: Any) -> int:
    """Fill in what follows from the experts in the slots; return the number of migrations."""
    first, place, copies, on, slot, share = board.first, board.place, board.copies, board.on, board.slot, board.share
    for e in range(copies.shape[0]):
        for k in range(copies[e]):
            slot[e, on[e, k]] = -1
        copies[e] = 0
    moved = 0
    for g in range(board.load.shape[0]):
        for i in range(first[g], first[g + 1]):
            e = place[i]
            on[e, copies[e]] = g
            copies[e] += 1
            slot[e, g] = i
            board.home[e] = board.region[g]
            if not was[e, g]:
                moved += 1
    for e in range(copies.shape[0]):
        share[e] = w[e] * board.part[copies[e]]
    for g in range(board.load.shape[0]):
        total = 0.0
        for i in range(first[g], first[g + 1]):
            total += share[place[i]]
        board.load[g] = total
    return moved


@compiled
def swap(board: Board, i: int, g: int, j: int, h: int) -> None:
    """Exchange the experts in slot i of device g and in slot j of device h."""
    place, on, slot, load = board.place, board.on, board.slot, board.load
    a, b = place[i], place[j]
    d = board.share[a] - board.share[b]
    load[g] -= d
    load[h] += d
    place[i], place[j] = b, a
    k = 0
    while on[a, k] != g:
        k += 1
    on[a, k] = h
    k = 0
    while on[b, k] != h:
        k += 1
    on[b, k] = g
    slot[a, g] = slot[b, h] = -1
    slot[a, h], slot[b, g] = j, i


@compiled
def load_after(board: Board, w: Any, c: int, h: int, a: int) -> float:
    """Return the largest load of all devices that would change if the replica of c on device h became one of a."""
    copies, on, load, share, change = board.copies, board.on, board.load, board.share, board.change
    lost = w[c] * board.part[copies[c] - 1] - share[c]
    gained = w[a] * board.part[copies[a] + 1]
    for k in range(copies[a]):
        change[on[a, k]] = 0.0
    for k in range(copies[c]):
        change[on[c, k]] = lost
    for k in range(copies[a]):
        change[on[a, k]] += gained - share[a]
    change[h] = gained - share[c]
    largest = 0.0
    for k in range(copies[c]):
        largest = max(largest, load[on[c, k]] + change[on[c, k]])
    for k in range(copies[a]):
        largest = max(largest, load[on[a, k]] + change[on[a, k]])
    return largest


@compiled
def descend(
    board: Board,
    w: Any,
    was: Any,
    target: float,
    moved: int,
    most_moved: int,
    worth: float,
    counts: bool,
    trace: Any,
) -> int:
    """Move load off the most loaded device until it bears `target`, or nothing helps; return the migrations.

    Every device that a move touches stays below the largest load. Where migrations count, the move is taken that gains
    most for each of them, no more than `most_moved`, and more than `worth` for each; else the first good swap, the best
    one, or the best retarget. Rows of `trace` get migrations and largest load before every move.
    """
    first, place, copies, slot = board.first, board.place, board.copies, board.slot
    share, load = board.share, board.load
    cheapest = FREE_MOVE if counts else 1.0
    step = 0
    while True:
        g = 0
        for x in range(1, load.shape[0]):
            if load[x] > load[g]:
                g = x
        top = load[g]
        if step < trace.shape[0]:
            trace[step, 0] = moved
            trace[step, 1] = top
        step += 1
        if top <= target:
            return moved
        begin, end = board.regions[board.region[g]], board.regions[board.region[g] + 1]
        low = begin
        for x in range(begin, end):
            if load[x] < load[low]:
                low = x
        least = LEAST_GAIN * top
        if counts:
            least = max(least, LEAST_SHARE * (top - max(target, load[low])))
        good = min(top - target, GOOD_SHARE * (top - load[low]))
        kind, best = 0, 0.0
        best_i = best_j = best_h = best_more = 0
        for x in range(end - begin):
            h = low + x
            if h >= end:
                h -= end - begin
            room = top - least - load[h]
            # No swap with this device gains more than half of what is between the two.
            if room < least or 0.5 * (top - load[h]) <= best * cheapest:
                continue
            for i in range(first[g], first[g + 1]):
                a = place[i]
                if slot[a, h] >= 0:
                    continue
                own = share[a]
                for j in range(first[h], first[h + 1]):
                    b = place[j]
                    d = own - share[b]
                    if d < least or d > room:
                        continue
                    gain = top - max(top - d, load[h] + d, target)
                    if gain <= best * cheapest or slot[b, g] >= 0:
                        continue
                    more = 0
                    if counts:
                        more = int(was[a, g]) - int(was[a, h]) + int(was[b, h]) - int(was[b, g])
                        if moved + more > most_moved or gain <= worth * more:
                            continue
                        gain /= more if more > 0 else FREE_MOVE
                        if gain <= best:
                            continue
                    kind, best, best_i, best_j, best_h, best_more = 1, gain, i, j, h, more
            if not counts and best >= good:
                break
        if counts or kind == 0:
            # Retargets: an expert of this device gets one more replica elsewhere, or gives way here to a lighter one.
            for h in range(begin, end):
                for x in range(w.shape[0] if h == g else first[g + 1] - first[g]):
                    a = x if h == g else place[first[g] + x]
                    if slot[a, h] >= 0 or board.home[a] != board.region[h]:
                        continue
                    now = w[a] * board.part[copies[a] + 1]
                    most = top - target
                    if h != g:
                        most = min(most, share[a] - now)
                    if most < least or most <= best * cheapest:
                        continue
                    for j in range(first[h], first[h + 1]):
                        c = place[j]
                        # What it gains at most, before a look at all devices that hold either.
                        most_here = min(most, top - load[h] - now + share[c])
                        if copies[c] < 2 or most_here < least or most_here <= best * cheapest:
                            continue
                        more = int(was[c, h]) - int(was[a, h])
                        price = 1.0
                        if counts:
                            price = FREE_MOVE if more <= 0 else 1.0 * more
                        if most_here <= best * price or (counts and moved + more > most_moved):
                            continue
                        after = load_after(board, w, c, h, a)
                        gain = top - max(after, target)
                        if after <= top - least and gain > best * price and (not counts or gain > worth * more):
                            kind, best, best_i, best_j, best_h, best_more = 2, gain / price, a, j, h, more
        if kind == 0:
            return moved
        if kind == 1:
            swap(board, best_i, g, best_j, best_h)
        else:
            place[best_j] = best_i
            settle(board, w, was)
        moved += best_more


@compiled
def go_back(board: Board, w: Any, was: Any, target: float, moved: int, worth: float) -> int:
    """Undo migrations that load no device above `target`, or above the largest load and `worth`; return those left."""
    first, place, copies, slot = board.first, board.place, board.copies, board.slot
    share, load = board.share, board.load
    changed = True
    while changed and moved > 0:
        changed = False
        for h in range(load.shape[0]):
            limit = 0.0
            for g in range(load.shape[0]):
                limit = max(limit, load[g])
            limit = max(limit + worth, target)
            for j in range(first[h], first[h + 1]):
                c = place[j]
                if was[c, h]:
                    continue
                for a in range(w.shape[0]):
                    # An expert that was here comes back: one more replica, or in exchange.
                    if not was[a, h] or slot[a, h] >= 0 or board.home[a] != board.region[h]:
                        continue
                    if copies[c] > 1 and load_after(board, w, c, h, a) <= limit:
                        place[j] = a
                        moved = settle(board, w, was)
                        changed = True
                        break
                    d = share[a] - share[c]
                    for k in range(copies[a]):
                        g = board.on[a, k]
                        more = int(was[a, g]) - int(was[c, g]) - 1
                        if more < 0 and slot[c, g] < 0 and load[h] + d <= limit and load[g] - d <= limit:
                            swap(board, slot[a, g], g, j, h)
                            moved += more
                            changed = True
                            break
                    if place[j] != c:
                        break
                if place[j] != c:
                    break
    return moved


@compiled
def kick(board: Board, w: Any, was: Any, rng: Any) -> None:
    """Do a few random swaps and retargets, mostly of the most loaded device."""
    first, place, copies, slot, draws = board.first, board.place, board.copies, board.slot, board.draws
    devices = board.load.shape[0]
    top = 0
    tries, left = TRIES, MOST_KICKS
    while tries > 0 and left > 0:
        for k in range(DRAWS):
            draws[k] = random_unit(rng)
        if tries == TRIES:
            left = min(left, 1 + int(draws[0] * MOST_KICKS))
        tries -= 1
        top = int(draws[1] * devices)
        if draws[2] < ON_TOP:
            for x in range(devices):
                if board.load[x] > board.load[top]:
                    top = x
        begin, end = board.regions[board.region[top]], board.regions[board.region[top] + 1]
        h = begin + int(draws[3] * (end - begin))
        i = first[top] + int(draws[4] * (first[top + 1] - first[top]))
        j = first[h] + int(draws[5] * (first[h + 1] - first[h]))
        a, c = place[i], place[j]
        if draws[6] < 0.5:
            if h != top and slot[a, h] < 0 and slot[c, top] < 0:
                swap(board, i, top, j, h)
                left -= 1
            continue
        if draws[6] < 0.75:
            a = int(draws[7] * w.shape[0])
        if copies[c] > 1 and slot[a, h] < 0 and board.home[a] == board.region[h]:
            place[j] = a
            settle(board, w, was)
            left -= 1


@compiled
def exchange_groups(board: Board, ranked: Any, rng: Any) -> None:
    """Let two groups of experts, drawn at random, exchange their slots: the busiest of one with that of the other."""
    groups, size = ranked.shape
    a, b = int(random_unit(rng) * groups), int(random_unit(rng) * groups)
    for k in range(size):
        e, f = ranked[a, k], ranked[b, k]
        for g in range(board.load.shape[0]):
            i, j = board.slot[e, g], board.slot[f, g]
            if i >= 0:
                board.place[i] = f
            if j >= 0:
                board.place[j] = e
