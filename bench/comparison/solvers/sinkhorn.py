"""The paper's relaxation: Sinkhorn matrices, learned by gradient, annealed and rounded."""

from __future__ import annotations

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.solvers.engine.solver import Solver as SearchSolver


class Solver(AnytimeSolver):
    """COMET's permutation search (2023), taken as a solver of the problem."""

    name = "Sinkhorn"

    def method(self) -> SearchSolver:
        """Return the solver to run."""
        # torch takes seconds to import, and benchopt imports the files of all solvers in every process.
        from moe_search.bench.peers.sinkhorn import SinkhornRelaxation

        return SinkhornRelaxation()
