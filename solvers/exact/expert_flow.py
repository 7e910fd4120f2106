"""Kernels of the transport problem: prices of experts, and shortest paths between experts."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import in_place

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
    gap: npt.NDArray[
        Any
    ]  # (n, m): the least that these rows could pay, price and all, under a further expert, or less,
    # beyond their cost here
    margin: npt.NDArray[Any]  # scratch, (m,): what rows under an expert would pay elsewhere beyond what they pay
    place: npt.NDArray[np.int32]  # scratch, (m,) or (n,): where those rows stand among the members; experts of a row
    goes: npt.NDArray[np.bool_]  # scratch, (m,): whether a member goes
    paid: npt.NDArray[Any]  # scratch, (n,): what a row would pay under every expert, price and all
    weight: npt.NDArray[
        Any
    ]  # (n, n): the arc from expert u to v, the least ``cost[t, v] - cost[t, u]`` of rows under u but not under v
    holder: npt.NDArray[np.int64]  # (n, n): the row of the arc, -1 if there is none
    distance: npt.NDArray[Any]  # scratch, (n,): length of the shortest path from an expert that holds too many
    previous: npt.NDArray[np.int64]  # scratch, (n,): the expert before on it; -1 at its start, -2 where none leads yet
    scanned: npt.NDArray[np.bool_]  # scratch, (n,): whether the distance is final
    carrier: npt.NDArray[np.int64]  # scratch, (n,): the row of the path's arc to an expert
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
        place=np.empty(max(m, n), dtype=np.int32),
        goes=np.zeros(m, dtype=np.bool_),
        paid=np.zeros(n, dtype=dtype),
        weight=np.zeros((n, n), dtype=dtype),
        holder=np.full((n, n), -1, dtype=np.int64),
        distance=np.zeros(n, dtype=dtype),
        previous=np.zeros(n, dtype=np.int64),
        scanned=np.zeros(n, dtype=np.bool_),
        carrier=np.zeros(n, dtype=np.int64),
        touched=np.zeros(n, dtype=np.bool_),
        far=dtype.type(np.iinfo(dtype).max if dtype.kind == "i" else np.finfo(dtype).max),
        counts=np.zeros(1, dtype=FLOW_COUNTS).view(np.recarray),
    )


# At all times the units of every placed row stand where its costs and the prices are least together, so the prices
# bound the optimum from below, and once no expert holds too many the assignment is optimal. A rise of the price of an
# expert keeps this, since the units that it drives away go where they are cheapest then. So does a path: the prices
# have first moved so far that its arcs cost nothing beside them.


@in_place
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
            u = counts.cursor
            for v in range(n):
                connect(flow, u, v)
            work += flow.size[u] * n + n
            counts.cursor += 1
            if counts.cursor == n:
                counts.phase = PATHS
        else:
            counts.iterations += 1
            end = shortest_path(flow, capacity)
            work += n * n + send(flow, end, capacity)
    return work


@in_place
def choose(flow: ExpertFlow, limit: int, capacity: int) -> int:
    """Put further rows, `limit` at most, where they cost least; return how many units they have."""
    counts = flow.counts[0]
    cost, units, price, held, size, members = flow.cost, flow.units, flow.price, flow.held, flow.size, flow.members
    gap, place, paid, far = flow.gap, flow.place, flow.paid, flow.far
    m, n = cost.shape
    start = counts.cursor
    end = min(start + limit, m)
    work = 0
    for row in range(start, end):
        for v in range(n):
            paid[v] = cost[row, v] + price[v]
        least = least_of(paid)
        for y in range(units[row]):
            u = emptiest(paid, size, least)
            place[y] = u
            held[row, u] = True
            paid[u] = far
            least = least_of(paid)
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


@partial(in_place, fastmath={"nnan", "nsz"})
def least_of(paid: Any) -> Any:
    """Return the least of what a row could pay."""
    least = paid[0]
    for v in range(1, paid.shape[0]):
        least = min(least, paid[v])
    return least


@in_place
def emptiest(paid: Any, size: Any, least: Any) -> int:
    """Return the expert for which a row would pay the least; of several, the one with the fewest units."""
    u = -1
    for v in range(paid.shape[0]):
        if paid[v] == least and (u < 0 or size[v] < size[u]):
            u = v
    return u


@partial(in_place, fastmath={"nnan", "nsz"})
def least_further(cost: Any, price: Any, held: Any, far: Any, row: int) -> Any:
    """Return the least cost with price of a row over the experts that do not hold it."""
    least = far
    for v in range(price.shape[0]):
        paid = cost[row, v] + price[v]
        least = min(least, far if held[row, v] else paid)
    return least


@in_place
def offload(flow: ExpertFlow, capacity: int) -> int:
    """Raise the price of the fullest expert until just its capacity stays; return how many rows were looked at."""
    counts = flow.counts[0]
    cost, price, held, size, members = flow.cost, flow.price, flow.held, flow.size, flow.members
    gap, margin, place, goes, far = flow.gap, flow.margin, flow.place, flow.goes, flow.far
    paid = flow.paid
    n = size.shape[0]
    u = 0
    for v in range(n):
        if size[v] > size[u]:
            u = v
    count = size[u]
    going = count - capacity
    work = count // n + 1
    # A heap of the least margins met, the largest on top: of the rows that go, and of the next, which stays.
    filled = going + 1
    for y in range(filled):
        margin[y] = far
    for x in range(count):
        # Prices only rise, so what was computed in the past bounds the margin from below.
        if gap[u, x] - price[u] >= margin[0]:
            continue
        row = members[u, x]
        gap[u, x] = least_further(cost, price, held, far, row) - cost[row, u]
        work += 1
        key = gap[u, x] - price[u]
        if key >= margin[0]:
            continue
        # It takes the place of the top, and sinks.
        y = 0
        child = 1
        while child < filled:
            if child + 1 < filled and margin[child + 1] > margin[child]:
                child += 1
            if margin[child] <= key:
                break
            margin[y], place[y] = margin[child], place[child]
            y = child
            child = 2 * y + 1
        margin[y], place[y] = key, x
    # The price rises as far as the rows that stay allow, so that those that go do not soon come back.
    price[u] += margin[0]
    for y in range(1, filled):
        goes[place[y]] = True
    last = count
    for y in range(1, filled):
        x = place[y]
        row = members[u, x]
        for v in range(n):
            paid[v] = far if held[row, v] else cost[row, v] + price[v]
        to = emptiest(paid, size, least_of(paid))
        paid[to] = far
        held[row, u] = False
        held[row, to] = True
        members[to, size[to]] = row
        # At the price of now, it could stay as well.
        gap[to, size[to]] = min(least_of(paid), cost[row, u] + price[u]) - cost[row, to]
        size[to] += 1
        counts.excess -= size[to] <= capacity
        if x < capacity:
            # One from the end that stays takes its place.
            last -= 1
            while goes[last]:
                last -= 1
            members[u, x] = members[u, last]
            gap[u, x] = gap[u, last]
    for y in range(1, filled):
        goes[place[y]] = False
    size[u] = capacity
    counts.moves += going
    return work + going


@in_place
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


@in_place
def send(flow: ExpertFlow, end: int, capacity: int) -> int:
    """Move units along the path to expert `end`, as many as cost the same; return the rows looked at."""
    cost, held, size, members, gap = flow.cost, flow.held, flow.size, flow.members, flow.gap
    weight, holder, previous, touched = flow.weight, flow.holder, flow.previous, flow.touched
    n = size.shape[0]
    # Of the path's arc to an expert, since rows that are moved offer others.
    toll, carrier = flow.distance, flow.carrier
    amount = capacity - size[end]
    work = 0
    v = end
    while previous[v] >= 0:
        u = previous[v]
        toll[v] = weight[u, v]
        carrier[v] = holder[u, v]
        # So many rows under expert u cost as little to move to v as the arc says.
        alike = 0
        x = next_alike(flow, u, v, 0)
        while x >= 0:
            alike += 1
            x = next_alike(flow, u, v, x + 1)
        amount = min(amount, alike)
        work += size[u]
        v = u
    amount = min(amount, size[v] - capacity)
    counts = flow.counts[0]
    counts.excess -= amount
    for u in range(n):
        touched[u] = False
    v = end
    while previous[v] >= 0:
        u = previous[v]
        counts.moves += amount
        x = 0
        for _ in range(amount):
            x = next_alike(flow, u, v, x)
            row = members[u, x]
            members[v, size[v]] = row
            # The row pays as much as before, and could pay no less elsewhere.
            gap[v, size[v]] = gap[u, x] + cost[row, u] - cost[row, v]
            size[v] += 1
            size[u] -= 1
            members[u, x] = members[u, size[u]]
            gap[u, x] = gap[u, size[u]]
            held[row, u] = False
            held[row, v] = True
            touched[u] = True
            # New arcs that the row offers: from v to experts that do not hold it, and to u from all that do.
            for w in range(n):
                if held[row, w]:
                    touched[w] = True
                    offer(flow, row, w, u)
                else:
                    offer(flow, row, v, w)
        v = u
    for u in range(n):
        for v in range(n):
            row = holder[u, v]
            if touched[u] and row >= 0 and (held[row, v] or not held[row, u]):
                connect(flow, u, v)
                work += size[u]
    return work


@in_place
def offer(flow: ExpertFlow, row: int, u: int, v: int) -> None:
    """Let a row under expert u, and not under v, take over the arc between them if it costs less."""
    change = flow.cost[row, v] - flow.cost[row, u]
    if change < flow.weight[u, v]:
        flow.weight[u, v] = change
        flow.holder[u, v] = row


@in_place
def next_alike(flow: ExpertFlow, u: int, v: int, start: int) -> int:
    """Return the next member of expert u that costs as little to move to v as the arc of the path says, or -1."""
    cost, held, members, gap = flow.cost, flow.held, flow.members, flow.gap
    toll, carrier = flow.distance[v], flow.carrier[v]
    # Most could move nowhere for that, as the bound tells before their costs are looked at.
    reach = toll + flow.price[v]
    for x in range(start, flow.size[u]):
        row = members[u, x]
        if row == carrier or (gap[u, x] <= reach and cost[row, v] - cost[row, u] == toll and not held[row, v]):
            return x
    return -1


@in_place
def connect(flow: ExpertFlow, u: int, v: int) -> None:
    """Find the arc from expert u to v."""
    cost, price, held, members, gap = flow.cost, flow.price, flow.held, flow.members, flow.gap
    least = flow.far
    reach = flow.far
    holder = -1
    for x in range(flow.size[u]):
        if gap[u, x] >= reach:
            continue
        row = members[u, x]
        if cost[row, v] - cost[row, u] < least and not held[row, v]:
            least = cost[row, v] - cost[row, u]
            reach = least + price[v]
            holder = row
    flow.weight[u, v] = least
    flow.holder[u, v] = holder


@in_place
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
