"""Branch and bound with Gilmore-Lawler bounds."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.exact.branch_and_bound import BranchAndBound


class Solver(AnytimeSolver):
    """Branch and bound with Gilmore-Lawler bounds."""

    name = "BranchAndBound"

    def method(self) -> BranchAndBound:
        """Return the solver to run."""
        return BranchAndBound()
