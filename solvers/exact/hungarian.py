"""Linear assignment to optimality through scipy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.bounds.linear_assignment import EXACT_IN_FLOAT64, solve_dense
from moe_search.solvers.engine.clock import Clock
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.single_step import single_step_result
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion


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

    def refuses(self, problem: Problem) -> str | None:
        """Refuse other classes, and integers that float64, in which scipy computes, cannot hold."""
        if not isinstance(problem, LinearAssignment):
            return "it solves LinearAssignment only"
        if problem.integral and 2 * problem.size * int(np.ptp(problem.cost)) >= EXACT_IN_FLOAT64:
            return "its integer costs exceed what float64 holds exactly; MinCostFlow keeps integers"
        return None

    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Solve; see `Solver.solve`."""
        assert isinstance(problem, LinearAssignment)
        clock = Clock()
        permutation = solve_dense(problem.cost, problem.capacity)
        value = problem.value(permutation)
        return single_step_result(clock, permutation, value, value, "optimal", repr(self), on_improvement)
