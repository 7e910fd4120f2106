"""The runs of a comparison: benchopt defines, does and caches them, each in a process that may die alone."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pandas as pd
from benchopt._generate_runs import generate_run_kwargs
from benchopt.benchmark import Benchmark
from benchopt.runner import FailedRun, run_one_to_cvg
from benchopt.utils.dynamic_modules import _load_class_from_module
from benchopt.utils.run_context import RunContext
from benchopt.utils.terminal_output import TerminalOutput
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import ParallelBackendBase

# benchopt stops a run after so many points of its curve; our runs end by themselves.
MANY_POINTS = 1_000_000
# What does not belong to the key of a run in the cache, as benchopt has it.
NO_KEY = ["force", "terminal", "run_context"]
# A process that has nothing to do for so long ends, also where the comparison was killed.
IDLE_SECONDS = 60.0

Call = dict[str, Any]
Launch = Callable[[Callable[[Call], Any], Call], Any]


class SearchBenchmark(Benchmark):
    """The benchmark of this folder, whose solvers are in files that stand elsewhere.

    Parameters
    ----------
    solver_files : list of Path
        Files that each define a class ``Solver``.
    """

    def __init__(self, solver_files: list[Path]) -> None:
        super().__init__(Path(__file__).parent, seed=0)
        self.solver_files = solver_files

    def get_solvers(self) -> list[Any]:
        """Return the classes of all solvers, by name."""
        classes = [_load_class_from_module(self.benchmark_dir, path, "Solver") for path in self.solver_files]
        return sorted(classes, key=lambda solver: solver.name.lower())


@dataclass(frozen=True)
class Died:
    """What came of a run whose process died: the reason, as far as it is known."""

    reason: str


def finish_runs(
    benchmark: Benchmark,
    solvers: Any,
    datasets: Any,
    objectives: Any,
    repetitions: int,
    n_jobs: int,
    backend: str,
    folder: Path,
) -> tuple[pd.DataFrame, dict[tuple[str, str, int], str]]:
    """Do the runs that are not in the cache yet, and show how they go.

    ``benchopt.run_benchmark`` does the same, but all in one pool of processes, of which no run is left when one dies.

    Parameters
    ----------
    benchmark : Benchmark
    solvers, datasets, objectives
        What the benchmark made of the patterns.
    repetitions, n_jobs : int
    backend : {"loky", "dask"}
        See `completed`.
    folder : Path
        Where the runs may leave files.

    Returns
    -------
    rows : DataFrame
        The points that benchopt recorded; empty if no run came to an end.
    died : dict
        Why there is none of a run whose process died, by data set, solver and repetition.
    """
    terminal = TerminalOutput(repetitions, show_progress=False)
    calls = generate_run_kwargs(
        benchmark,
        solvers=solvers,
        forced_solvers=(),
        datasets=datasets,
        objectives=objectives,
        n_repetitions=repetitions,
        max_runs=MANY_POINTS,
        terminal=terminal,
        run_context=RunContext(run_output_base=folder),
    )
    cached: deque[tuple[Call, Any]] = deque()
    run_cached = _cached(benchmark)

    def not_cached() -> Iterator[Call]:
        for call in calls:
            if run_cached.check_call_in_cache(**call):  # type: ignore[attr-defined]
                cached.append((call, run_cached(**call)))
            else:
                yield call

    rows: list[dict[str, Any]] = []
    died: dict[tuple[str, str, int], str] = {}

    def take(call: Call, outcome: Any | Died, is_cached: bool) -> None:
        meta = call["meta"]
        terminal.set(dataset=meta["dataset_name"], objective=meta["objective_name"], solver=meta["solver_name"])
        if isinstance(outcome, Died):
            died[meta["dataset_name"], meta["solver_name"], meta["idx_rep"]] = outcome.reason
            outcome = [], None, "error", ""
        points, _, status, reason = outcome
        rows.extend(points)
        terminal.show_status(status=status, reason=reason, cached=is_cached)

    for call, outcome in completed(run, not_cached(), n_jobs, backend):
        while cached:
            take(*cached.popleft(), is_cached=True)
        take(call, outcome, is_cached=False)
    while cached:
        take(*cached.popleft(), is_cached=True)
    if not rows:
        return pd.DataFrame(columns=["dataset_name", "solver_name", "idx_rep", "time", "objective_value"]), died
    return pd.DataFrame(rows), died


def run(call: Call) -> Any:
    """Do one run: return its points, their key, how it ended, and why if it was skipped."""
    try:
        return _cached(call["benchmark"])(**call)
    except FailedRun as failure:
        # benchopt raises this for a run that it does not cache.
        return [], None, failure.status, ""


def _cached(benchmark: Benchmark) -> Callable[..., Any]:
    function: Callable[..., Any] = benchmark.cache(run_one_to_cvg, ignore=NO_KEY)
    return function


def completed(
    run: Callable[[Call], Any], calls: Iterable[Call], n_jobs: int, backend: str
) -> Iterator[tuple[Call, Any | Died]]:
    """Yield every call with what `run` returned for it, or `Died`, in the order of completion.

    Parameters
    ----------
    run : callable
        A function at the top level of a module, so that a process can import it.
    calls : iterable of dict
        Its arguments; read as far as there are processes to take them.
    n_jobs : int
        Processes.
    backend : {"loky", "dask"}
        Processes of joblib, each a pool of its own, or workers of a local Dask cluster.
    """
    with _loky(n_jobs) if backend == "loky" else _dask(n_jobs) as launch:
        # The threads only wait.
        threads = Parallel(n_jobs, backend="threading", return_as="generator_unordered", batch_size=1)
        yield from threads(delayed(_with_call)(launch, run, call) for call in calls)


def _with_call(launch: Launch, run: Callable[[Call], Any], call: Call) -> tuple[Call, Any | Died]:
    return call, launch(run, call)


@contextmanager
def _loky(n_jobs: int) -> Iterator[Launch]:
    """Keep as many pools of one process each: loky ends all runs of a pool in which a process dies."""
    # Every process gets as many threads as joblib would give it.
    threads = str(max(cpu_count() // n_jobs, 1))
    environment = {name: os.environ.get(name, threads) for name in ParallelBackendBase.MAX_NUM_THREADS_VARS}
    pools: list[ProcessPoolExecutor] = []
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def add() -> None:
        # Its process starts with the first run.
        pools.append(ProcessPoolExecutor(1, timeout=IDLE_SECONDS, env=environment))
        idle.put(pools[-1])

    def launch(run: Callable[[Call], Any], call: Call) -> Any | Died:
        pool = idle.get()
        try:
            outcome = pool.submit(run, call).result()
        except BrokenExecutor as error:
            pools.remove(pool)
            pool.shutdown()
            add()
            return Died(_reason(error))
        except BaseException:
            idle.put(pool)
            raise
        idle.put(pool)
        return outcome

    for _ in range(n_jobs):
        add()
    try:
        yield launch
    finally:
        for pool in pools:
            pool.shutdown(kill_workers=True)


@contextmanager
def _dask(n_jobs: int) -> Iterator[Launch]:
    import dask
    from distributed import Client
    from distributed.scheduler import KilledWorker

    # A worker does one run at a time, and none is done a second time after it killed a worker.
    one = {"run": 1}
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        Client(n_workers=n_jobs, threads_per_worker=1, resources=one) as client,  # type: ignore[no-untyped-call]
    ):

        def launch(run: Callable[[Call], Any], call: Call) -> Any | Died:
            try:
                return client.submit(run, call, pure=False, resources=one).result()
            except KilledWorker:
                return Died("its process died")

        yield launch


def _reason(error: BaseException) -> str:
    """Return what loky says of a process that died; with how it ended, such as ``SIGSEGV(-11)``, if it knows."""
    ending = re.search(r"\{(.+)\}", str(error))
    return f"its process died: {ending[1]}" if ending else f"its process died: {error}"
