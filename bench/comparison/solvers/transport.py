"""Linear assignment with capacity by shortest paths on the expert graph."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.exact.transport import Transport


class Solver(AnytimeSolver):
    """Linear assignment with capacity by shortest paths on the expert graph."""

    name = "Transport"

    def method(self) -> Transport:
        """Return the solver to run."""
        return Transport()
