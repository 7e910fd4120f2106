"""scipy's fast approximate QAP (Frank-Wolfe) from randomized starts."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.bench.peers.scipy_quadratic import ScipyQuadratic


class Solver(AnytimeSolver):
    """scipy's fast approximate QAP (Frank-Wolfe) from randomized starts."""

    name = "scipy FAQ"

    def method(self) -> ScipyQuadratic:
        """Return the solver to run."""
        return ScipyQuadratic("faq", {"P0": "randomized"})
