"""Local search from perturbed local optima."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.heuristic.iterated_local_search import IteratedLocalSearch


class Solver(AnytimeSolver):
    """Local search from perturbed local optima."""

    name = "IteratedLocalSearch"

    def method(self) -> IteratedLocalSearch:
        """Return the solver to run."""
        return IteratedLocalSearch()
