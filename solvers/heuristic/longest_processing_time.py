"""The greedy construction of a placement."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_search.problems.kernels import compiled
from moe_search.problems.placement import ExpertPlacement, Experts
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver


@dataclass(frozen=True)
class LongestProcessingTime(Solver):
    """Construct a placement: replicas for the largest load per replica, then the heaviest to the least loaded device.

    Groups of experts go to the nodes first: up to ten groups in the way that the bound says is the best, more of them
    by falling load.

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
    construct_layers(problem.load, homes, first, problem.regions, experts)
    return experts


@compiled
def construct_layers(load: Any, homes: Any, first: Any, regions: Any, experts: Any) -> None:
    """Construct every layer, and write down the expert in every slot."""
    devices = first.shape[0] - 1
    order, copies = np.empty(load.shape[1], np.int64), np.empty(load.shape[1], np.int64)
    share, borne = np.empty(load.shape[1]), np.empty(devices)
    used, line = np.empty(devices, np.int64), np.empty(devices, np.int64)
    for layer in range(load.shape[0]):
        w, place, home = load[layer], experts[layer], homes[layer]
        for part in range(regions.shape[0] - 1):
            begin, end = regions[part], regions[part + 1]
            count = 0
            for e in range(w.shape[0]):
                if home[e] == part:
                    order[count] = e
                    count += 1
                    copies[e] = 1
                    share[e] = w[e]
            sort_descending(share, order, count)
            for _ in range(first[end] - first[begin] - count):
                most = -1
                for i in range(count):
                    e = order[i]
                    if copies[e] < end - begin and (most < 0 or share[e] > share[most]):
                        most = e
                    # Those behind the first that has one replica weigh less than it.
                    if copies[e] == 1:
                        break
                copies[most] += 1
                share[most] = w[most] / copies[most]
            sort_descending(share, order, count)
            free = end - begin
            for g in range(begin, end):
                line[g - begin], borne[g], used[g] = g, 0.0, first[g]
            for i in range(count):
                e = order[i]
                # The devices with room stand in line by load. The first take the replicas, and go back in line.
                for k in range(min(copies[e], free) - 1, -1, -1):
                    g, behind = line[k], k
                    place[used[g]] = e
                    used[g] += 1
                    borne[g] = borne[g] + share[e] if used[g] < first[g + 1] else math.inf
                    while behind + 1 < free and borne[line[behind + 1]] < borne[g]:
                        line[behind] = line[behind + 1]
                        behind += 1
                    line[behind] = g
                while free > 0 and borne[line[free - 1]] == math.inf:
                    free -= 1
            # All devices with room may have held the expert: then the busiest of others get the replicas.
            for k in range(free):
                g = line[k]
                for i in range(count):
                    is_here = False
                    for j in range(first[g], used[g]):
                        is_here = is_here or place[j] == order[i]
                    if used[g] < first[g + 1] and not is_here:
                        place[used[g]] = order[i]
                        used[g] += 1


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
