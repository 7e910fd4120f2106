"""Simulated annealing."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.heuristic.simulated_annealing import SimulatedAnnealing


class Solver(AnytimeSolver):
    """Simulated annealing."""

    name = "SimulatedAnnealing"

    def method(self) -> SimulatedAnnealing:
        """Return the solver to run."""
        return SimulatedAnnealing()
