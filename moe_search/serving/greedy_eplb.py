"""DeepSeek's expert parallelism load balancer, written in numpy from its published behaviour, all layers at once.

Groups go to nodes, and replicas to devices, by longest processing time with equally many on each; experts get replicas
where the load of a replica is largest. Two replicas of an expert may come to one device, as with the original.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Pack = Callable[[npt.NDArray[Any], int], tuple[Ints, Ints]]


def packed(weight: npt.NDArray[Any], packs: int) -> tuple[Ints, Ints]:
    """Return the pack of every item, and its rank there: by falling weight, to the lightest pack with room."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return one_each(rows, items)
    pack, rank = np.empty((rows, items), dtype=np.int64), np.empty((rows, items), dtype=np.int64)
    borne, held = np.zeros((rows, packs)), np.zeros((rows, packs), dtype=np.int64)
    every = np.arange(rows)
    for item in np.argsort(-weight, axis=1, kind="stable").T:
        chosen = borne.argmin(axis=1)
        pack[every, item], rank[every, item] = chosen, held[every, chosen]
        held[every, chosen] += 1
        borne[every, chosen] += weight[every, item]
        borne[every[held[every, chosen] == room], chosen[held[every, chosen] == room]] = np.inf
    return pack, rank


def one_each(rows: int, items: int) -> tuple[Ints, Ints]:
    """Return packs of one item each, in order."""
    return np.tile(np.arange(items), (rows, 1)), np.zeros((rows, items), dtype=np.int64)


def eplb(
    load: npt.NDArray[Any], num_slots: int, num_groups: int, num_nodes: int, num_devices: int, pack: Pack = packed
) -> Ints:
    """Return the expert in every slot, shape (layers, slots), of loads of shape (layers, experts)."""
    if num_groups % num_nodes or not num_groups:
        num_groups = num_nodes = 1
    layers, num_experts = load.shape
    size, per_node = num_experts // num_groups, num_experts // num_nodes
    node, rank = pack(load.reshape(layers, num_groups, size).sum(axis=2), num_nodes)
    # The experts in the order of the nodes, of the groups on them, and of the experts in these.
    place = (node * (num_groups // num_nodes) + rank)[:, :, None] * size + np.arange(size)
    in_order = np.argsort(place.reshape(layers, num_experts), axis=1)
    of_node = np.take_along_axis(load, in_order, axis=1).reshape(-1, per_node)
    expert, count = replicated(of_node, num_slots // num_nodes)
    share = np.take_along_axis(of_node / count, expert, axis=1)
    device, rank = pack(share, num_devices // num_nodes)
    slot = device * (num_slots // num_devices) + rank
    expert = np.take_along_axis(expert, np.argsort(slot, axis=1), axis=1).reshape(layers, num_nodes, -1)
    numbers = (expert + per_node * np.arange(num_nodes)[:, None]).reshape(layers, num_slots)
    return np.take_along_axis(in_order, numbers, axis=1)


def replicated(weight: npt.NDArray[Any], slots: int) -> tuple[Ints, Ints]:
    """Return the expert of every replica, and how many an expert has: one more where the load of each is largest."""
    rows, experts = weight.shape
    expert = np.tile(np.arange(slots), (rows, 1))
    count, every = np.ones((rows, experts), dtype=np.int64), np.arange(rows)
    for slot in range(experts, slots):
        busiest = (weight / count).argmax(axis=1)
        expert[:, slot] = busiest
        count[every, busiest] += 1
    return expert, count
