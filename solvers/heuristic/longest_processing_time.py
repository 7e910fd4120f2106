"""The greedy construction of a placement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled
from moe_search.problems.placement import ExpertPlacement, Experts
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver


@dataclass(frozen=True)
class LongestProcessingTime(Solver):
    """Construct a placement: replicas for the largest load per replica, then the heaviest to the least loaded device.

    Groups of experts go to the nodes first: up to ten groups in the way that the bound says is the best, more of them
    by falling load. Where only their first copies stay there, these are placed before all others.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.ExpertPlacement([9, 1, 7, 3], ms.Cluster(num_devices=2, slots_per_device=2))
    >>> ms.solve(problem, ms.LongestProcessingTime()).solution.physical_to_logical.tolist()
    [[0, 1, 2, 3]]

    References
    ----------
    R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal on Applied Mathematics 17 (1969), 416-429.
    """

    takes = ExpertPlacement

    def search(self, run: Run) -> Result:
        """Construct; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, ExpertPlacement)
        if run.initial is not None:
            run.take_initial()
        return run.answer(problem.placed(constructed(problem)), float(problem.load_bounds.sum()))


def constructed(problem: ExpertPlacement) -> Experts:
    """Return the expert in every slot of the greedy construction, shape (layers, slots)."""
    layers, num_experts = problem.load.shape
    first = problem.cluster.first_slots
    homes = np.repeat(problem.homes, num_experts // problem.homes.shape[1], axis=1)
    experts = np.empty((layers, first[-1]), dtype=np.int64)
    construct_layers(problem.load, falling(problem.load), homes, first, problem.regions, problem.anywhere, experts)
    return experts


def falling(load: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the experts of every layer by falling load, those of equal loads by their numbers.

    As integers, the bits of loads have their order; the last ones make room for the number of the expert. No two are
    then equal, whatever sorts them, and it is done several times faster than by a stable sort.
    """
    numbers = np.arange(load.shape[1])
    last = (1 << (load.shape[1] - 1).bit_length()) - 1
    keys = (load.view(np.int64) | last) ^ numbers
    keys.sort(axis=1)
    return np.ascontiguousarray(last - (keys[:, ::-1] & last))


@compiled
def construct_layers(
    load: Any, falling: Any, homes: Any, first: Any, regions: Any, anywhere: bool, experts: Any
) -> None:
    """Construct every layer, and write down the expert in every slot.

    All copies of an expert are in the region of its home; or the first is, and further ones are anywhere.
    """
    devices, num_experts = first.shape[0] - 1, load.shape[1]
    own, some = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    copies, at = np.empty(num_experts, np.int64), np.empty(num_experts, np.int64)
    used, line = np.empty(devices, np.int64), np.empty(first[devices] + num_experts + devices, np.int64)
    share, borne = np.empty(num_experts), np.empty(devices)
    for layer in range(load.shape[0]):
        w, place = load[layer], experts[layer]
        for e in range(num_experts):
            copies[e], at[e], share[e] = 1, -1, w[e]
        for g in range(devices):
            used[g], borne[g] = first[g], 0.0
        if anywhere:
            for i in range(num_experts):
                own[i] = falling[layer, i]
            replicate(w, own, num_experts, first[devices] - num_experts, devices, copies, share)
        for part in range(regions.shape[0] - 1):
            begin, end = regions[part], regions[part + 1]
            count = 0
            for i in range(num_experts):
                e = falling[layer, i]
                if homes[layer, e] == part:
                    own[count] = e
                    count += 1
            if not anywhere:
                replicate(w, own, count, first[end] - first[begin] - count, end - begin, copies, share)
            sort_again(share, copies, own, count, some)
            deal(place, own, count, copies, share, at, anywhere, first, used, borne, line, begin, end)
        if anywhere:
            for i in range(num_experts):
                own[i] = falling[layer, i]
                copies[own[i]] -= 1
            sort_descending(share, own, num_experts)
            deal(place, own, num_experts, copies, share, at, False, first, used, borne, line, 0, devices)


@compiled
def replicate(w: Any, order: Any, count: int, further: int, most_copies: int, copies: Any, share: Any) -> None:
    """Give so many further copies to the first experts of an order of falling load, where the share is largest."""
    for _ in range(further):
        most = -1
        for i in range(count):
            e = order[i]
            if copies[e] < most_copies and (most < 0 or share[e] > share[most]):
                most = e
            # Those behind the first that has one copy weigh less than it.
            if copies[e] == 1:
                break
        copies[most] += 1
        share[most] = w[most] / copies[most]


@compiled
def sort_again(share: Any, copies: Any, order: Any, count: int, some: Any) -> None:
    """Sort by falling share what is sorted but for the experts of several copies."""
    several = kept = 0
    for i in range(count):
        e = order[i]
        if copies[e] > 1:
            some[several] = e
            several += 1
        else:
            order[kept] = e
            kept += 1
    sort_descending(share, some, several)
    for i in range(count - 1, -1, -1):
        if several == 0:
            break
        if kept > 0 and share[order[kept - 1]] < share[some[several - 1]]:
            kept -= 1
            order[i] = order[kept]
        else:
            several -= 1
            order[i] = some[several]


@compiled
def deal(
    place: Any,
    order: Any,
    count: int,
    copies: Any,
    share: Any,
    at: Any,
    one_each: bool,
    first: Any,
    used: Any,
    borne: Any,
    line: Any,
    begin: int,
    end: int,
) -> None:
    """Put copies of experts, in this order, on the least loaded of some devices: all copies, or one of each.

    A copy does not go to the device `at` which the expert is; that of one copy each is written down there.
    """
    # The devices with room stand in line by load. The first take the copies, and go back in line, from its end on.
    head = tail = 0
    for g in range(begin, end):
        tail = stand_in_line(line, head, tail, g, used, borne, first)
    for i in range(count):
        e = order[i]
        left = 1 if one_each else copies[e]
        for k in range(head, min(head + left, tail)):
            if line[k] == at[e]:
                left += 1
                break
        old = head
        head = min(head + left, tail)
        for k in range(old, head):
            g = line[k]
            if g != at[e]:
                place[used[g]] = e
                used[g] += 1
                borne[g] += share[e]
                if one_each:
                    at[e] = g
            tail = stand_in_line(line, head, tail, g, used, borne, first)
    # All devices with room may have held the expert: then the busiest of others get the copies.
    for k in range(tail if one_each else head, tail):
        g = line[k]
        for i in range(count):
            is_here = False
            for j in range(first[g], used[g]):
                is_here = is_here or place[j] == order[i]
            if used[g] < first[g + 1] and not is_here:
                place[used[g]] = order[i]
                used[g] += 1


@compiled
def stand_in_line(line: Any, head: int, tail: int, g: int, used: Any, borne: Any, first: Any) -> int:
    """Let a device that has room stand in line, behind those that bear no more; return the new end of the line."""
    if used[g] == first[g + 1]:
        return tail
    k = tail
    while k > head and borne[line[k - 1]] > borne[g]:
        line[k] = line[k - 1]
        k -= 1
    line[k] = g
    return tail + 1


@compiled
def sort_descending(keys: Any, order: Any, count: int) -> None:
    """Sort the first `count` entries of `order` by falling keys; Shell (1959), gaps of Ciura (2001).

    Numba's own sort takes seconds to compile.
    """
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(gap, count):
            item = order[i]
            key = keys[item]
            j = i
            while j >= gap and keys[order[j - gap]] < key:
                order[j] = order[j - gap]
                j -= gap
            order[j] = item
