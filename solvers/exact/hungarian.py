"""Linear assignment to optimality through scipy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_search.problems.arrays import EXACT_IN_FLOAT64
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.problem import Problem
from moe_search.solvers.bounds.linear_assignment import solve_dense
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver


@dataclass(frozen=True)
class Hungarian(Solver):
    """Solve a `LinearAssignment` to optimality with scipy's ``linear_sum_assignment``.

    An expert of capacity c stands as c columns. It cannot be stopped on its way: `stop` is not asked. `seed` and
    `initial` have no influence.

    References
    ----------
    D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic
    Systems 52 (2016), 1679-1696.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.solve(ms.LinearAssignment([[4, 1], [2, 3]]), ms.Hungarian())
    >>> result.permutation.tolist(), result.value
    ([1, 0], 3)
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type] = LinearAssignment

    def refuses(self, problem: Problem) -> str | None:
        """Refuse other classes, and integers that float64, in which scipy computes, cannot hold."""
        if not isinstance(problem, LinearAssignment):
            return super().refuses(problem)
        if problem.integral and 2 * problem.size * int(np.ptp(problem.cost)) >= EXACT_IN_FLOAT64:
            return "its integer costs exceed what float64 holds exactly; MinCostFlow keeps integers"
        return None

    def search(self, run: Run) -> Result:
        """Solve; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, LinearAssignment)
        permutation = solve_dense(problem.cost, problem.capacity)
        return run.answer(permutation, problem.value(permutation))
