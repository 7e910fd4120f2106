"""Independent runs of a solver side by side."""

from __future__ import annotations

import math
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moe_search.checks import require_integer
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.background import run_watched
from moe_search.solvers.engine.result import Incumbent, Result
from moe_search.solvers.engine.run import Clock, Run
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import Allowance, AnyOf, MaxRuntime, Progress, Stopper, StoppingCriterion


@dataclass(frozen=True)
class MultiStart(Solver):
    """Run a solver several times with independent seeds, at once as far as there are workers; keep the best result.

    Parameters
    ----------
    solver : Solver
        What to run.
    runs : int, default 4
        How many times.
    n_jobs : int, default -1
        How many at once, as in joblib: -1 for all processors. They are threads, since compiled searches hold no lock;
        inside ``joblib.parallel_config(backend="loky")`` (or "dask", "ray") the runs go to that backend.

    Notes
    -----
    Run i has the i-th seed spawned from the given one, and of equal values the first run's is kept, so that the result
    depends on the seed alone, whatever `n_jobs`, as long as no clock ends a run. A limit of seconds is one for the
    whole: where runs have to wait for each other, each gets its share of what is left, and on threads no run begins
    once nothing is. All other criteria hold for each run. All runs start at `initial` if there is one. Iterations,
    moves, restarts and statistics are sums; the trajectory is that of the best run. On threads every incumbent that is
    the best of all runs is shown, and Ctrl-C ends all runs and returns the best; other backends show the result only,
    and pass Ctrl-C on.

    Examples
    --------
    >>> import moe_search as ms
    >>> solver = ms.MultiStart(ms.FrankWolfe(), runs=3)
    >>> solver.solve(ms.random_quadratic(8, seed=0), ms.MaxIterations(2)).iterations
    6
    """

    takes: ClassVar[type] = Problem
    solver: Solver
    runs: int = 4
    n_jobs: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver must be a Solver such as TabuSearch(), got {type(self.solver).__name__}")
        require_integer("runs", self.runs)
        if require_integer("n_jobs", self.n_jobs, -sys.maxsize) == 0:
            raise ValueError("n_jobs must be positive, or negative to count from the number of processors, got 0")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what the solver refuses."""
        return self.solver.refuses(problem)

    def search(self, run: Run) -> Result:
        """Run them all; see `Solver.search`."""
        # Imported here: it takes longer than many a search, and no other solver needs it.
        from joblib import Parallel, delayed, effective_n_jobs
        from joblib.parallel import get_active_backend

        seeds = spawned_seeds(run.seed, self.runs)
        workers = max(effective_n_jobs(self.n_jobs), 1)
        seconds = run.stop.start().allowance(Progress()).seconds
        cancelled = threading.Event()
        watched = _Until(cancelled, run.stop)
        results: list[Result] = []

        def left() -> float:
            return max(seconds - run.clock.seconds(), 0.0)

        def take(incumbent: Incumbent) -> None:
            run.offer(incumbent.solution, incumbent.value, incumbent.iterations, incumbent.seconds)

        def one(number: int) -> Result | None:
            if number and (left() <= 0.0 or cancelled.is_set()):
                return None
            share = run.clock.seconds() + left() / math.ceil((self.runs - number) / workers)
            stop = _limited(watched, share)
            own = self.solver.begin_run(run.problem, stop, seeds[number], run.initial, take)
            # It counts from the start of the whole, but for what it compiles.
            own.clock = Clock(run.clock.started)
            return self.solver.search(own)

        def work() -> None:
            found = Parallel(n_jobs=self.n_jobs, backend="threading")(map(delayed(one), range(self.runs)))
            results.extend(result for result in found if result is not None)

        if getattr(get_active_backend(prefer="threads")[0], "supports_sharedmem", False):
            run.interrupted = run_watched(work, run.show, cancelled.set)
            return _joined(run, results)
        before = run.clock.seconds()
        stop = _limited(run.stop, left() / math.ceil(self.runs / workers))
        tasks = [delayed(self.solver.solve)(run.problem, stop, each, run.initial) for each in seeds]
        joined = _joined(run, Parallel(n_jobs=self.n_jobs, prefer="threads")(tasks), before)
        try:
            run.show()
        except KeyboardInterrupt:
            return replace(joined, status="optimal" if joined.status == "optimal" else "interrupted")
        return joined


def _joined(run: Run, results: Sequence[Result], before: float = 0.0) -> Result:
    """Return the best of all results, whose clocks began some seconds `before`, with the sums of what they counted."""
    best = min(results, key=lambda result: result.value)
    run.incumbent, run.value = best.solution, best.value
    run.trajectory = [point._replace(seconds=point.seconds + before) for point in best.trajectory]
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
