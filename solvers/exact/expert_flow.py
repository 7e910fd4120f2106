"""Kernels of the transport problem: prices of experts, and shortest paths between experts."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled

CHOOSE, OFFLOAD, CONNECT, PATHS, DONE = range(5)
FLOW_COUNTS = np.dtype(
    [
        ("phase", np.int64),
        ("cursor", np.int64),  # next slot or expert of the phase
        ("excess", np.int64),  # slots too many on all experts
        ("iterations", np.int64),
        ("moves", np.int64),  # slots moved
        ("least_excess", np.int64),  # the least excess so far
        ("stalled", np.int64),  # iterations since it fell
    ]
)
# Shortest paths take over when so few slots an expert are too many, or that did not fall for so many steps an expert.
FEW = 2
PATIENCE = 2


class ExpertFlow(NamedTuple):
    """Slots on experts, some of which may hold more than their capacity."""

    cost: npt.NDArray[Any]  # (m, n)
    price: npt.NDArray[Any]  # (n,): dual variables of the experts
    expert: npt.NDArray[np.int64]  # (m,): where every slot stands
    size: npt.NDArray[np.int64]  # (n,): number of slots of every expert
    head: npt.NDArray[np.int64]  # (n,): the first slot in the doubly linked list of every expert; -1 ends lists
    after: npt.NDArray[np.int64]  # (m,): the next slot of the list
    before: npt.NDArray[np.int64]  # (m,): the slot before in the list
    elsewhere: npt.NDArray[Any]  # (m,): the least that a slot could pay, price and all, under another expert, or less
    margin: npt.NDArray[Any]  # scratch, (m,): what the slots of an expert would pay elsewhere beyond what they pay
    members: npt.NDArray[np.int64]  # scratch, (m,): those slots
    exact: npt.NDArray[np.bool_]  # scratch, (m,): whether the margin is more than a lower bound
    weight: npt.NDArray[
        Any
    ]  # (n, n): the arc from expert u to v, the least ``cost[s, v] - cost[s, u]`` of the slots of u
    slot: npt.NDArray[np.int64]  # (n, n): the slot of the arc, -1 if there is none
    distance: npt.NDArray[Any]  # scratch, (n,): length of the shortest path from an expert that holds too many
    previous: npt.NDArray[np.int64]  # scratch, (n,): the expert before on it; -1 at its start, -2 where none leads yet
    scanned: npt.NDArray[np.bool_]  # scratch, (n,): whether the distance is final
    counts: npt.NDArray[Any]  # of `FLOW_COUNTS`, (1,)


def empty_flow(cost: npt.NDArray[Any]) -> ExpertFlow:
    """Return the flow before any slot is placed."""
    m, n = cost.shape
    return ExpertFlow(
        cost=cost,
        price=np.zeros(n, dtype=cost.dtype),
        expert=np.full(m, -1, dtype=np.int64),
        size=np.zeros(n, dtype=np.int64),
        head=np.full(n, -1, dtype=np.int64),
        after=np.full(m, -1, dtype=np.int64),
        before=np.full(m, -1, dtype=np.int64),
        elsewhere=np.zeros(m, dtype=cost.dtype),
        margin=np.zeros(m, dtype=cost.dtype),
        members=np.zeros(m, dtype=np.int64),
        exact=np.zeros(m, dtype=np.bool_),
        weight=np.zeros((n, n), dtype=cost.dtype),
        slot=np.full((n, n), -1, dtype=np.int64),
        distance=np.zeros(n, dtype=cost.dtype),
        previous=np.zeros(n, dtype=np.int64),
        scanned=np.zeros(n, dtype=np.bool_),
        counts=np.zeros(1, dtype=FLOW_COUNTS).view(np.recarray),
    )


# At all times every placed slot stands where its cost and the price are least together, so the prices bound the optimum
# from below, and once no expert holds too many the assignment is optimal. A rise of the price of an expert keeps this,
# since the slots that it drives away go where they are cheapest then. So does a path: the prices have first moved so
# far that its arcs cost nothing beside them.


@compiled
def flow_slice(flow: ExpertFlow, budget: int, capacity: int) -> int:
    """Do about `budget` units of work, a look at a cost each; return how many it took."""
    counts = flow.counts[0]
    m, n = flow.cost.shape
    work = 0
    while work < budget and counts.phase != DONE:
        if counts.phase == CHOOSE:
            slot = counts.cursor
            least = least_elsewhere(flow.cost, flow.price, slot, None)
            enter(flow, slot, cheapest(flow.cost, flow.price, flow.size, slot, least, -1))
            counts.cursor += 1
            work += n
            if counts.cursor == m:
                for u in range(n):
                    counts.excess += max(flow.size[u] - capacity, 0)
                counts.least_excess = counts.excess
                counts.phase = OFFLOAD
        elif counts.excess == 0:
            counts.phase = DONE
        elif counts.phase == OFFLOAD:
            counts.iterations += 1
            work += offload(flow, capacity) * n
            counts.stalled += 1
            if counts.excess < counts.least_excess:
                counts.least_excess = counts.excess
                counts.stalled = 0
            if counts.excess <= FEW * n or counts.stalled > PATIENCE * n:
                counts.phase = CONNECT
                counts.cursor = 0
        elif counts.phase == CONNECT:
            # The arcs from expert u to all others.
            u = counts.cursor
            for v in range(n):
                flow.slot[u, v] = -1
            slot = flow.head[u]
            while slot >= 0:
                offer(flow, u, slot)
                slot = flow.after[slot]
            counts.cursor += 1
            work += flow.size[u] * n + n
            if counts.cursor == n:
                counts.phase = PATHS
        else:
            counts.iterations += 1
            end = shortest_path(flow, capacity)
            work += n * n + send(flow, end, capacity)
    return work


@partial(compiled, fastmath={"nnan", "nsz"})
def least_elsewhere(cost: Any, price: Any, slot: int, without: int | None) -> Any:
    """Return the least cost with price of a slot over the experts, one of them left out if one is named."""
    # The matrix and not its row, whose view would cost two atomic operations. Numba compiles a way without and with
    # `None`, each with as few loops as it needs.
    start = 1 if without == 0 else 0
    least = cost[slot, start] + price[start]
    if without is not None:
        for v in range(start, without):
            least = min(least, cost[slot, v] + price[v])
        start = without
    for v in range(start + 1, price.shape[0]):
        least = min(least, cost[slot, v] + price[v])
    return least


@compiled
def cheapest(cost: Any, price: Any, size: Any, slot: int, least: Any, without: int) -> int:
    """Return the expert of the least cost with price for a slot but one (-1: none); the one with the fewest slots."""
    best = -1
    for v in range(price.shape[0]):
        if cost[slot, v] + price[v] == least and v != without and (best < 0 or size[v] < size[best]):
            best = v
    return best


@compiled
def enter(flow: ExpertFlow, slot: int, u: int) -> None:
    """Put a slot in the list of expert u."""
    head = flow.head[u]
    flow.after[slot] = head
    flow.before[slot] = -1
    if head >= 0:
        flow.before[head] = slot
    flow.head[u] = slot
    flow.expert[slot] = u
    flow.size[u] += 1
    # It is cheapest here.
    flow.elsewhere[slot] = flow.cost[slot, u] + flow.price[u]


@compiled
def leave(flow: ExpertFlow, slot: int) -> None:
    """Take a slot out of the list of its expert."""
    u, after, before = flow.expert[slot], flow.after[slot], flow.before[slot]
    if before >= 0:
        flow.after[before] = after
    else:
        flow.head[u] = after
    if after >= 0:
        flow.before[after] = before
    flow.size[u] -= 1


@compiled
def offload(flow: ExpertFlow, capacity: int) -> int:
    """Raise the price of the fullest expert until just its capacity stays; return how many slots were looked at."""
    size, price, margin, members, exact = flow.size, flow.price, flow.margin, flow.members, flow.exact
    u = 0
    for v in range(size.shape[0]):
        if size[v] > size[u]:
            u = v
    count = size[u]
    slot = flow.head[u]
    for x in range(count):
        members[x] = slot
        here = flow.cost[slot, u] + price[u]
        # A slot that has just come knows of no other expert yet.
        exact[x] = flow.elsewhere[slot] <= here
        if exact[x]:
            flow.elsewhere[slot] = least_elsewhere(flow.cost, price, slot, u)
        margin[x] = flow.elsewhere[slot] - here
        slot = flow.after[slot]
    for x in range(count // 2 - 1, -1, -1):
        sift(flow, x, count)
    going = count - capacity
    work = count // price.shape[0] + 1
    last = count
    while True:
        if not exact[0]:
            # Prices only rise, so what was computed in the past bounds the margin from below.
            slot = members[0]
            flow.elsewhere[slot] = least_elsewhere(flow.cost, price, slot, u)
            margin[0] = flow.elsewhere[slot] - (flow.cost[slot, u] + price[u])
            exact[0] = True
            work += 1
        elif last > capacity:
            # It goes: to the end of the heap's arrays.
            last -= 1
            margin[0], margin[last] = margin[last], margin[0]
            members[0], members[last] = members[last], members[0]
            exact[0] = exact[last]
        else:
            break
        sift(flow, 0, last)
    # The price rises as far as the slots that stay allow, so that those that go do not soon come back.
    price[u] += margin[0]
    for x in range(last, count):
        slot = members[x]
        v = cheapest(flow.cost, price, size, slot, least_elsewhere(flow.cost, price, slot, u), u)
        leave(flow, slot)
        enter(flow, slot, v)
        flow.counts[0].excess -= size[v] <= capacity
    flow.counts[0].moves += going
    return work + going


@compiled
def sift(flow: ExpertFlow, x: int, count: int) -> None:
    """Let entry x of the heap of margins sink to its place."""
    margin, members, exact = flow.margin, flow.members, flow.exact
    key, slot, known = margin[x], members[x], exact[x]
    while 2 * x + 1 < count:
        child = 2 * x + 1
        if child + 1 < count and margin[child + 1] < margin[child]:
            child += 1
        if margin[child] >= key:
            break
        margin[x], members[x], exact[x] = margin[child], members[child], exact[child]
        x = child
    margin[x], members[x], exact[x] = key, slot, known


@compiled
def offer(flow: ExpertFlow, u: int, slot: int) -> None:
    """Let a slot of expert u take over the arcs for which it costs less."""
    cost, weight, holder = flow.cost[slot], flow.weight[u], flow.slot[u]
    here = cost[u]
    for v in range(cost.shape[0]):
        if holder[v] < 0 or cost[v] - here < weight[v]:
            weight[v] = cost[v] - here
            holder[v] = slot


@compiled
def reconnect(flow: ExpertFlow, u: int, v: int) -> None:
    """Find the arc from expert u to v anew."""
    cost = flow.cost
    flow.slot[u, v] = -1
    slot = flow.head[u]
    while slot >= 0:
        change = cost[slot, v] - cost[slot, u]
        if flow.slot[u, v] < 0 or change < flow.weight[u, v]:
            flow.weight[u, v] = change
            flow.slot[u, v] = slot
        slot = flow.after[slot]


@compiled
def shortest_path(flow: ExpertFlow, capacity: int) -> int:
    """Find the nearest expert with room, by Dijkstra's algorithm on reduced costs, and move the prices along."""
    distance, previous, scanned, price = flow.distance, flow.previous, flow.scanned, flow.price
    n = price.shape[0]
    for u in range(n):
        distance[u] = 0
        previous[u] = -1 if flow.size[u] > capacity else -2
        scanned[u] = False
    while True:
        u = -1
        for v in range(n):
            if not scanned[v] and previous[v] != -2 and (u < 0 or distance[v] < distance[u]):
                u = v
        if flow.size[u] < capacity:
            break
        scanned[u] = True
        for v in range(n):
            if not scanned[v] and flow.slot[u, v] >= 0:
                # Rounding may leave an arc a little below zero.
                length = distance[u] + max(flow.weight[u, v] + price[v] - price[u], distance[u] * 0)
                if previous[v] == -2 or length < distance[v]:
                    distance[v] = length
                    previous[v] = u
    for v in range(n):
        if scanned[v]:
            price[v] += distance[u] - distance[v]
    return u


