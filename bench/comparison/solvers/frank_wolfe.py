"""Frank-Wolfe on the convex hull of the permutations, from randomized starts."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.heuristic.frank_wolfe import FrankWolfe


class Solver(AnytimeSolver):
    """Frank-Wolfe on the convex hull of the permutations, from randomized starts."""

    name = "FrankWolfe"

    def method(self) -> FrankWolfe:
        """Return the solver to run."""
        return FrankWolfe()
