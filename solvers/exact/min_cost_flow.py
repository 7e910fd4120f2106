"""Linear assignment with capacity as a minimum-cost flow, through OR-Tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_search.problems.arrays import grid_scale
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.permutation_problem import seats_by_expert
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver


@dataclass(frozen=True)
class MinCostFlow(Solver):
    """Solve a `LinearAssignment` to optimality with the cost-scaling flow of OR-Tools.

    One unit flows from each slot to the experts, each of which takes c. Integer costs are exact. Floats are rounded to
    a grid as fine as 64-bit arithmetic allows; the bound takes the rounding in. It cannot be stopped on its way:
    `stop` is not asked. `seed` and `initial` have no influence.

    References
    ----------
    A. V. Goldberg, "An efficient implementation of a scaling minimum-cost flow algorithm", Journal of Algorithms 22
    (1997), 1-29.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.solve(ms.LinearAssignment([[4, 1], [2, 3]]), ms.MinCostFlow())
    >>> result.permutation.tolist(), result.value
    ([1, 0], 3)
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type] = LinearAssignment

    def refuses(self, problem: Problem) -> str | None:
        """Refuse other classes, and integers beyond the flow's arithmetic."""
        if not isinstance(problem, LinearAssignment):
            return super().refuses(problem)
        if problem.integral and int(np.ptp(problem.cost)) > _largest_unit_cost(problem):
            return f"its costs differ by more than {_largest_unit_cost(problem)}, which overflows the flow's arithmetic"
        return None

    def search(self, run: Run) -> Result:
        """Solve; see `Solver.search`."""
        from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

        problem = run.problem
        assert isinstance(problem, LinearAssignment)
        m, n = problem.cost.shape
        reduced = problem.cost - problem.cost.min(axis=1, keepdims=True)
        scale = 1.0 if problem.integral else grid_scale(float(reduced.max()), float(_largest_unit_cost(problem)))
        on_grid = reduced if problem.integral else np.rint(reduced * scale)
        flow = SimpleMinCostFlow()
        arcs = flow.add_arcs_with_capacity_and_unit_cost(
            np.repeat(np.arange(m), n),
            np.tile(m + np.arange(n), m),
            np.ones(m * n, dtype=np.int64),
            on_grid.astype(np.int64).ravel(),
        )
        flow.set_nodes_supplies(np.arange(m + n), np.repeat([1, -problem.capacity], [m, n]))
        status = flow.solve()
        if status != flow.OPTIMAL:
            raise RuntimeError(f"OR-Tools ended with status {status!r} on a feasible flow")
        experts = flow.flows(arcs).reshape(m, n).argmax(axis=1)
        permutation = seats_by_expert(experts)
        bound = problem.value(permutation)
        if not problem.integral:
            # What rounding has added at most to any assignment, less what it has added to the one found.
            added = on_grid - reduced * scale
            bound -= float((added.max(axis=1) - added[np.arange(m), experts]).sum()) / scale
        return run.answer(permutation, bound)


def _largest_unit_cost(problem: LinearAssignment) -> int:
    # Cost scaling multiplies the costs by the number of nodes, and adds a few of them along a path.
    return 2**60 // (4 * (sum(problem.cost.shape) + 2))
