"""Local search with swaps, first improvement, from random restarts."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.heuristic.local_search import LocalSearch


class Solver(AnytimeSolver):
    """Local search with swaps, first improvement, from random restarts."""

    name = "LocalSearch"

    def method(self) -> LocalSearch:
        """Return the solver to run."""
        return LocalSearch()
