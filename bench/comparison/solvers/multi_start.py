"""Tabu search from four independent starts that share the time, on one thread."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.heuristic.multi_start import MultiStart
from moe_search.solvers.heuristic.tabu_search import TabuSearch


class Solver(AnytimeSolver):
    """Tabu search from four independent starts that share the time, on one thread."""

    name = "MultiStart"

    def method(self) -> MultiStart:
        """Return the solver to run."""
        return MultiStart(TabuSearch(), runs=4, n_jobs=1)
