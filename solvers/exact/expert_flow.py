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
        ("cursor", np.int64),  # next row or expert of the phase
        ("excess", np.int64),  # units too many on all experts
        ("iterations", np.int64),
        ("moves", np.int64),  # units moved
        ("least_excess", np.int64),  # the least excess so far
        ("stalled", np.int64),  # iterations since it fell
    ]
)
# Shortest paths take over when so few units an expert are too many, or that did not fall for so many steps an expert.
FEW = 2
PATIENCE = 2


class ExpertFlow(NamedTuple):
    """Rows on experts, some of which may hold more than their capacity.

    A row is a slot, or a token, and has one unit or several, each under another expert.
    """

    cost: npt.NDArray[Any]  # (m, n)
    units: npt.NDArray[np.int64]  # (m,): of every row
    price: npt.NDArray[Any]  # (n,): dual variables of the experts
    held: npt.NDArray[np.bool_]  # (m, n): whether a unit of a row stands under an expert
    size: npt.NDArray[np.int64]  # (n,): number of units of every expert
    members: npt.NDArray[np.int32]  # (n, m): the rows under every expert, as many as its size
    gap: npt.NDArray[Any]  # (n, m): the least that these rows could pay, price and all, under a further expert, or less,
    # beyond their cost here
    margin: npt.NDArray[Any]  # scratch, (m,): what rows under an expert would pay elsewhere beyond what they pay
    place: npt.NDArray[np.int32]  # scratch, (m,): where those rows stand among the members
    goes: npt.NDArray[np.bool_]  # scratch, (m,): whether a member goes
    weight: npt.NDArray[
        Any
    ]  # (n, n): the arc from expert u to v, the least ``cost[t, v] - cost[t, u]`` of rows under u but not under v
    holder: npt.NDArray[np.int64]  # (n, n): the row of the arc, -1 if there is none
    distance: npt.NDArray[Any]  # scratch, (n,): length of the shortest path from an expert that holds too many
    previous: npt.NDArray[np.int64]  # scratch, (n,): the expert before on it; -1 at its start, -2 where none leads yet
    scanned: npt.NDArray[np.bool_]  # scratch, (n,): whether the distance is final
    touched: npt.NDArray[np.bool_]  # scratch, (n,): whether rows under the expert were moved
    far: Any  # more than any cost with price
    counts: npt.NDArray[Any]  # of `FLOW_COUNTS`, (1,)


def empty_flow(cost: npt.NDArray[Any], units: npt.NDArray[np.int64]) -> ExpertFlow:
    """Return the flow before any row is placed."""
    m, n = cost.shape
    dtype = cost.dtype
    return ExpertFlow(
        cost=cost,
        units=units,
        price=np.zeros(n, dtype=dtype),
        held=np.zeros((m, n), dtype=np.bool_),
        size=np.zeros(n, dtype=np.int64),
        members=np.empty((n, m), dtype=np.int32),
        gap=np.empty((n, m), dtype=dtype),
        margin=np.empty(m, dtype=dtype),
        place=np.empty(m, dtype=np.int32),
        goes=np.empty(m, dtype=np.bool_),
        weight=np.zeros((n, n), dtype=dtype),
        holder=np.full((n, n), -1, dtype=np.int64),
        distance=np.zeros(n, dtype=dtype),
        previous=np.zeros(n, dtype=np.int64),
        scanned=np.zeros(n, dtype=np.bool_),
        touched=np.zeros(n, dtype=np.bool_),
        far=dtype.type(np.iinfo(dtype).max if dtype.kind == "i" else np.finfo(dtype).max),
        counts=np.zeros(1, dtype=FLOW_COUNTS).view(np.recarray),
    )


# At all times the units of every placed row stand where its costs and the prices are least together, so the prices
# bound the optimum from below, and once no expert holds too many the assignment is optimal. A rise of the price of an
# expert keeps this, since the units that it drives away go where they are cheapest then. So does a path: the prices
# have first moved so far that its arcs cost nothing beside them.
#
# The kernels take arrays out of the flow once and hand few of them on: each array in a call costs atomic operations.


