"""Linear assignment with capacity, and balanced routing, as a minimum-cost flow, through OR-Tools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_search.problems.arrays import grid_scale
from moe_search.problems.balanced_routing import BalancedRouting
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.permutation_problem import seats_by_expert
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver


@dataclass(frozen=True)
class MinCostFlow(Solver):
    """Solve a `LinearAssignment` or a `BalancedRouting` to optimality with the cost-scaling flow of OR-Tools.

    One unit flows from each slot, k from each row, to the experts, each of which takes its capacity. Integer costs are
    exact. Floats are rounded to a grid as fine as 64-bit arithmetic allows; the bound takes the rounding in. It cannot
    be stopped on its way: `stop` is not asked. `seed` and `initial` have no influence.

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
    takes: ClassVar[type | tuple[type, ...]] = (LinearAssignment, BalancedRouting)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse other classes, and integers beyond the flow's arithmetic."""
        if not isinstance(problem, (LinearAssignment, BalancedRouting)):
            return super().refuses(problem)
        if problem.integral and int(np.ptp(problem.cost)) > _largest_unit_cost(problem):
            return f"its costs differ by more than {_largest_unit_cost(problem)}, which overflows the flow's arithmetic"
        return None

    def search(self, run: Run) -> Result:
        """Solve; see `Solver.search`."""
        with compile_time():
            from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

        problem = run.problem
        assert isinstance(problem, (LinearAssignment, BalancedRouting))
        m, n = problem.cost.shape
        k = problem.k if isinstance(problem, BalancedRouting) else 1
        reduced = problem.cost - problem.cost.min(axis=1, keepdims=True)
        exponent = 0
        if not problem.integral:
            # Costs near the least of floats are raised to where a grid can be as fine as anywhere, which is exact.
            exponent = math.frexp(reduced.max())[1]
            reduced = np.ldexp(reduced, -exponent)
        scale = 1.0 if problem.integral else grid_scale(float(reduced.max()), float(_largest_unit_cost(problem)))
        on_grid = reduced if problem.integral else np.rint(reduced * scale)
        flow = SimpleMinCostFlow()
        arcs = flow.add_arcs_with_capacity_and_unit_cost(
            np.repeat(np.arange(m), n),
            np.tile(m + np.arange(n), m),
            np.ones(m * n, dtype=np.int64),
            on_grid.astype(np.int64).ravel(),
        )
        # What room the experts have left goes to them from one node more.
        free = n * problem.capacity - m * k
        flow.add_arcs_with_capacity_and_unit_cost(
            np.full(n, m + n), m + np.arange(n), np.full(n, free), np.zeros(n, dtype=np.int64)
        )
        flow.set_nodes_supplies(np.arange(m + n + 1), np.repeat([k, -problem.capacity, free], [m, n, 1]))
        status = flow.solve()
        if status != flow.OPTIMAL:
            raise RuntimeError(f"OR-Tools ended with status {status!r} on a feasible flow")
        taken = np.nonzero(flow.flows(arcs).reshape(m, n))
        experts = taken[1]
        solution = experts.reshape(m, k) if isinstance(problem, BalancedRouting) else seats_by_expert(experts)
        bound = problem.value(solution)
        if not problem.integral:
            # What rounding has added at most to any assignment, less what it has added to the one found.
            added = on_grid - reduced * scale
            most = np.partition(added, n - k, axis=1)[:, n - k :].sum()
            bound -= math.ldexp(float(most - added[taken].sum()) / scale, exponent)
        return run.answer(solution, bound)


def _largest_unit_cost(problem: LinearAssignment | BalancedRouting) -> int:
    # Cost scaling multiplies the costs by the number of nodes, and adds a few of them along a path.
    return 2**60 // (4 * (sum(problem.cost.shape) + 3))
