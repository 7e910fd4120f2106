"""Linear assignment to optimality as OR-Tools' minimum-cost flow."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.exact.min_cost_flow import MinCostFlow


class Solver(AnytimeSolver):
    """Linear assignment to optimality as OR-Tools' minimum-cost flow."""

    name = "MinCostFlow"

    def method(self) -> MinCostFlow:
        """Return the solver to run."""
        return MinCostFlow()
