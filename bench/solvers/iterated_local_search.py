"""Local search from perturbed local optima."""

from __future__ import annotations

from moe_search.bench.anytime_solver import AnytimeSolver
from moe_search.solvers.iterated_local_search import IteratedLocalSearch


class Solver(AnytimeSolver):
    """Local search from perturbed local optima."""

    name = "IteratedLocalSearch"

    def method(self) -> IteratedLocalSearch:
        """Return the solver to run."""
        return IteratedLocalSearch()
