"""Local search with swaps and insertions, restarted from random permutations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from moe_search.problems.kernels import kernel_for
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.parameters import store_plain
from moe_search.solvers.engine.random_state import random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import SearchRun, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion
from moe_search.solvers.heuristic.descent import CURSOR, LOG_LENGTH, Descent, enter, move_statistics, search_slice

Neighborhood = Literal["swap", "insertion", "both"]
Improvement = Literal["first", "best"]


@dataclass(frozen=True)
class LocalSearch(Solver):
    """Descend to a local optimum, then start again from a random permutation.

    Parameters
    ----------
    neighborhood : {"swap", "insertion", "both"}
        ``swap``: two slots exchange their seats. ``insertion``: a slot leaves its seat for another, those between shift
        by one. ``both``: variable neighborhood descent, insertions wherever no swap improves.
    improvement : {"first", "best"}
        Take the first improving neighbor met, or the best of the whole neighborhood.
    restarts : bool, default True
        Whether to start again at a local optimum; without, the search ends there.

    Raises
    ------
    ValueError, TypeError
        If a parameter is none of the accepted ones.

    Notes
    -----
    An iteration is one evaluated neighbor. All of the search is compiled and runs for a few milliseconds between two
    looks at the clock; what it does depends on the seed alone. The first descent starts at `initial`, or at a random
    permutation. A local search proves nothing: `moe_search.solve` adds a bound.

    References
    ----------
    H. H. Hoos, T. Stuetzle, "Stochastic Local Search", Morgan Kaufmann 2004; P. Hansen, N. Mladenovic, "Variable
    neighborhood search", European Journal of Operational Research 130 (2001), 449-467.

    Examples
    --------
    >>> from moe_search.problems import random_quadratic
    >>> from moe_search.solvers import LocalSearch, MaxIterations
    >>> LocalSearch().solve(random_quadratic(8, seed=1), MaxIterations(10_000), seed=1).iterations
    10000
    """

    neighborhood: Neighborhood = "swap"
    improvement: Improvement = "first"
    restarts: bool = True

    def __post_init__(self) -> None:
        store_plain(self)
        for name, choices in (("neighborhood", get_args(Neighborhood)), ("improvement", get_args(Improvement))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not isinstance(self.restarts, bool):
            raise TypeError(f"restarts must be True or False, got {self.restarts!r}")

    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Search; see `Solver.solve`."""
        run = SearchRun(problem, stop, seed, initial, on_improvement)
        state = problem.state(run.initial)
        totals = np.array([run.value, run.value, 0, 0], dtype=run.dtype)
        cursor: Any = np.zeros(1, dtype=CURSOR).view(np.recarray)
        descent = Descent(
            totals,
            cursor,
            run.incumbent,
            np.zeros(LOG_LENGTH, dtype=run.dtype),
            np.zeros(LOG_LENGTH, dtype=np.int64),
            random_state(seed),
            run.tolerance,
        )
        neighborhood = get_args(Neighborhood).index(self.neighborhood)
        improvement = get_args(Improvement).index(self.improvement)
        phase = min(neighborhood, 1) if self.neighborhood != "both" else 0
        options = problem.block_size, neighborhood, improvement, self.restarts

        def advance(budget: int, target: float) -> Slice:
            nonlocal state
            cursor.logged = 0
            work = kernel_for(state, search_slice)(state, descent, budget, target, *options)
            if cursor.refresh[0]:
                state = problem.state(state.permutation)
                totals[0] = problem.value(state.permutation)
                cursor.refresh = False
                cursor.shuffles = 0
            logged = int(cursor.logged[0])
            improvements = zip(descent.log_iterations[:logged], descent.log_values[:logged], strict=True)
            return Slice(work, int(cursor.iterations[0]), improvements, bool(cursor.done[0]))

        run.clock.compile(enter, descent, phase)
        run.clock.compile(kernel_for(state, search_slice), state, descent, 0, -np.inf, *options)
        run.loop(advance)
        return run.result(
            repr(self),
            moves=int(cursor.moves[0]),
            restarts=int(cursor.restarts[0]),
            statistics=move_statistics(cursor[0]),
        )
