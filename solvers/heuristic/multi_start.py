"""Independent runs of a solver side by side."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.background import run_watched
from moe_search.solvers.engine.clock import Clock
from moe_search.solvers.engine.incumbent import Incumbent, OnImprovement
from moe_search.solvers.engine.parameters import require_count, store_plain
from moe_search.solvers.engine.result import Result, Status, reached
from moe_search.solvers.engine.solver import Solver, reported_seed
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

    Raises
    ------
    TypeError, ValueError
        If `solver` is no solver, `runs` is not positive, or `n_jobs` is no int or 0.

    Notes
    -----
    Run i has the i-th seed spawned from the given one, and of equal values the first run's is kept, so that the result
    depends on the seed alone, whatever `n_jobs`, as long as no clock ends a run. A limit of seconds is one for the
    whole: where runs have to wait for each other, each gets its share of what is left, and on threads no run begins
    once nothing is. All other criteria hold for each run. All runs start at `initial` if there is one. Iterations,
    moves, restarts and statistics are sums; the trajectory is that of the best run. On threads every incumbent that is
    the best of all runs is shown, and Ctrl-C ends all runs and returns the best; other backends show the result only,
    and pass Ctrl-C on.
    """

    solver: Solver
    runs: int = 4
    n_jobs: int = -1

    def __post_init__(self) -> None:
        store_plain(self)
        if not isinstance(self.solver, Solver):
            raise TypeError(f"solver must be a Solver such as TabuSearch(), got {type(self.solver).__name__}")
        require_count("runs", self.runs)
        if isinstance(self.n_jobs, bool) or not isinstance(self.n_jobs, int):
            raise TypeError(f"n_jobs must be an int, got {type(self.n_jobs).__name__}")
        if self.n_jobs == 0:
            raise ValueError("n_jobs must be positive, or negative to count from the number of processors, got 0")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what the solver refuses."""
        return self.solver.refuses(problem)

    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Run them all; see `Solver.solve`."""
        # Imported here: it takes longer than many a search, and no other solver needs it.
        from joblib import Parallel, delayed, effective_n_jobs
        from joblib.parallel import get_active_backend

        clock = Clock()
        seeds = spawned_seeds(seed, self.runs)
        workers = max(effective_n_jobs(self.n_jobs), 1)
        seconds = max(stop.start().allowance(Progress()).seconds, 0.0)
        if getattr(get_active_backend(prefer="threads")[0], "supports_sharedmem", False):
            board = _Board(on_improvement)
            watched = _Until(board.cancelled, stop)
            results: list[Result] = []

            def one(number: int) -> Result | None:
                left = seconds - clock.seconds()
                if number and (left <= 0.0 or board.cancelled.is_set()):
                    return None
                waves = math.ceil((self.runs - number) / workers)
                own = _limited(watched, max(left, 0.0) / waves) if waves > 1 else watched
                return self.solver.run(problem, own, seeds[number], initial, board.take)

            def work() -> None:
                found = Parallel(n_jobs=self.n_jobs, backend="threading")(map(delayed(one), range(self.runs)))
                results.extend(result for result in found if result is not None)

            interrupted = run_watched(work, board.show, board.cancelled.set)
            return self._joined(problem, results, clock, seed, interrupted)
        own = _limited(stop, seconds / math.ceil(self.runs / workers))
        tasks = [delayed(self.solver.run)(problem, own, each, initial, None) for each in seeds]
        joined = self._joined(problem, Parallel(n_jobs=self.n_jobs, prefer="threads")(tasks), clock, seed, False)
        if on_improvement is None:
            return joined
        last = joined.trajectory[-1]
        try:
            on_improvement(Incumbent(last.seconds, last.iteration, joined.value, joined.permutation))
        except KeyboardInterrupt:
            return replace(joined, status="optimal" if joined.status == "optimal" else "interrupted")
        return joined

    def _joined(
        self,
        problem: Problem,
        results: Sequence[Result],
        clock: Clock,
        seed: int | np.random.SeedSequence,
        interrupted: bool,
    ) -> Result:
        best = min(results, key=lambda result: result.value)
        bounds = [result.bound for result in results if result.bound is not None]
        bound = max(bounds) if bounds else None
        proved = reached(best.value, bound, problem.integral)
        status: Status = "interrupted" if interrupted else "feasible"
        statistics: Counter[str] = Counter()
        for result in results:
            statistics.update(result.statistics)
        return replace(
            best,
            bound=bound,
            status="optimal" if proved else status,
            iterations=sum(result.iterations for result in results),
            moves=sum(result.moves for result in results),
            restarts=sum(result.restarts for result in results),
            runtime=max(clock.seconds(), best.runtime),
            seed=reported_seed(seed),
            solver=repr(self),
            statistics=dict(statistics),
        )


def spawned_seeds(seed: int | np.random.SeedSequence, count: int) -> list[np.random.SeedSequence]:
    """Return independent seeds, the same ones at every call."""
    given = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    # SeedSequence.spawn counts its calls in the sequence: a copy starts afresh.
    return np.random.SeedSequence(given.entropy, spawn_key=given.spawn_key).spawn(count)


def _limited(stop: StoppingCriterion, seconds: float) -> StoppingCriterion:
    return AnyOf(MaxRuntime(seconds), stop) if math.isfinite(seconds) else stop


class _Board:
    """Where runs in threads leave their incumbents, for the caller's thread to show the best of all."""

    def __init__(self, on_improvement: OnImprovement | None) -> None:
        self.cancelled = threading.Event()
        self.on_improvement = on_improvement
        self.lock = threading.Lock()
        self.best: Incumbent | None = None
        self.shown: Incumbent | None = None

    def take(self, incumbent: Incumbent) -> None:
        with self.lock:
            if self.best is None or incumbent.value < self.best.value:
                self.best = incumbent

    def show(self) -> None:
        best = self.best
        if self.on_improvement is not None and best is not None and best is not self.shown:
            self.shown = best
            self.on_improvement(best)


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
