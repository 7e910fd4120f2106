"""Independent runs of a solver side by side."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from moe_search.checks import require_integer, require_n_jobs
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.background import count_workers, run_watched
from moe_search.solvers.engine.result import Incumbent, Result, TrajectoryPoint
from moe_search.solvers.engine.run import Clock, Run
from moe_search.solvers.engine.solver import Solver, require_result
from moe_search.solvers.engine.stop import (
    Allowance,
    AnyOf,
    MaxIterations,
    MaxRuntime,
    Progress,
    Stopper,
    StoppingCriterion,
)

_Task: TypeAlias = tuple[int, StoppingCriterion, np.random.SeedSequence, Any]
"""Number of a run, when it stops, its seed, and where it starts."""


@dataclass(frozen=True)
class MultiStart(Solver):
    """Run solvers several times with independent seeds, at once as far as there are workers; keep the best result.

    Parameters
    ----------
    solver : Solver or sequence of Solver
        What to run. Several make a portfolio: the runs take them in turn.
    runs : int, default 4
        How many times.
    n_jobs : int, default -1
        How many at once, as in joblib: -1 for all processors. They are threads, since compiled searches hold no lock;
        inside ``joblib.parallel_config(backend="loky")`` (or "dask", "ray") the runs go to that backend.
    share_every : int, optional
        After so many iterations of each run, all of them go on from the best solution that any has found, with fresh
        seeds; one that has ended by then stays out. A proof ends them all. By default they share nothing.

    Notes
    -----
    Run i has the i-th seed spawned from the given one, and of equal values the first run's is kept, so that the result
    depends on the seed alone, whatever `n_jobs`, as long as no clock ends a run. A limit of seconds is one for the
    whole: where runs have to wait for each other, each gets its share of what is left, and on threads no run begins
    once nothing is, and the first that reaches a target, or a proof, ends all; without such a limit each ends by
    itself. All other criteria hold for each run. All runs start at `initial` if there is one. Iterations,
    moves, restarts and statistics are sums; the trajectory is that of the best run, of each round if they share. On
    threads every incumbent that is the best of all runs is shown, and Ctrl-C ends all runs and returns the best; other
    backends show the result only, and pass Ctrl-C on.

    Examples
    --------
    >>> import moe_search as ms
    >>> solver = ms.MultiStart(ms.FrankWolfe(), runs=3)
    >>> solver.solve(ms.random_quadratic(8, seed=0), ms.MaxIterations(2)).iterations
    6
    """

    takes: ClassVar[type] = Problem
    solver: Solver | Sequence[Solver]
    runs: int = 4
    n_jobs: int = -1
    share_every: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.solvers:
            raise ValueError("solver must be at least one Solver, got none")
        for each in self.solvers:
            if not isinstance(each, Solver):
                raise TypeError(f"solver must be a Solver such as TabuSearch(), got {type(each).__name__}")
        require_integer("runs", self.runs)
        require_n_jobs(self.n_jobs)
        if self.share_every is not None:
            require_integer("share_every", self.share_every)

    @property
    def solvers(self) -> tuple[Solver, ...]:
        """What the runs take in turn."""
        return tuple(self.solver) if isinstance(self.solver, Sequence) else (self.solver,)

    def _solver(self, number: int) -> Solver:
        return self.solvers[number % len(self.solvers)]

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what any of the solvers refuses."""
        return next((reason for each in self.solvers if (reason := each.reason_against(problem)) is not None), None)

    def search(self, run: Run) -> Result:
        """Run them all; see `Solver.search`."""
        run.clock.watch_all_threads()
        # Imported here: it takes longer than many a search, and no other solver needs it.
        with compile_time():
            from joblib import Parallel, delayed
            from joblib.parallel import get_active_backend

        workers = count_workers(self.n_jobs)
        allowance = run.stop.start().allowance(Progress())
        seconds = allowance.seconds
        # Without a clock every run goes on to its own end, so that the result does not depend on which is ahead.
        timed = math.isfinite(seconds)
        over = threading.Event()
        rounds: list[list[Result]] = []
        # For the display: the runs of this round, and the iterations of those before.
        begun: list[Run] = []
        earlier = 0

        def share_of_time(number: int) -> float:
            # Runs that share go on side by side, all of them until the end.
            waves = math.ceil((self.runs - number) / workers) if self.share_every is None else 1
            return max(seconds - run.clock.seconds(), 0.0) / waves

        def take(incumbent: Incumbent) -> None:
            run.offer(incumbent.solution, incumbent.value, incumbent.iterations, incumbent.seconds)
            if timed and incumbent.value <= allowance.target:
                over.set()

        def one(number: int, stop: StoppingCriterion, seed: np.random.SeedSequence, initial: Any) -> Result | None:
            share = share_of_time(number)
            if (number or rounds) and (share <= 0.0 or over.is_set()):
                return None
            stop = _limited(_Until(over, stop), run.clock.seconds() + share)
            solver = self._solver(number)
            own = solver.begin_run(run.problem, stop, seed, initial, take)
            # Off it is what this run compiles, or waits for another to compile.
            own.clock = Clock(begin=run.clock.seconds())
            begun.append(own)
            result = require_result(solver, solver.search(own))
            if timed and result.status == "optimal":
                over.set()
            return result

        def look() -> None:
            run.iterations = earlier + sum(own.iterations for own in begun)
            run.show()

        def work() -> None:
            nonlocal earlier
            for tasks in self._rounds(run, rounds):
                found = Parallel(n_jobs=self.n_jobs, backend="threading")(delayed(one)(*task) for task in tasks)
                rounds.append([result for result in found if result is not None])
                earlier += sum(result.iterations for result in rounds[-1])
                begun.clear()

        if getattr(get_active_backend(prefer="threads")[0], "supports_sharedmem", False):
            run.interrupted = run_watched(work, look, over.set)
            # Theirs show the seconds of this one.
            return self._joined(run, rounds, [0.0] * len(rounds))
        begins = []
        for tasks in self._rounds(run, rounds):
            begins.append(run.clock.seconds())
            share = share_of_time(0)
            rounds.append(
                Parallel(n_jobs=self.n_jobs, prefer="threads")(
                    delayed(self._solver(number).solve)(run.problem, _limited(stop, share), seed, initial)
                    for number, stop, seed, initial in tasks
                )
            )
        joined = self._joined(run, rounds, begins)
        try:
            run.show()
        except KeyboardInterrupt:
            return replace(joined, status="optimal" if joined.status == "optimal" else "interrupted")
        return joined

    def _rounds(self, run: Run, rounds: Sequence[Sequence[Result]]) -> Iterator[list[_Task]]:
        """Yield the tasks of each round, whose results are to be in `rounds` when the next one is asked for."""
        seeds = spawned_seeds(run.seed, self.runs)
        if self.share_every is None:
            yield [(number, run.stop, seed, run.initial) for number, seed in enumerate(seeds)]
            return
        going, initial, before = list(range(self.runs)), run.initial, Progress()
        while going:
            stop = AnyOf(MaxIterations(self.share_every), _Resumed(run.stop, before))
            yield [(number, stop, spawned_seeds(seeds[number], len(rounds) + 1)[-1], initial) for number in going]
            last = rounds[-1]
            if len(last) < len(going) or any(result.status != "feasible" for result in last):
                return
            best = min(last, key=lambda result: result.value)
            going = [
                number for number, result in zip(going, last, strict=True) if result.iterations >= self.share_every
            ]
            iterations = before.iterations + self.share_every
            improved_at = iterations if best.value < before.value else before.improved_at
            initial = best.solution
            before = Progress(0.0, iterations, min(best.value, before.value), improved_at)

    def _joined(self, run: Run, rounds: Sequence[Sequence[Result]], begins: Sequence[float]) -> Result:
        """Return the best of all results, with sums of what they counted; the clocks of a round began at `begins`."""
        results = [result for found in rounds for result in found]
        best = min(results, key=lambda result: result.value)
        run.incumbent, run.value = best.solution, best.value
        run.trajectory = []
        for number, found in enumerate(filter(None, rounds)):
            for point in min(found, key=lambda result: result.value).trajectory:
                if not run.trajectory or point.value < run.trajectory[-1].value:
                    iteration = point.iteration + number * (self.share_every or 0)
                    run.trajectory.append(TrajectoryPoint(point.seconds + begins[number], point.value, iteration))
        run.bound = max(
            (each for each in (run.bound, *(result.bound for result in results)) if each is not None), default=None
        )
        run.iterations = sum(result.iterations for result in results)
        statistics: Counter[str] = Counter()
        for result in results:
            statistics.update(result.statistics)
        return run.result(
            moves=sum(result.moves for result in results),
            restarts=sum(result.restarts for result in results),
            statistics=statistics,
            compile_seconds=max([run.clock.compile_seconds(), *(result.compile_seconds for result in results)]),
        )


