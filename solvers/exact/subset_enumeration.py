"""Every subset of the experts of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moe_search.problems.expert_subset import ExpertSubset, SubsetArrays, subset_error
from moe_search.problems.kernels import compiled
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.heuristic.subset_search import STANDING, by_energy, look_at_subsets, take_subset

MOST_SUBSETS = 1_000_000


@dataclass(frozen=True)
class SubsetEnumeration(Solver):
    """Look at every subset of an `ExpertSubset`, a million at most, in lexicographic order.

    An iteration is one subset. The bound is proved only by the whole enumeration; stopped early, there is none.

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> outputs = np.array([[[1.0], [2.0], [4.0]]])  # of three experts for one row
    >>> gram = outputs @ outputs.transpose(0, 2, 1)
    >>> problem = ms.ExpertSubset([[3, 2, 1]], [[1, 1, 1]], gram, [[1, 2, 4]], [1], keep=1, k=1)
    >>> result = ms.solve(problem, ms.SubsetEnumeration())
    >>> result.solution.tolist(), result.status, result.iterations
    ([0], 'optimal', 3)
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type] = ExpertSubset

    def refuses(self, problem: Problem) -> str | None:
        """Refuse problems with more than a million subsets."""
        if not isinstance(problem, ExpertSubset) or problem.num_subsets <= MOST_SUBSETS:
            return super().refuses(problem)
        return f"it has {problem.num_subsets:.3g} subsets, enumeration takes {MOST_SUBSETS:,} at most"

    def search(self, run: Run) -> Result:
        """Enumerate; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, ExpertSubset)
        run.take_initial(None if run.initial is not None else by_energy(problem))
        size = problem.num_experts // problem.num_groups
        # Places within their group, of each group one after the other.
        places = np.tile(np.arange(problem.keep_of_group), problem.num_groups)
        kept = np.zeros(problem.num_experts, dtype=np.bool_)
        state = np.zeros(1, dtype=STANDING).view(np.recarray)
        standing = state[0]
        standing.value = run.value
        look_at_subsets(run, state, kept, enumerate_subsets, places, size)
        return run.result(moves=int(standing.moves), seed=None, proved=bool(standing.done) and not run.interrupted)


@compiled
def enumerate_subsets(
    kept: Any,
    arrays: SubsetArrays,
    taken: Any,
    is_open: Any,
    state: Any,
    incumbent: Any,
    log_values: Any,
    log_iterations: Any,
    budget: int,
    target: float,
    places: Any,
    size: int,
) -> None:
    """Look at no more than `budget` subsets, from where `places` stand, or until one reaches the target."""
    s = state[0]
    keep = places.shape[0] // arrays.num_groups
    for _ in range(budget):
        if s.done or s.value <= target or s.logged == log_values.shape[0]:
            return
        for e in range(kept.shape[0]):
            kept[e] = False
        for i in range(places.shape[0]):
            kept[i // keep * size + places[i]] = True
        value = subset_error(kept, arrays, taken, is_open)
        s.iterations += 1
        if value < s.value - 1e-12 * abs(s.value):
            take_subset(kept, s, value, incumbent, log_values, log_iterations)
            s.moves += 1
        s.done = not next_places(places, keep, size)


@compiled
def next_places(places: Any, keep: int, size: int) -> bool:
    """Advance to the next subset, groups as digits of an odometer; return False after the last."""
    for start in range(0, places.shape[0], keep):
        for i in range(keep - 1, -1, -1):
            if places[start + i] < size - keep + i:
                places[start + i] += 1
                for j in range(i + 1, keep):
                    places[start + j] = places[start + j - 1] + 1
                return True
        for i in range(keep):
            places[start + i] = i
    return False
