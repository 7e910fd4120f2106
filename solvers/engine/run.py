"""One run of a compiled search: its clock, incumbent and trajectory, and the loop over slices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.budget import FIRST_BUDGET, Budget
from moe_search.solvers.engine.clock import Clock
from moe_search.solvers.engine.incumbent import Incumbent, OnImprovement
from moe_search.solvers.engine.result import Result, Status, TrajectoryPoint
from moe_search.solvers.engine.solver import reported_seed
from moe_search.solvers.engine.stop import Progress, StoppingCriterion


class Slice(NamedTuple):
    """What a search did between two looks at the clock.

    Parameters
    ----------
    work : int
        Units of work done, of the budget given.
    iterations : int
        Iterations since the start of the run.
    improvements : iterable of (int, number)
        Iteration and value of every new incumbent.
    ended : bool
        Whether the search has nothing left to do.
    """

    work: int
    iterations: int
    improvements: Iterable[tuple[int, Any]]
    ended: bool


class SearchRun:
    """One run of a compiled search on a problem.

    Parameters
    ----------
    problem : Problem
        What to minimize.
    stop : StoppingCriterion
        When to stop.
    seed : int or SeedSequence
        Source of the randomness; it draws the initial permutation if none is given.
    initial : ndarray of int64 or None
        Where to start.
    on_improvement : callable or None
        Shown the incumbent between slices; see `Solver.solve`.
    """

    def __init__(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None = None,
    ) -> None:
        self.clock = Clock()
        self.problem = problem
        self.stopper = stop.start()
        self.seed = seed
        self.initial = problem.random_solution(np.random.default_rng(seed)) if initial is None else initial
        self.value = problem.value(self.initial)
        self.incumbent = self.initial.copy()
        self.trajectory = [TrajectoryPoint(self.clock.seconds(), self.value, 0)]
        self.on_improvement = on_improvement
        self.shown = 0
        self.iterations = 0
        self.improved_at = 0
        self.interrupted = False
        self.taken = False

    @property
    def dtype(self) -> type[np.generic]:
        """Type of values and deltas."""
        return np.int64 if self.problem.integral else np.float64

    @property
    def tolerance(self) -> np.generic:
        """The least delta that counts as an improvement: none for integers, above the rounding errors for floats.

        Of the type of the deltas, since a float would cost large integers their last digits.
        """
        if self.problem.integral:
            return np.int64(0)
        return np.float64(1e-12 * max(abs(float(self.value)), 1e-12 * self.problem.ordinary_value()))

    def progress(self) -> Progress:
        """Return where the run stands."""
        return Progress(self.clock.seconds(), self.iterations, float(self.value), self.improved_at)

    def loop(
        self, advance: Callable[[int, float], Slice], iteration: int = 1, first_budget: int = FIRST_BUDGET
    ) -> None:
        """Call ``advance(budget, target)``, at most `budget` units of work, until the run stops or Ctrl-C comes.

        Parameters
        ----------
        advance : callable
            Searches on, as far as the budget and the target go.
        iteration : int, default 1
            Units of work of an iteration.
        first_budget : int
            Units of work of the first slice, before any is timed.
        """
        budget = Budget(last=max(first_budget // 8, 1))
        done = False
        try:
            self._show()
            while not done:
                progress = self.progress()
                allowance = self.stopper.allowance(progress)
                if allowance.spent or progress.value <= allowance.target:
                    break
                units = budget.next(allowance.seconds, allowance.iterations * iteration)
                piece = advance(units, allowance.target)
                self._record(progress, piece)
                budget.record(piece.work, self.clock.seconds() - progress.seconds)
                self._show()
                done = piece.ended
        except KeyboardInterrupt:
            self.interrupted = True

    def _record(self, before: Progress, piece: Slice) -> None:
        seconds = self.clock.seconds() - before.seconds
        for iteration, value in piece.improvements:
            # The kernel knows no clock; within a slice of milliseconds the work is as good as one.
            share = (int(iteration) - before.iterations) / max(piece.iterations - before.iterations, 1)
            self.value = value.item()
            self.improved_at = int(iteration)
            self.trajectory.append(TrajectoryPoint(before.seconds + share * seconds, self.value, self.improved_at))
        self.iterations = piece.iterations

    def take(self, permutation: Permutation, value: int | float) -> None:
        """Make `permutation` of this very value the incumbent, found where the run stands and the last, and show it."""
        self.incumbent, self.value, self.improved_at = permutation, value, self.iterations
        self.taken = True
        self.trajectory.append(TrajectoryPoint(self.clock.seconds(), value, self.iterations))
        self._show()

    def _show(self) -> None:
        if self.on_improvement is None or self.shown == len(self.trajectory):
            return
        self.shown = len(self.trajectory)
        point = self.trajectory[-1]
        self.on_improvement(Incumbent(point.seconds, point.iteration, point.value, self.incumbent))

    def result(
        self,
        solver: str,
        *,
        moves: int,
        restarts: int = 0,
        proved: bool = False,
        statistics: Mapping[str, int] | None = None,
    ) -> Result:
        """Return the result, its value taken from the problem's own definition; its own bound if that is proved."""
        if self.interrupted:
            self._take_in_lost_slice()
        elif not self.problem.integral and len(self.trajectory) > 1 and not self.taken:
            self.value = self.problem.value(self.incumbent)
            self.trajectory[-1] = self.trajectory[-1]._replace(value=self.value)
        status: Status = "optimal" if proved else "feasible"
        return Result(
            permutation=self.incumbent,
            value=self.value,
            bound=self.value if proved else None,
            status="interrupted" if self.interrupted else status,
            trajectory=tuple(self.trajectory),
            iterations=self.iterations,
            moves=moves,
            restarts=restarts,
            runtime=self.clock.seconds(),
            seed=reported_seed(self.seed),
            solver=solver,
            statistics=dict(statistics or {}),
        )

    def _take_in_lost_slice(self) -> None:
        """Take in what a slice found that Ctrl-C kept from being recorded: its incumbent is there, its log is not."""
        value = self.problem.value(self.incumbent)
        if value < self.value:
            self.trajectory.append(TrajectoryPoint(self.clock.seconds(), value, self.iterations))
        self.value = value
