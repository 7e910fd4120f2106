"""One run of a solver: its clock, incumbent, bound and trajectory, and the loop over slices."""

from __future__ import annotations

import math
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from moe_search.problems.kernel_cache import compile_time, compile_time_of_all_threads
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.result import Incumbent, Result, Status, TrajectoryPoint, met, reached
from moe_search.solvers.engine.stop import Allowance, AnyOf, Progress, StoppingCriterion, TargetValue

OnImprovement = Callable[[Incumbent], object]

SLICE_SECONDS = 0.004
FIRST_BUDGET = 16
MAX_BUDGET = 1 << 40


class Clock:
    """Seconds since its creation without those in which kernels were compiled, by the thread that created it.

    Parameters
    ----------
    begin : float, default 0.0
        What it shows at first.
    """

    def __init__(self, begin: float = 0.0) -> None:
        self.started = time.perf_counter() - begin
        self._compile_time = compile_time()
        self._compiled_before = self._compile_time.seconds

    def watch_all_threads(self) -> None:
        """Leave out what any thread compiles from now on; what was left out before stays so."""
        before = self.compile_seconds()
        self._compile_time = compile_time_of_all_threads()
        self._compiled_before = self._compile_time.seconds - before

    def seconds(self) -> float:
        """Return the seconds on the clock."""
        return time.perf_counter() - self.started - self.compile_seconds()

    def compile_seconds(self) -> float:
        """Return the seconds for what only a first call does: compiling or loading kernels, imports."""
        return self._compile_time.seconds - self._compiled_before

    def compiles(self) -> bool:
        """Return whether a kernel is being compiled, or loaded."""
        return self._compile_time.depth > 0


@dataclass
class Budget:
    """Work of the next slice, adapted so that a slice takes about `slice_seconds`."""

    last: int
    slice_seconds: float = SLICE_SECONDS
    seconds_per_unit: float = 0.0

    def next(self, seconds_left: float, units_left: float) -> int:
        """Return how many units of work the next slice may do, at least one."""
        # A short slice is a poor measure: grow by at most 8 from one to the next.
        budget = 8.0 * self.last
        if self.seconds_per_unit > 0.0:
            budget = min(budget, min(self.slice_seconds, seconds_left) / self.seconds_per_unit)
        return max(1, int(min(budget, units_left, MAX_BUDGET)))

    def record(self, work: int, seconds: float) -> None:
        """Take in the time that a slice took."""
        self.last = max(work, 1)
        self.seconds_per_unit = max(seconds, 1e-9) / self.last


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


