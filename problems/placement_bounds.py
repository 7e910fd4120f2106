"""What the most loaded device bears at least, and which groups of experts share a node."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled

Floats = npt.NDArray[np.float64]

# All ways to share groups out to nodes are looked at up to this number of groups.
MOST_GROUPS = 10
# A need of replicas is rounded up unless rounding errors made it exceed an integer. With the precision, a bound is off
# by less than a value may be above it to be called optimal.
ROUNDING = 2e-10
PRECISION = 2e-10


@compiled
def exceeds(limit: float, falling: Any, devices: int, least: int, slots: int) -> bool:
    """Return whether no placement keeps all devices within `limit`.

    The loads of the experts fall; the devices have `slots` slots together and `least` at least. With k replicas above
    t = (limit - the least - k lightest) / k, a device is above the limit: so at most (k - 1) * devices replicas are
    above t. The other experts need load / t slots, and those that need most spare most by having one replica above t.
    """
    count = falling.shape[0]
    most_copies = min(devices, slots - count + 1)
    light = 0.0
    for k in range(least, 0, -1):
        room = (limit - light) / k
        if room <= 0.0:
            return True
        # What one replica more brings at least; it counts from the next round on.
        light += falling[count - 1 - least + k] / most_copies
        above = (k - 1) * devices
        needed = min(above, count)
        for i in range(above, count):
            if falling[i] <= room:
                needed += count - i
                break
            copies = max(1, math.ceil(falling[i] / room - ROUNDING))
            needed += copies
            if copies > most_copies or needed > slots:
                return True
        if needed > slots:
            return True
    return False


@compiled
def fill_bounds(falling: Any, devices: int, least: int, slots: int, bounds: Any) -> None:
    """Write down what the most loaded device of every layer bears at least, given loads that fall."""
    for layer in range(bounds.shape[0]):
        loads = falling[layer]
        low = bounds[layer]
        high = low
        while high > 0.0 and exceeds(high, loads, devices, least, slots):
            low = high
            high *= 1.25
        while high - low > PRECISION * high:
            middle = 0.5 * (low + high)
            if exceeds(middle, loads, devices, least, slots):
                low = middle
            else:
                high = middle
        bounds[layer] = low


def device_bounds(load: Floats, slots: npt.NDArray[np.int64]) -> Floats:
    """Return what the most loaded of some devices bears at least, for every row of loads.

    Parameters
    ----------
    load : ndarray, shape (layers, experts)
        The loads of the experts that are on these devices, and nowhere else.
    slots : ndarray of int64
        The slots of every device.
    """
    bounds = load.sum(axis=1) / len(slots)
    # In order they are the same whatever sorts them.
    falling = np.ascontiguousarray(np.sort(load, axis=1)[:, ::-1])
    fill_bounds(falling, len(slots), int(slots.min()), int(slots.sum()), bounds)
    return bounds


def share_out_groups(
    load: Floats, slots: npt.NDArray[np.int64], num_nodes: int, num_groups: int, further: int = 0
) -> tuple[Any, Floats]:
    """Return the node of every group of every layer, equally many on each, and what the most loaded device bears.

    Of few groups on nodes that are alike, it is the way of the least bound, and that is a bound for all. Else groups
    go to nodes by falling load, and the bound is 0.

    Parameters
    ----------
    load : ndarray, shape (layers, experts)
        The loads of the experts.
    slots : ndarray of int64
        The slots of every device.
    num_nodes, num_groups : int
        Nodes, of equally many devices, and groups of experts.
    further : int
        How many copies there are that may be on any node; 0 if all copies of an expert are on one.
    """
    layers = len(load)
    grouped = load.reshape(layers, num_groups, -1)
    held = num_groups // num_nodes
    nodes = slots.reshape(num_nodes, -1)
    if num_groups > MOST_GROUPS or (nodes != nodes[0]).any():
        return _share_out_by_load(grouped.sum(axis=2), num_nodes, held), np.zeros(layers)
    sets = list(combinations(range(num_groups), held))
    members = grouped[:, np.array(sets)].reshape(layers * len(sets), -1)
    if further:
        of_set = (relieved(members, further, len(slots)) / nodes.shape[1]).reshape(layers, len(sets))
    else:
        of_set = device_bounds(members, nodes[0]).reshape(layers, len(sets))
    # least[mask]: of the groups in the mask on as many nodes as they fill; the first of them is in the set chosen.
    least = {0: np.zeros(layers)}
    chosen: dict[int, npt.NDArray[np.int64]] = {}
    masks = [sum(1 << group for group in each) for each in sets]
    for mask in range(1, 1 << num_groups):
        if mask.bit_count() % held:
            continue
        fitting = [k for k, each in enumerate(masks) if each & mask == each and each & mask & -mask]
        worst = np.stack([np.maximum(of_set[:, k], least[mask ^ masks[k]]) for k in fitting])
        chosen[mask] = np.array(fitting)[worst.argmin(axis=0)]
        least[mask] = worst.min(axis=0)
    homes = np.zeros((layers, num_groups), dtype=np.int64)
    rest = np.full(layers, (1 << num_groups) - 1)
    for node in range(num_nodes):
        for layer in range(layers):
            choice = chosen[int(rest[layer])][layer]
            homes[layer, list(sets[choice])] = node
            rest[layer] ^= masks[choice]
    return homes, least[(1 << num_groups) - 1]


def relieved(load: Floats, further: int, most_copies: int) -> Floats:
    """Return the sum of loads of every row, each divided by its copies, if all further copies go where they help most.

    That is the least which first copies bear.
    """
    copies = np.ones_like(load)
    rows = np.arange(len(load))
    for _ in range(further):
        gain = np.where(copies < most_copies, load / (copies * (copies + 1)), -1.0)
        most = gain.argmax(axis=1)
        copies[rows, most] += gain[rows, most] >= 0
    return (load / copies).sum(axis=1)


def _share_out_by_load(load: Floats, num_nodes: int, held: int) -> npt.NDArray[np.int64]:
    homes = np.zeros(load.shape, dtype=np.int64)
    for layer, loads in enumerate(load):
        borne, room = np.zeros(num_nodes), np.full(num_nodes, held)
        for group in np.argsort(-loads, kind="stable"):
            node = int(np.where(room > 0, borne, np.inf).argmin())
            homes[layer, group] = node
            borne[node] += loads[group]
            room[node] -= 1
    return homes
