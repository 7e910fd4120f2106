"""Robust tabu search."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.heuristic.tabu_search import TabuSearch


class Solver(AnytimeSolver):
    """Robust tabu search."""

    name = "TabuSearch"

    def method(self) -> TabuSearch:
        """Return the solver to run."""
        return TabuSearch()