@compiled
def send(flow: ExpertFlow, end: int, capacity: int) -> int:
    """Move slots along the path to expert `end`, as many as cost the same; return the slots looked at."""
    amount = capacity - flow.size[end]
    work = 0
    v = end
    while flow.previous[v] >= 0:
        u = flow.previous[v]
        # So many slots of expert u cost as little to move to v as the arc says.
        alike = 0
        slot = flow.head[u]
        while slot >= 0:
            alike += flow.cost[slot, v] - flow.cost[slot, u] == flow.weight[u, v]
            slot = flow.after[slot]
        amount = min(amount, alike)
        work += 2 * flow.size[u]
        v = u
    amount = min(amount, flow.size[v] - capacity)
    flow.counts[0].excess -= amount
    v = end
    while flow.previous[v] >= 0:
        u = flow.previous[v]
        move(flow, u, v, amount)
        for x in range(flow.price.shape[0]):
            if flow.slot[u, x] >= 0 and flow.expert[flow.slot[u, x]] != u:
                reconnect(flow, u, x)
                work += flow.size[u]
        v = u
    return work


@compiled
def move(flow: ExpertFlow, u: int, v: int, amount: int) -> None:
    """Move so many of the slots that cost as little to move from expert u to v as the arc says."""
    cost, least = flow.cost, flow.weight[u, v]
    slot = flow.head[u]
    left = amount
    while left > 0:
        after = flow.after[slot]
        if cost[slot, v] - cost[slot, u] == least:
            leave(flow, slot)
            enter(flow, slot, v)
            offer(flow, v, slot)
            left -= 1
        slot = after
    flow.counts[0].moves += amount


@compiled
def place_rest(flow: ExpertFlow, capacity: int) -> None:
    """Move the slots that are too many to the experts with room where they cost least, whatever the prices."""
    cost, size = flow.cost, flow.size
    for u in range(size.shape[0]):
        while size[u] > capacity:
            slot = flow.head[u]
            best = -1
            for v in range(size.shape[0]):
                if size[v] < capacity and (best < 0 or cost[slot, v] < cost[slot, best]):
                    best = v
            leave(flow, slot)
            enter(flow, slot, best)