class Run:
    """One run of a solver on a problem; `Solver.solve` makes it from checked arguments.

    A solver calls `take_initial`, then either `loop` with a function that searches on, or `offer` and `show` at every
    solution; `result` ends it. A solver that finds its answer in one step calls `answer` instead of all of these.

    Parameters
    ----------
    solver : str
        The solver and its parameters.
    problem : Problem
        What to minimize.
    stop : StoppingCriterion
        When to stop.
    seed : int or SeedSequence
        Source of the randomness; it draws the initial solution if none is given.
    initial : solution or None
        Where to start.
    on_improvement : callable or None
        Shown the incumbent; see `Solver.solve`.
    clock : Clock, optional
        The clock of the run which this one is a part of; by default one that starts now.

    Attributes
    ----------
    incumbent, value
        The best solution met, and its value.
    bound : int, float or None
        A proved lower bound, if one is known.
    iterations, improved_at : int
        Work done, and when the incumbent was found.
    interrupted : bool
        Whether Ctrl-C came.
    """

    def __init__(
        self,
        solver: str,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence = 0,
        initial: Any = None,
        on_improvement: OnImprovement | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.clock = Clock() if clock is None else clock
        self.solver = solver
        self.problem = problem
        self.stop = stop
        self.seed = seed
        self.initial = initial
        self.on_improvement = on_improvement
        self.incumbent: Any = None
        self.value: int | float = math.inf
        self.bound: int | float | None = None
        self.trajectory: list[TrajectoryPoint] = []
        self.shown = 0
        self.iterations = 0
        self.improved_at = 0
        self.interrupted = False
        self._lock = threading.Lock()

    @property
    def dtype(self) -> type[np.generic]:
        """Type of values and deltas."""
        return np.int64 if self.problem.integral else np.float64

    @property
    def tolerance(self) -> np.generic:
        """The least delta that counts as an improvement: none for integers, above the rounding errors for floats.

        It has the type of the deltas, since a float would cost large integers their last digits.
        """
        if self.problem.integral:
            return np.int64(0)
        return np.float64(1e-12 * max(abs(float(self.value)), 1e-12 * self.problem.ordinary_value()))

    def take_initial(self, otherwise: Any = None) -> Any:
        """Make the initial solution the incumbent and return it; without one, `otherwise`, or else a random one."""
        if self.initial is None:
            rng = np.random.default_rng(self.seed)
            self.initial = self.problem.random_solution(rng) if otherwise is None else otherwise
        self.offer(copy(self.initial), self.problem.value(self.initial), 0)
        return self.initial

    def aim(self, bound: int | float | None) -> None:
        """Take a proved lower bound as known, and a value equal to it as a reason to stop."""
        self.bound = bound
        if bound is not None:
            self.stop = AnyOf(TargetValue(met(bound, self.problem)), self.stop)

    def progress(self) -> Progress:
        """Return where the run stands."""
        return Progress(self.clock.seconds(), self.iterations, float(self.value), self.improved_at)

    def offer(self, solution: Any, value: int | float, iteration: int, seconds: float | None = None) -> None:
        """Make `solution`, of this very value, the incumbent if it is better; any thread may call this.

        It was found at this iteration, and now, or after a number of seconds.
        """
        if not math.isfinite(value):
            raise ValueError(f"the value of a solution must be a finite number, got {value} of {self.problem!r}")
        with self._lock:
            if value < self.value:
                self.incumbent, self.value, self.improved_at = solution, self._plain(value), iteration
                seconds = self.clock.seconds() if seconds is None else seconds
                self.trajectory.append(TrajectoryPoint(seconds, self.value, iteration))

    def show(self) -> None:
        """Show the incumbent to whoever asked for it, unless it was shown before."""
        if self.on_improvement is None or self.shown == len(self.trajectory):
            return
        with self._lock:
            self.shown = len(self.trajectory)
            point = self.trajectory[-1]
            incumbent = Incumbent(point.seconds, point.iteration, point.value, self.incumbent)
        self.on_improvement(incumbent)

    def loop(
        self,
        advance: Callable[[int, float], Slice],
        iteration: int = 1,
        first_budget: int = FIRST_BUDGET,
        slice_seconds: float = SLICE_SECONDS,
    ) -> None:
        """Call ``advance(budget, target)``, at most `budget` units of work, until the run stops or Ctrl-C comes.

        Parameters
        ----------
        advance : callable
            Searches on, as far as the budget and the target go; the incumbent is written to `incumbent` in place.
        iteration : int, default 1
            Units of work of an iteration.
        first_budget : int
            Units of work of the first slice, before any is timed.
        slice_seconds : float
            About how long a slice takes.
        """
        stopper = self.stop.start()
        budget = Budget(max(first_budget // 8, 1), slice_seconds)
        ended = False
        try:
            self.show()
            while not ended:
                progress = self.progress()
                allowance: Allowance = stopper.allowance(progress)
                if allowance.spent or progress.value <= allowance.target:
                    break
                units = budget.next(allowance.seconds, allowance.iterations * iteration)
                # A target that is an int would compile a kernel once more, and on the clock.
                piece = advance(units, float(allowance.target))
                seconds = self.clock.seconds() - progress.seconds
                self._take_in(piece, progress, seconds)
                budget.record(piece.work, seconds)
                self.show()
                ended = piece.ended
        except KeyboardInterrupt:
            self.interrupted = True

    def _take_in(self, piece: Slice, before: Progress, seconds: float) -> None:
        for iteration, value in piece.improvements:
            # The kernel knows no clock; within a slice of milliseconds the work is as good as one.
            share = (int(iteration) - before.iterations) / max(piece.iterations - before.iterations, 1)
            self.value = self._plain(value)
            self.improved_at = int(iteration)
            self.trajectory.append(TrajectoryPoint(before.seconds + share * seconds, self.value, self.improved_at))
        self.iterations = piece.iterations

    def answer(self, solution: Any, bound: int | float | None) -> Result:
        """Return the result of a solver without randomness that found its answer in one step, and show it."""
        self.iterations = 1
        self.bound = bound
        self.offer(solution, self.problem.value(solution), 1)
        try:
            self.show()
        except KeyboardInterrupt:
            self.interrupted = True
        return self.result(moves=0, seed=None)

    def interrupt(self) -> Result:
        """Return the result after Ctrl-C outside of `loop`: while kernels were compiled, or before there was any."""
        self.interrupted = True
        return self.result(moves=0)

    def result(
        self,
        *,
        moves: int,
        restarts: int = 0,
        proved: bool = False,
        statistics: Mapping[str, int] | None = None,
        **changes: Any,
    ) -> Result:
        """Return the result, its value taken from the problem's own definition.

        Parameters
        ----------
        moves, restarts, statistics
            As in `Result`.
        proved : bool
            Whether the search has proved its incumbent optimal; its value is then the bound.
        **changes
            Other fields of `Result` that are not those of the run.
        """
        if self.incumbent is None:
            self.take_initial()
        if self.interrupted:
            self._take_in_lost_slice()
        elif not self.problem.integral and len(self.trajectory) > 1:
            self.value = self._plain(self.problem.value(self.incumbent))
            self.trajectory[-1] = self.trajectory[-1]._replace(value=self.value)
            # Deltas of a wide range leave rounding errors, by which values before may seem to be lower.
            while len(self.trajectory) > 1 and self.trajectory[-2].value <= self.value:
                del self.trajectory[-2]
        self.doubt_bound()
        bound = self.value if proved else self.bound
        status: Status = "interrupted" if self.interrupted else "feasible"
        if proved or reached(self.value, bound, self.problem):
            status = "optimal"
        fields: dict[str, Any] = {
            "solution": self.incumbent,
            "value": self.value,
            "bound": bound,
            "status": status,
            "trajectory": tuple(self.trajectory),
            "iterations": self.iterations,
            "moves": moves,
            "restarts": restarts,
            "runtime": self.clock.seconds(),
            "seed": reported_seed(self.seed),
            "solver": self.solver,
            "compile_seconds": self.clock.compile_seconds(),
            "statistics": dict(statistics or {}),
        }
        return Result(**fields | changes)

    def _plain(self, value: Any) -> int | float:
        """Return a value as a number of Python, which a problem of one's own may give as one of numpy."""
        if not self.problem.integral:
            return float(value)
        if int(value) != value:
            raise ValueError(f"the value of a solution must be an integer, got {value} of {self.problem!r}")
        return int(value)

    def doubt_bound(self) -> None:
        """Leave out a bound above the incumbent's value by more than rounding: one of the two is wrong."""
        if self.bound is None:
            return
        slack: float = 0
        if not self.problem.integral:
            slack = 1e-6 * max(abs(self.value), abs(self.bound), self.problem.ordinary_value())
        if self.bound > self.value + slack:
            kind = type(self.problem).__name__
            warnings.warn(
                f"the bound {self.bound} is left out, as a solution of value {self.value} was found: "
                f"the value, pair_costs, relaxed or value_range of {kind} must be wrong",
                RuntimeWarning,
                stacklevel=4,
            )
            self.bound = None

    def _take_in_lost_slice(self) -> None:
        """Take in what a slice found that Ctrl-C kept from being recorded: its incumbent is there, its log is not."""
        value = self._plain(self.problem.value(self.incumbent))
        if value < self.value:
            self.trajectory.append(TrajectoryPoint(self.clock.seconds(), value, self.iterations))
        self.value = value


def reported_seed(seed: int | np.random.SeedSequence) -> int | None:
    """Return the int that gives the same run as a seed, for a result; None if there is none."""
    if isinstance(seed, np.random.SeedSequence):
        # A spawned sequence draws other numbers than the seed that it descends from.
        return int(seed.entropy) if isinstance(seed.entropy, (int, np.integer)) and not seed.spawn_key else None
    return int(seed)
