"""All permutations, one after the other."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.exact.enumeration import Enumeration


class Solver(AnytimeSolver):
    """All permutations, one after the other."""

    name = "Enumeration"

    def method(self) -> Enumeration:
        """Return the solver to run."""
        return Enumeration()
