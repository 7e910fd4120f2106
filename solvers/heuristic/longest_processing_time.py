"""The greedy construction of a placement."""

from __future__ import annotations

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
        return run.answer(problem.placement(constructed(problem)), float(problem.load_bounds.sum()))


def constructed(problem: ExpertPlacement) -> Experts:
    """Return the expert in every slot of the greedy construction, shape (layers, slots)."""
    layers, num_experts = problem.load.shape
    first = problem.cluster.first_slots
    homes = np.repeat(problem.homes, num_experts // problem.homes.shape[1], axis=1)
    experts = np.full((layers, first[-1]), -1)
    construct_layers(problem.load, homes, first, problem.regions, experts)
    return experts


@compiled
def construct_layers(load: Any, homes: Any, first: Any, regions: Any, experts: Any) -> None:
    """Construct every layer; where `experts` holds -1, it gets the expert in the slot."""
    devices = first.shape[0] - 1
    order, copies = np.empty(load.shape[1], np.int64), np.empty(load.shape[1], np.int64)
    share, held = np.empty(load.shape[1]), np.zeros((load.shape[1], devices), np.int64)
    borne, used = np.empty(devices), np.empty(devices, np.int64)
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
            for _ in range(first[end] - first[begin] - count):
                most = -1
                for i in range(count):
                    e = order[i]
                    if copies[e] < end - begin and (most < 0 or share[e] > share[most]):
                        most = e
                copies[most] += 1
                share[most] = w[most] / copies[most]
            sort_descending(share, order, count)
            for g in range(begin, end):
                borne[g], used[g] = 0.0, first[g]
            for i in range(count):
                e = order[i]
                for _ in range(copies[e]):
                    chosen = -1
                    for g in range(begin, end):
                        # A layer is told apart from the others by its number.
                        free = used[g] < first[g + 1] and held[e, g] <= layer
                        if free and (chosen < 0 or borne[g] < borne[chosen]):
                            chosen = g
                    if chosen >= 0:
                        place[used[chosen]] = e
                        used[chosen] += 1
                        borne[chosen] += share[e]
                        held[e, chosen] = layer + 1
            # All devices with room may have held the expert: then the busiest of others get the replicas.
            for g in range(begin, end):
                for i in range(count):
                    if used[g] < first[g + 1] and held[order[i], g] <= layer:
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
