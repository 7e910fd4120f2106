"""Scipy's FAQ, restarted, as a peer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moe_search.checks import require_integer
from moe_search.problems.arrays import dense
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.solvers.engine.proposer import Proposer
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run

MOST_LOCATIONS = 500


@dataclass(frozen=True)
class FrankWolfe(Proposer):
    """Round a local optimum of the relaxation to doubly stochastic matrices, from many starts: scipy's FAQ.

    The first start is the barycenter, the matrix of equal entries (an `initial` permutation, where one is given, is the
    incumbent); all others are random doubly stochastic matrices. An iteration is one start.

    Parameters
    ----------
    steps : int, default 30
        Frank-Wolfe steps of a start at most, scipy's ``maxiter``.

    Notes
    -----
    Scipy cannot be stopped within a start, so the search stops between two: a limit of time is overrun by up to the
    time of one start (milliseconds at n = 30, a second at n = 300), and Ctrl-C ends the start that it meets, without
    its result. The values of ``quadratic_assignment`` are not taken over; each start's permutation is valued by the
    problem's definition.

    References
    ----------
    J. T. Vogelstein et al., "Fast approximate quadratic programming for graph matching", PLOS ONE 10 (2015), e0121002.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.FrankWolfe().solve(ms.random_quadratic(8, seed=0), ms.MaxIterations(10), seed=1)
    >>> result.iterations, result.status
    (10, 'feasible')
    """

    takes: ClassVar[type] = QuadraticAssignment
    steps: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("steps", self.steps)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse other classes, and linear terms."""
        if not isinstance(problem, QuadraticAssignment):
            return super().refuses(problem)
        if problem.size > MOST_LOCATIONS:
            return f"a start cannot be stopped and takes seconds beyond {MOST_LOCATIONS} locations, got {problem.size}"
        if problem.linear is not None and problem.linear.any():
            return "scipy's FAQ has no linear term; LocalSearch and BranchAndBound take it"
        return None

    def proposals(self, problem: PermutationProblem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield the permutation that each start ends at, the first from the barycenter."""
        # Imported here: it takes longer than many a search that needs none of it.
        with compile_time():
            from scipy.optimize import quadratic_assignment

        assert isinstance(problem, QuadraticAssignment)
        # Scipy multiplies in the type of the matrices, where integers could overflow.
        flow, distance = dense(problem.flow).astype(np.float64), problem.distance.astype(np.float64)
        start = "barycenter"
        while True:
            options = {"P0": start, "rng": rng, "maxiter": self.steps}
            yield quadratic_assignment(flow, distance, options=options).col_ind.astype(np.int64)
            start = "randomized"

    def search(self, run: Run) -> Result:
        """Search, every start but the first counted as a restart; see `Solver.search`."""
        result = super().search(run)
        return replace(result, restarts=max(result.iterations - 1, 0))
