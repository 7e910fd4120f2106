"""Iterated local search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from moe_search.problems.kernels import kernel_for
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.parameters import require_choice, require_count, require_number, store_plain
from moe_search.solvers.engine.random_state import random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import SearchRun, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion
from moe_search.solvers.heuristic.descent import CURSOR, Descent, enter, move_statistics
from moe_search.solvers.heuristic.iterated_descent import ACCEPTED, FRESH, PERTURBATIONS, Iterated, iterate_slice
from moe_search.solvers.heuristic.local_search import Improvement, Neighborhood
from moe_search.solvers.heuristic.sampled_deltas import mean_delta

Acceptance = Literal["better", "better_or_equal", "annealing", "restart"]
LOG_LENGTH = 512
# Of a perturbation: its swaps are no iterations, so that one without end would be a run without end.
MOST_SWAPS = 1_000_000


@dataclass(frozen=True)
class IteratedLocalSearch(Solver):
    """Descend to a local optimum, perturb it a little, descend again, and decide which of the two to go on from.

    Parameters
    ----------
    neighborhood : {"swap", "insertion", "both"}
        As in `LocalSearch`.
    improvement : {"first", "best"}
        Take the first improving swap of a slot, or the best of that slot; insertions as in `LocalSearch`.
    strength : int, default 5
        Swaps of a perturbation: one slot with random others of its block, hence a random cycle.
    acceptance : {"better", "better_or_equal", "annealing", "restart"}, default "restart"
        Which local optima are gone on from. ``better``: those below the last one accepted. ``better_or_equal``: those
        not above it. ``annealing``: worse ones too, with the probability of Metropolis at a constant temperature.
        ``restart``: as ``better``, but from a random permutation after `patience` local optima without a better one.
    temperature : float, default 0.1
        Of ``annealing``, in multiples of the mean absolute delta of random swaps at the start.
    patience : int, default 100
        Of ``restart``.
    dont_look : bool, default True
        Whether a slot none of whose swaps improved is left out until it moves; insertions look at every slot.

    Raises
    ------
    ValueError, TypeError
        If a parameter is none of the accepted ones.

    Notes
    -----
    An iteration is one evaluated neighbor. The first descent starts at `initial`, or at a random permutation. What the
    search does depends on the seed alone.

    References
    ----------
    T. Stuetzle, "Iterated local search for the quadratic assignment problem", European Journal of Operational Research
    174 (2006), 1519-1539.
    """

    neighborhood: Neighborhood = "swap"
    improvement: Improvement = "first"
    strength: int = 5
    acceptance: Acceptance = "restart"
    temperature: float = 0.1
    patience: int = 100
    dont_look: bool = True

    def __post_init__(self) -> None:
        store_plain(self)
        require_choice("neighborhood", self.neighborhood, get_args(Neighborhood))
        require_choice("improvement", self.improvement, get_args(Improvement))
        require_choice("acceptance", self.acceptance, get_args(Acceptance))
        require_count("strength", self.strength)
        if self.strength > MOST_SWAPS:
            raise ValueError(f"strength must be at most {MOST_SWAPS}, got {self.strength}")
        require_count("patience", self.patience)
        require_number("temperature", self.temperature, least=0.0)
        require_choice("dont_look", self.dont_look, (True, False))

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
        cursor: Any = np.zeros(1, dtype=CURSOR).view(np.recarray)
        descent = Descent(
            np.array([run.value, run.value, 0, 0], dtype=run.dtype),
            cursor,
            run.incumbent,
            np.zeros(LOG_LENGTH, dtype=run.dtype),
            np.zeros(LOG_LENGTH, dtype=np.int64),
            random_state(seed),
            run.tolerance,
        )
        walk = Iterated(
            run.initial.copy(),
            np.array([run.value], dtype=run.dtype),
            np.ones(problem.size, dtype=np.bool_),
            np.zeros(7, dtype=np.int64),
        )
        walk.counters[FRESH] = 1
        phase = 1 if self.neighborhood == "insertion" else 0
        run.clock.compile(enter, descent, phase)
        temperature = 0.0
        if self.acceptance == "annealing":
            temperature = self.temperature * mean_delta(run, state)
        options = (
            problem.block_size,
            get_args(Neighborhood).index(self.neighborhood),
            get_args(Improvement).index(self.improvement),
            self.dont_look,
            self.strength,
            get_args(Acceptance).index(self.acceptance),
            float(temperature),
            self.patience,
        )

        def advance(budget: int, target: float) -> Slice:
            nonlocal state
            cursor.logged = 0
            work = kernel_for(state, iterate_slice)(state, descent, walk, budget, target, *options)
            if cursor.refresh[0]:
                state = problem.state(state.permutation)
                descent.totals[0] = problem.value(state.permutation)
                cursor.refresh = False
                cursor.shuffles = 0
            logged = int(cursor.logged[0])
            improvements = zip(descent.log_iterations[:logged], descent.log_values[:logged], strict=True)
            return Slice(work, int(cursor.iterations[0]), improvements, bool(cursor.done[0]))

        run.clock.compile(kernel_for(state, iterate_slice), state, descent, walk, 0, -math.inf, *options)
        run.loop(advance)
        statistics = move_statistics(cursor[0]) | {
            "perturbations": int(walk.counters[PERTURBATIONS]),
            "local optima accepted": int(walk.counters[ACCEPTED]),
        }
        return run.result(
            repr(self), moves=int(cursor.moves[0]), restarts=int(cursor.restarts[0]), statistics=statistics
        )