def spawned_seeds(seed: int | np.random.SeedSequence, count: int) -> list[np.random.SeedSequence]:
    """Return independent seeds, the same ones at every call."""
    given = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    # SeedSequence.spawn counts its calls in the sequence: a copy starts afresh.
    return np.random.SeedSequence(given.entropy, spawn_key=given.spawn_key).spawn(count)


def _limited(stop: StoppingCriterion, seconds: float) -> StoppingCriterion:
    return AnyOf(MaxRuntime(seconds), stop) if math.isfinite(seconds) else stop


@dataclass(frozen=True)
class _Until(StoppingCriterion):
    """Stop as a criterion says, or once an event is set."""

    event: threading.Event
    stop: StoppingCriterion

    def start(self) -> Stopper:
        return _StartedUntil(self.event, self.stop.start())

    def allowance(self, progress: Progress) -> Allowance:
        return _StartedUntil(self.event, self.stop).allowance(progress)


@dataclass(frozen=True)
class _StartedUntil(Stopper):
    event: threading.Event
    stopper: Stopper

    def allowance(self, progress: Progress) -> Allowance:
        return Allowance(seconds=0.0) if self.event.is_set() else self.stopper.allowance(progress)


@dataclass(frozen=True)
class _Resumed(StoppingCriterion):
    """Stop as a criterion says that knows nothing of breaks: the run stood at `before` when it was resumed."""

    stop: StoppingCriterion
    before: Progress

    def allowance(self, progress: Progress) -> Allowance:
        before = self.before
        improved_at = before.iterations + progress.improved_at if progress.value < before.value else before.improved_at
        whole = replace(progress, iterations=before.iterations + progress.iterations, improved_at=improved_at)
        return self.stop.start().allowance(whole)
