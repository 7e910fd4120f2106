"""Kernels on one layer of a placement: descent by swap and retarget, the way back, kicks.

A swap exchanges the experts of two slots; a retarget makes a replica of one expert a replica of another, by which the
loads of all devices that hold either change. Every expert has a home, a region of devices: a node where groups stay on
nodes and else the whole cluster. All its copies stay there; or one does, and others may be anywhere.

Where migrations count, `was` says which expert was on which device before; else it is None, and what needs it is not
compiled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled
from moe_search.problems.placement import ExpertPlacement
from moe_search.solvers.engine.random_state import random_below, random_unit

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
# It is a swap, or a retarget to an expert of this device, or to any.
SWAPS, OF_DEVICE = 0.5, 0.75


EXPERT = np.dtype(
    [
        ("load", np.float64),
        ("share", np.float64),  # the load of a replica
        ("copies", np.int64),  # how many devices hold it
        ("home", np.int64),  # the region that it belongs to
        ("at_home", np.int64),  # how many of its copies are there
    ]
)

DEVICE = np.dtype(
    [
        ("load", np.float64),
        ("change", np.float64),  # of the load, by a retarget that is looked at
        ("first", np.int64),  # slot
        ("end", np.int64),  # the slot behind its last
        ("region", np.int64),
        ("near", np.int64),  # the first device to which its experts may go
        ("beyond", np.int64),  # the device behind the last one
        ("arrived", np.int64),  # how many of its experts were not there before
    ]
)


class Board(NamedTuple):
    """One layer at work: what is fixed for all layers, the experts in the slots, and all that follows from these.

    It is of few arrays: with every call of a function, references to all of them are counted.
    """

    anywhere: bool  # whether further copies may be outside of the region that is the home
    experts: Any  # of `EXPERT`, (experts,)
    devices: Any  # of `DEVICE`, (devices,)
    place: npt.NDArray[np.int64]  # (slots,) the expert in every slot
    on: npt.NDArray[np.int32]  # (experts, devices) the devices that hold an expert
    slot: npt.NDArray[np.int32]  # (experts, devices) the slot of an expert on a device, -1 if it is not there


def empty_board(problem: ExpertPlacement) -> Board:
    """Return a board without experts."""
    first, regions, num_experts = problem.cluster.first_slots, problem.regions, problem.load.shape[1]
    num_devices = len(first) - 1
    devices = np.zeros(num_devices, dtype=DEVICE)
    devices["first"], devices["end"] = first[:-1], first[1:]
    devices["region"] = region = np.arange(num_devices) * problem.num_regions // num_devices
    devices["near"] = 0 if problem.anywhere else regions[region]
    devices["beyond"] = num_devices if problem.anywhere else regions[region + 1]
    return Board(
        anywhere=problem.anywhere,
        experts=np.zeros(num_experts, dtype=EXPERT),
        devices=devices,
        place=np.zeros(first[-1], dtype=np.int64),
        on=np.zeros((num_experts, num_devices), dtype=np.int32),
        slot=np.full((num_experts, num_devices), -1, dtype=np.int32),
    )


@compiled
def remember(devices: Any, was: Any, before: Any, known: bool) -> None:
    """Write down which experts were in the slots before, or forget it."""
    for g in range(devices.shape[0]):
        for i in range(devices[g]["first"], devices[g]["end"]):
            if before[i] >= 0:
                was[before[i], g] = known


@compiled
def go_home(experts: Any, homes: Any) -> None:
    """Take in which region is the home of every group of experts."""
    size = experts.shape[0] // homes.shape[0]
    for e in range(experts.shape[0]):
        experts[e]["home"] = homes[e // size]


@compiled
def homes_of(experts: Any, homes: Any) -> None:
    """Write down which region is the home of every group of experts."""
    for group in range(homes.shape[0]):
        homes[group] = experts[group * (experts.shape[0] // homes.shape[0])]["home"]


@compiled
def settle(board: Board, was: Any) -> int:
    """Fill in what follows from the experts in the slots; return the number of migrations."""
    experts, devices, place, on, slot = board.experts, board.devices, board.place, board.on, board.slot
    for e in range(experts.shape[0]):
        expert = experts[e]
        for k in range(expert["copies"]):
            slot[e, on[e, k]] = -1
        expert["copies"] = 0
        expert["at_home"] = 0
    moved = 0
    for g in range(devices.shape[0]):
        device = devices[g]
        arrived = 0
        for i in range(device["first"], device["end"]):
            e = place[i]
            expert = experts[e]
            on[e, expert["copies"]] = g
            slot[e, g] = i
            expert["copies"] += 1
            expert["at_home"] += device["region"] == expert["home"]
            if was is not None:
                arrived += not was[e, g]
        device["arrived"] = arrived
        moved += arrived
    for e in range(experts.shape[0]):
        experts[e]["share"] = experts[e]["load"] / experts[e]["copies"]
    for g in range(devices.shape[0]):
        total = 0.0
        for i in range(devices[g]["first"], devices[g]["end"]):
            total += experts[place[i]]["share"]
        devices[g]["load"] = total
    return moved


@compiled
def most_loaded(devices: Any) -> int:
    """Return the device that bears most."""
    g = 0
    for x in range(1, devices.shape[0]):
        if devices[x]["load"] > devices[g]["load"]:
            g = x
    return g


@compiled
def leave(board: Board, was: Any, e: int, g: int) -> None:
    """Write down that expert e is on device g no more."""
    expert, device, on = board.experts[e], board.devices[g], board.on
    k = 0
    while on[e, k] != g:
        k += 1
    expert["copies"] -= 1
    expert["at_home"] -= device["region"] == expert["home"]
    on[e, k] = on[e, expert["copies"]]
    board.slot[e, g] = -1
    if was is not None:
        device["arrived"] -= not was[e, g]


@compiled
def enter(board: Board, was: Any, e: int, g: int, i: int) -> None:
    """Write down that expert e is in slot i of device g."""
    expert, device = board.experts[e], board.devices[g]
    board.on[e, expert["copies"]] = g
    expert["copies"] += 1
    expert["at_home"] += device["region"] == expert["home"]
    board.slot[e, g] = i
    board.place[i] = e
    if was is not None:
        device["arrived"] += not was[e, g]


@compiled
def may_swap(board: Board, i: int, g: int, j: int, h: int) -> bool:
    """Return whether the experts in slot i of device g and in slot j of device h can be exchanged."""
    a, b = board.place[i], board.place[j]
    if board.slot[a, h] >= 0 or board.slot[b, g] >= 0:
        return False
    if board.devices[g]["region"] == board.devices[h]["region"]:
        return True
    return may_leave(board.experts[a], board.devices[g]) and may_leave(board.experts[b], board.devices[h])


@compiled
def may_leave(expert: Any, device: Any) -> bool:
    """Return whether an expert on a device is at home still if it goes from there to another region, or is dropped."""
    return expert["at_home"] > 1 or expert["home"] != device["region"]


@compiled
def swap(board: Board, was: Any, i: int, g: int, j: int, h: int) -> None:
    """Exchange the experts in slot i of device g and in slot j of device h."""
    a, b = board.place[i], board.place[j]
    d = board.experts[a]["share"] - board.experts[b]["share"]
    board.devices[g]["load"] -= d
    board.devices[h]["load"] += d
    leave(board, was, a, g)
    leave(board, was, b, h)
    enter(board, was, a, h, j)
    enter(board, was, b, g, i)


@compiled
def spread(board: Board, e: int, copies: int) -> None:
    """Let every replica of an expert that there is bear the share of one of so many."""
    expert = board.experts[e]
    share = expert["load"] / copies
    for k in range(expert["copies"]):
        board.devices[board.on[e, k]]["load"] += share - expert["share"]
    expert["share"] = share


@compiled
def retarget(board: Board, was: Any, j: int, h: int, a: int) -> None:
    """Put expert a in slot j of device h, in place of a replica of another."""
    c = board.place[j]
    spread(board, c, board.experts[c]["copies"] - 1)
    spread(board, a, board.experts[a]["copies"] + 1)
    board.devices[h]["load"] += board.experts[a]["share"] - board.experts[c]["share"]
    leave(board, was, c, h)
    enter(board, was, a, h, j)


@compiled
def load_after(board: Board, c: int, h: int, a: int) -> float:
    """Return the largest load of all devices that would change if the replica of c on device h became one of a."""
    on, devices, new, old = board.on, board.devices, board.experts[a], board.experts[c]
    lost = old["load"] / (old["copies"] - 1) - old["share"]
    gained = new["load"] / (new["copies"] + 1) - new["share"]
    for k in range(new["copies"]):
        devices[on[a, k]]["change"] = 0.0
    for k in range(old["copies"]):
        devices[on[c, k]]["change"] = lost
    for k in range(new["copies"]):
        devices[on[a, k]]["change"] += gained
    devices[h]["change"] = gained + new["share"] - old["share"]
    largest = 0.0
    for k in range(old["copies"]):
        device = devices[on[c, k]]
        largest = max(largest, device["load"] + device["change"])
    for k in range(new["copies"]):
        device = devices[on[a, k]]
        largest = max(largest, device["load"] + device["change"])
    return largest


@compiled
def descend(board: Board, was: Any, target: float, moved: int, most_moved: int, worth: float, trace: Any) -> int:
    """Move load off the most loaded device until it bears `target`, or nothing helps; return the migrations.

    Every device that a move touches stays below the largest load. Where migrations count, the move is taken that gains
    most for each of them, no more than `most_moved`, and more than `worth` for each; else the first good swap, the best
    one, or the best retarget. Rows of `trace` get migrations and largest load before every move.
    """
    devices = board.devices
    step = 0
    while True:
        g = most_loaded(devices)
        top = devices[g]["load"]
        if was is not None:
            if step < trace.shape[0]:
                trace[step, 0] = moved
                trace[step, 1] = top
            step += 1
        if top <= target:
            return moved
        low = devices[g]["near"]
        for h in range(low, devices[g]["beyond"]):
            if devices[h]["load"] < devices[low]["load"]:
                low = h
        least, retargeted, a, h, j, more = LEAST_GAIN * top, 0.0, 0, 0, 0, 0
        if was is not None:
            least = max(least, LEAST_SHARE * (top - max(target, devices[low]["load"])))
            retargeted, a, h, j, more = best_retarget(board, was, g, low, target, least, most_moved - moved, worth)
        gain, i, to, at, fewer = best_swap(board, was, g, low, target, least, most_moved - moved, worth, retargeted)
        if was is None and gain == 0.0:
            retargeted, a, h, j, more = best_retarget(board, was, g, low, target, least, 0, 0.0)
        if gain > 0.0:
            swap(board, was, i, g, at, to)
            moved += fewer
        elif retargeted > 0.0:
            retarget(board, was, j, h, a)
            moved += more
        else:
            return moved


@compiled
def best_swap(
    board: Board, was: Any, g: int, low: int, target: float, least: float, allowed: int, worth: float, best: float
) -> tuple[float, int, int, int, int]:
    """Return the swap that takes most load off device g, for each migration where these count, if it is above `best`.

    The gain, 0 without one; the slot; the other device, of which `low` is the least loaded; the slot there; the
    migrations.
    """
    experts, devices, place, slot = board.experts, board.devices, board.place, board.slot
    device = devices[g]
    top, near, beyond = device["load"], device["near"], device["beyond"]
    found, best_i, best_h, best_j, best_more = 0.0, 0, 0, 0, 0
    good = min(top - target, GOOD_SHARE * (top - devices[low]["load"]))
    for h in range(low, low + beyond - near):
        if h >= beyond:
            h -= beyond - near
        other = devices[h]
        span = top - other["load"]
        price = 1.0
        if was is not None:
            # The least that it costs: where all experts are as before, a swap moves two of them.
            price = 2.0 if device["arrived"] + other["arrived"] == 0 else FREE_MOVE
        needed = max(least, best * price)
        # No swap with this device gains more than half of what is between the two.
        if 0.5 * span < needed:
            continue
        for i in range(device["first"], device["end"]):
            a = place[i]
            own = experts[a]["share"]
            if own < needed or slot[a, h] >= 0:
                continue
            for j in range(other["first"], other["end"]):
                b = place[j]
                d = own - experts[b]["share"]
                if d < needed or d > span - needed:
                    continue
                gain, more = min(d, span - d, top - target), 0
                if was is not None:
                    more = 0 + was[a, g] - was[a, h] + was[b, h] - was[b, g]
                    if more > allowed or gain <= worth * more:
                        continue
                    gain /= more if more > 0 else FREE_MOVE
                if gain > best and may_swap(board, i, g, j, h):
                    found, best, best_i, best_h, best_j, best_more = gain, gain, i, h, j, more
                    needed = max(least, best * price)
        if was is None and best >= good:
            break
    return found, best_i, best_h, best_j, best_more


@compiled
def best_retarget(
    board: Board, was: Any, g: int, low: int, target: float, least: float, allowed: int, worth: float
) -> tuple[float, int, int, int, int]:
    """Return the retarget that takes most load off device g, for each migration where these count.

    An expert of this device gets one more replica elsewhere, or gives way here to a lighter one. The gain, 0 without
    one; the expert; the device that it comes to, of which `low` bears least, and the slot there; the migrations.
    """
    experts, devices, place, slot = board.experts, board.devices, board.place, board.slot
    device = devices[g]
    top = device["load"]
    best, best_a, best_h, best_j, best_more = 0.0, 0, 0, 0, 0
    for h in range(low, low + device["beyond"] - device["near"]):
        if h >= device["beyond"]:
            h -= device["beyond"] - device["near"]
        other = devices[h]
        for j in range(other["first"], other["end"]):
            c = place[j]
            gone = experts[c]
            if not may_leave(gone, other):
                continue
            # What the other devices that hold it come to bear, unless they hold the one that comes, too.
            high = 0.0
            for k in range(gone["copies"]):
                if board.on[c, k] != h:
                    high = max(high, devices[board.on[c, k]]["load"])
            high += gone["load"] / (gone["copies"] - 1) - gone["share"]
            room = top - other["load"] + gone["share"]
            for x in range(experts.shape[0] if h == g else device["end"] - device["first"]):
                a = x if h == g else place[device["first"] + x]
                come = experts[a]
                now = come["load"] / (come["copies"] + 1)
                # What it gains at most, before a look at all devices that hold either.
                relief = come["share"] - now
                most = min(room - now, top - target, top - high + relief)
                if h != g:
                    most = min(most, relief)
                if most < least or slot[a, h] >= 0:
                    continue
                price, more = 1.0, 0
                if was is not None:
                    more = 0 + was[c, h] - was[a, h]
                    price = 1.0 if more > 0 else FREE_MOVE
                if more > allowed or most <= best * price or not (board.anywhere or come["home"] == other["region"]):
                    continue
                after = load_after(board, c, h, a)
                gain = top - max(after, target)
                if after <= top - least and gain > max(best * price, worth * more):
                    best, best_a, best_h, best_j, best_more = gain / price, a, h, j, more
    return best, best_a, best_h, best_j, best_more


@compiled
def go_back(board: Board, was: Any, before: Any, target: float, moved: int, worth: float) -> None:
    """Undo migrations that load no device above `target`, or above the largest load and `worth`."""
    experts, devices, place, slot = board.experts, board.devices, board.place, board.slot
    changed = True
    while changed and moved > 0:
        changed = False
        for h in range(devices.shape[0]):
            device = devices[h]
            if device["arrived"] == 0:
                continue
            limit = max(devices[most_loaded(devices)]["load"] + worth, target)
            for j in range(device["first"], device["end"]):
                c = place[j]
                if was[c, h]:
                    continue
                gone = experts[c]
                for x in range(device["first"], device["end"]):
                    # An expert that was here comes back: one more replica, or in exchange.
                    a = before[x]
                    if a < 0 or slot[a, h] >= 0 or not (board.anywhere or experts[a]["home"] == device["region"]):
                        continue
                    if may_leave(gone, device) and load_after(board, c, h, a) <= limit:
                        retarget(board, was, j, h, a)
                        moved -= 1
                        changed = True
                        break
                    d = experts[a]["share"] - gone["share"]
                    for k in range(experts[a]["copies"]):
                        g = np.int64(board.on[a, k])
                        i = np.int64(slot[a, g])
                        more = 0 + was[a, g] - was[c, g] - 1
                        in_bounds = device["load"] + d <= limit and devices[g]["load"] - d <= limit
                        if more < 0 and in_bounds and may_swap(board, i, g, j, h):
                            swap(board, was, i, g, j, h)
                            moved += more
                            changed = True
                            break
                    if place[j] != c:
                        break
                if place[j] != c:
                    break


@compiled
def kick(board: Board, was: Any, rng: Any) -> None:
    """Do a few random swaps and retargets, mostly of the most loaded device."""
    experts, devices, place = board.experts, board.devices, board.place
    left = 1 + random_below(rng, MOST_KICKS)
    for _ in range(TRIES):
        if left == 0:
            break
        g = random_below(rng, devices.shape[0])
        if random_unit(rng) < ON_TOP:
            g = most_loaded(devices)
        device = devices[g]
        h = device["near"] + random_below(rng, device["beyond"] - device["near"])
        other = devices[h]
        i = device["first"] + random_below(rng, device["end"] - device["first"])
        j = other["first"] + random_below(rng, other["end"] - other["first"])
        kind = random_unit(rng)
        if kind < SWAPS:
            if may_swap(board, i, g, j, h):
                swap(board, was, i, g, j, h)
                left -= 1
            continue
        a = place[i] if kind < OF_DEVICE else random_below(rng, experts.shape[0])
        at_home = board.anywhere or experts[a]["home"] == other["region"]
        if at_home and board.slot[a, h] < 0 and may_leave(experts[place[j]], other):
            retarget(board, was, j, h, a)
            left -= 1


@compiled
def exchange_groups(board: Board, ranked: Any, rng: Any) -> None:
    """Let two random groups of experts exchange home and slots: the busiest of one with that of the other."""
    experts, place, slot = board.experts, board.place, board.slot
    groups, size = ranked.shape
    a, b = random_below(rng, groups), random_below(rng, groups)
    for k in range(size):
        e, f = ranked[a, k], ranked[b, k]
        experts[e]["home"], experts[f]["home"] = experts[f]["home"], experts[e]["home"]
        for g in range(slot.shape[1]):
            i, j = slot[e, g], slot[f, g]
            if i >= 0:
                place[i] = f
            if j >= 0:
                place[j] = e
