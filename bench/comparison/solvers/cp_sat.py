"""OR-Tools' CP-SAT on one thread."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.exact.cp_sat import CpSat


class Solver(AnytimeSolver):
    """OR-Tools' CP-SAT on one thread."""

    name = "CpSat"

    def method(self) -> CpSat:
        """Return the solver to run."""
        return CpSat()
