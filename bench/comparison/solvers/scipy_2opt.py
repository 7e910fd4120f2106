"""scipy's 2opt from random starts."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.bench.peers.scipy_quadratic import ScipyQuadratic


class Solver(AnytimeSolver):
    """scipy's 2opt from random starts."""

    name = "scipy 2opt"

    def method(self) -> ScipyQuadratic:
        """Return the solver to run."""
        return ScipyQuadratic("2opt")
