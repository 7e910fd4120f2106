"""Linear assignment to optimality through scipy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run
from moe_search.solvers.engine.solver import Solver

EXACT_IN_FLOAT64 = 2**53


@dataclass(frozen=True)
class Hungarian(Solver):
    """Solve a `LinearAssignment` to optimality with scipy's ``linear_sum_assignment``.

    An expert of capacity c stands as c columns. It cannot be stopped on its way: `stop` is not asked. `seed` and
    `initial` have no influence.

    References
    ----------
    D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE Transactions on Aerospace and Electronic
    Systems 52 (2016), 1679-1696.
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type[Problem]] = LinearAssignment

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


def solve_dense(cost: npt.NDArray[Any], capacity: int) -> Permutation:
    """Return an optimal permutation for costs of shape (m, n) with m = n * capacity."""
    # Imported here: it takes longer than many a search that needs none of it.
    from scipy.optimize import linear_sum_assignment

    # Subtracting the minimum of a row changes no comparison and keeps large integers within float64.
    reduced = cost - cost.min(axis=1, keepdims=True)
    columns = linear_sum_assignment(np.repeat(reduced, capacity, axis=1))[1]
    return columns.astype(np.int64)
