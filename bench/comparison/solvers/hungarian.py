"""Linear assignment to optimality through scipy."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.exact.hungarian import Hungarian


class Solver(AnytimeSolver):
    """Linear assignment to optimality through scipy."""

    name = "Hungarian"

    def method(self) -> Hungarian:
        """Return the solver to run."""
        return Hungarian()