@compiled
def flow_slice(flow: ExpertFlow, budget: int, capacity: int) -> int:
    """Do about `budget` units of work, a look at a cost each; return how many it took."""
    counts = flow.counts[0]
    n = flow.price.shape[0]
    work = 0
    while work < budget and counts.phase != DONE:
        if counts.phase == CHOOSE:
            work += choose(flow, budget // n + 1, capacity) * n
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
            # The arcs from an expert to all others.
            work += connect(flow, counts.cursor) * n
            counts.cursor += 1
            if counts.cursor == n:
                counts.phase = PATHS
        else:
            counts.iterations += 1
            end = shortest_path(flow, capacity)
            work += n * n + send(flow, end, capacity)
    return work


@compiled
def choose(flow: ExpertFlow, limit: int, capacity: int) -> int:
    """Put further rows, `limit` at most, where they cost least; return how many units they have."""
    counts = flow.counts[0]
    cost, units, price, held, size, members = flow.cost, flow.units, flow.price, flow.held, flow.size, flow.members
    gap, place, far = flow.gap, flow.place, flow.far
    m, n = cost.shape
    start = counts.cursor
    end = min(start + limit, m)
    work = 0
    for row in range(start, end):
        for y in range(units[row]):
            least = far
            u = -1
            for v in range(n):
                paid = cost[row, v] + price[v]
                if paid <= least and not held[row, v] and (paid < least or size[v] < size[u]):
                    least = paid
                    u = v
            held[row, u] = True
            place[y] = u
        least = least_further(cost, price, held, far, row)
        for y in range(units[row]):
            u = place[y]
            members[u, size[u]] = row
            gap[u, size[u]] = least - cost[row, u]
            size[u] += 1
        work += units[row]
    counts.cursor = end
    if end == m:
        for u in range(n):
            counts.excess += max(size[u] - capacity, 0)
        counts.least_excess = counts.excess
        counts.phase = OFFLOAD
    return work


@partial(compiled, fastmath={"nnan", "nsz"})
def least_further(cost: Any, price: Any, held: Any, far: Any, row: int) -> Any:
    """Return the least cost with price of a row over the experts that do not hold it."""
    least = far
    for v in range(price.shape[0]):
        paid = cost[row, v] + price[v]
        least = min(least, far if held[row, v] else paid)
    return least


@compiled
def offload(flow: ExpertFlow, capacity: int) -> int:
    """Raise the price of the fullest expert until just its capacity stays; return how many rows were looked at."""
    counts = flow.counts[0]
    cost, price, held, size, members = flow.cost, flow.price, flow.held, flow.size, flow.members
    gap, margin, place, goes, far = flow.gap, flow.margin, flow.place, flow.goes, flow.far
    n = size.shape[0]
    u = 0
    for v in range(n):
        if size[v] > size[u]:
            u = v
    count = size[u]
    going = count - capacity
    work = count // n + 1
    # A heap of the least margins met, the largest on top: of the rows that go, and of the next, which stays.
    filled = 0
    for x in range(count):
        goes[x] = False
        # Prices only rise, so what was computed in the past bounds the margin from below.
        if filled > going and gap[u, x] - price[u] >= margin[0]:
            continue
        row = members[u, x]
        gap[u, x] = least_further(cost, price, held, far, row) - cost[row, u]
        work += 1
        if filled <= going:
            margin[filled] = gap[u, x] - price[u]
            place[filled] = x
            filled += 1
            if filled > going:
                for y in range(filled // 2 - 1, -1, -1):
                    sift(margin, place, y, filled)
        elif gap[u, x] - price[u] < margin[0]:
            margin[0] = gap[u, x] - price[u]
            place[0] = x
            sift(margin, place, 0, filled)
    # The price rises as far as the rows that stay allow, so that those that go do not soon come back.
    price[u] += margin[0]
    for y in range(1, filled):
        goes[place[y]] = True
    size[u] = 0
    for x in range(count):
        row = members[u, x]
        if not goes[x]:
            members[u, size[u]] = row
            gap[u, size[u]] = gap[u, x]
            size[u] += 1
            continue
        least = least_further(cost, price, held, far, row)
        to = -1
        for v in range(n):
            if cost[row, v] + price[v] == least and not held[row, v] and (to < 0 or size[v] < size[to]):
                to = v
        held[row, u] = False
        held[row, to] = True
        members[to, size[to]] = row
        gap[to, size[to]] = least_further(cost, price, held, far, row) - cost[row, to]
        size[to] += 1
        counts.excess -= size[to] <= capacity
    counts.moves += going
    return work + going


@compiled
def sift(margin: Any, place: Any, y: int, count: int) -> None:
    """Let entry y of the heap of margins, the largest on top, sink to its place."""
    key, x = margin[y], place[y]
    while 2 * y + 1 < count:
        child = 2 * y + 1
        if child + 1 < count and margin[child + 1] > margin[child]:
            child += 1
        if margin[child] <= key:
            break
        margin[y], place[y] = margin[child], place[child]
        y = child
    margin[y], place[y] = key, x


@compiled
def connect(flow: ExpertFlow, u: int) -> int:
    """Find the arcs from an expert to all others; return how many rows were looked at."""
    cost, held, members, weight, holder = flow.cost, flow.held, flow.members, flow.weight, flow.holder
    n = cost.shape[1]
    for v in range(n):
        holder[u, v] = -1
        weight[u, v] = flow.far
    for x in range(flow.size[u]):
        row = members[u, x]
        here = cost[row, u]
        for v in range(n):
            if cost[row, v] - here < weight[u, v] and not held[row, v]:
                weight[u, v] = cost[row, v] - here
                holder[u, v] = row
    return flow.size[u] + 1


@compiled
def shortest_path(flow: ExpertFlow, capacity: int) -> int:
    """Find the nearest expert with room, by Dijkstra's algorithm on reduced costs, and move the prices along."""
    distance, previous, scanned, price, size = flow.distance, flow.previous, flow.scanned, flow.price, flow.size
    weight, holder = flow.weight, flow.holder
    n = price.shape[0]
    for u in range(n):
        distance[u] = 0
        previous[u] = -1 if size[u] > capacity else -2
        scanned[u] = False
    while True:
        u = -1
        for v in range(n):
            if not scanned[v] and previous[v] != -2 and (u < 0 or distance[v] < distance[u]):
                u = v
        if size[u] < capacity:
            break
        scanned[u] = True
        for v in range(n):
            if not scanned[v] and holder[u, v] >= 0:
                # Rounding may leave an arc a little below zero.
                length = distance[u] + max(weight[u, v] + price[v] - price[u], distance[u] * 0)
                if previous[v] == -2 or length < distance[v]:
                    distance[v] = length
                    previous[v] = u
    for v in range(n):
        if scanned[v]:
            price[v] += distance[u] - distance[v]
    return u


@compiled
def send(flow: ExpertFlow, end: int, capacity: int) -> int:
    """Move units along the path to expert `end`, as many as cost the same; return the rows looked at."""
    cost, held, size, members = flow.cost, flow.held, flow.size, flow.members
    weight, holder, previous, touched = flow.weight, flow.holder, flow.previous, flow.touched
    n = size.shape[0]
    # What a move along the path's arc to an expert costs; rows that are moved may offer less by rounding.
    toll = flow.distance
    amount = capacity - size[end]
    work = 0
    v = end
    while previous[v] >= 0:
        u = previous[v]
        toll[v] = weight[u, v]
        # So many rows under expert u cost as little to move to v as the arc says.
        alike = 0
        for x in range(size[u]):
            row = members[u, x]
            alike += cost[row, v] - cost[row, u] == toll[v] and not held[row, v]
        amount = min(amount, alike)
        work += 2 * size[u]
        v = u
    amount = min(amount, size[v] - capacity)
    flow.counts[0].excess -= amount
    for u in range(n):
        touched[u] = False
    v = end
    while previous[v] >= 0:
        u = previous[v]
        left = amount
        x = 0
        while left > 0:
            row = members[u, x]
            if cost[row, v] - cost[row, u] != toll[v] or held[row, v]:
                x += 1
                continue
            left -= 1
            size[u] -= 1
            members[u, x] = members[u, size[u]]
            members[v, size[v]] = row
            size[v] += 1
            held[row, u] = False
            held[row, v] = True
            touched[u] = True
            # New arcs that the row offers: from v to experts that do not hold it, and to u from all that do.
            for w in range(n):
                if held[row, w]:
                    touched[w] = True
                    if cost[row, u] - cost[row, w] < weight[w, u]:
                        weight[w, u] = cost[row, u] - cost[row, w]
                        holder[w, u] = row
                elif cost[row, w] - cost[row, v] < weight[v, w]:
                    weight[v, w] = cost[row, w] - cost[row, v]
                    holder[v, w] = row
        flow.counts[0].moves += amount
        v = u
    for u in range(n):
        for v in range(n):
            row = holder[u, v]
            if touched[u] and row >= 0 and (held[row, v] or not held[row, u]):
                reconnect(flow, u, v)
                work += size[u]
    return work


@compiled
def reconnect(flow: ExpertFlow, u: int, v: int) -> None:
    """Find the arc from expert u to v anew."""
    cost, held, members = flow.cost, flow.held, flow.members
    least = flow.far
    holder = -1
    for x in range(flow.size[u]):
        row = members[u, x]
        if cost[row, v] - cost[row, u] < least and not held[row, v]:
            least = cost[row, v] - cost[row, u]
            holder = row
    flow.weight[u, v] = least
    flow.holder[u, v] = holder


@compiled
def place_rest(flow: ExpertFlow, capacity: int) -> None:
    """Move the units that are too many to the experts with room where they cost least, whatever the prices."""
    cost, held, size, members = flow.cost, flow.held, flow.size, flow.members
    for u in range(size.shape[0]):
        x = size[u] - 1
        while size[u] > capacity:
            row = members[u, x]
            best = -1
            for v in range(size.shape[0]):
                if size[v] < capacity and not held[row, v] and (best < 0 or cost[row, v] < cost[row, best]):
                    best = v
            # A row may be under all experts with room, but not every row under u can.
            if best >= 0:
                size[u] -= 1
                members[u, x] = members[u, size[u]]
                members[best, size[best]] = row
                size[best] += 1
                held[row, u] = False
                held[row, best] = True
            x -= 1
