"""The runs of a comparison: benchopt defines, does and caches them, each in a process that may die alone.

They leave files in benchopt's cache, and in a folder that lasts as long as the comparison.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pandas as pd
from benchopt._generate_runs import generate_run_kwargs
from benchopt.benchmark import Benchmark, _list_parametrized_classes
from benchopt.runner import FAILURE_STATUS, FailedRun, run_one_to_cvg
from benchopt.utils.dynamic_modules import _load_class_from_module
from benchopt.utils.run_context import RunContext, _sanitize_path_component
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import ParallelBackendBase

import moe_search
from moe_search.bench.comparison.run_log import QuietTerminal, RunLog, plan, skips
from moe_search.bench.comparison.settings import ComparisonSettings
from moe_search.bench.comparison.solver_files import AnytimeSolver
from moe_search.solvers.engine.result import installed_versions

# benchopt stops a run after so many points of its curve; our runs end by themselves.
MANY_POINTS = 1_000_000
# What does not belong to the key of a run in the cache, as benchopt has it.
NO_KEY = ["force", "terminal", "run_context"]
# A process that has nothing to do for so long ends, also where the comparison was killed.
IDLE_SECONDS = 60.0
LOCK = "lock"

Call = dict[str, Any]
Launch = Callable[[Call], Any]


class SearchBenchmark(Benchmark):
    """The benchmark of this folder, whose solvers and data sets are in files that stand elsewhere.

    Parameters
    ----------
    solver_files, dataset_files : list of Path
        Files that each define a class ``Solver`` or ``Dataset``.
    """

    def __init__(self, solver_files: list[Path], *, dataset_files: list[Path]) -> None:
        super().__init__(Path(__file__).parent, seed=0)
        self.solver_files, self.dataset_files = solver_files, dataset_files

    def get_solvers(self) -> list[Any]:
        """Return the classes of all solvers, by name."""
        return self._load(self.solver_files, "Solver")

    def get_datasets(self) -> list[Any]:
        """Return the classes of all data sets, by name."""
        return self._load(self.dataset_files, "Dataset")

    def _load(self, paths: list[Path], name: str) -> list[Any]:
        classes = [_load_class_from_module(self.benchmark_dir, path, name) for path in paths]
        return sorted(classes, key=lambda each: each.name.lower())


def find_cells(solvers: Any, datasets: Any, seconds: float) -> list[dict[str, Any]]:
    """Return every pair of a data set that is there and a solver that is installed, and why it is skipped if it is."""
    methods = [solver for solver, installed in _list_parametrized_classes(*solvers) if installed]
    _require_names_of_their_own("solvers", [str(solver) for solver in methods])
    there = [dataset for dataset, installed in _list_parametrized_classes(*datasets) if installed]
    _require_names_of_their_own("data sets", [str(dataset) for dataset in there])
    found = []
    for dataset in there:
        data = dataset.get_data()
        problem = data["problem"]
        if problem is None:
            continue
        for solver in methods:
            skipped, reason = solver.skip(problem=problem, seconds=seconds)
            found.append(
                {
                    "dataset": str(dataset),
                    "problem": type(problem).__name__,
                    "size": problem.size,
                    "best_known": np.nan if data["best_known"] is None else float(data["best_known"]),
                    "solver": str(solver),
                    "reason": (reason or "it takes no such problem") if skipped else None,
                }
            )
    if not found:
        raise ValueError("there is nothing to compare: no data set of the selection is there, or no solver installed")
    return found


def _require_names_of_their_own(what: str, names: list[str]) -> None:
    """Refuse two of a name, as of a folder of a run: the tables could not keep them apart."""
    counts = Counter(map(_sanitize_path_component, names))
    twice = [name for name in names if counts[_sanitize_path_component(name)] > 1]
    if twice:
        named = ", ".join(sorted(set(twice)))
        raise ValueError(f"{what} must have names of their own, got {len(twice)} named {named}")


@dataclass(frozen=True)
class Died:
    """What came of a run whose process died: the reason, as far as it is known."""

    reason: str


def finish_runs(
    benchmark: Benchmark,
    selected: dict[str, Any],
    cells: list[dict[str, Any]],
    settings: ComparisonSettings,
    folder: Path,
) -> tuple[pd.DataFrame, dict[tuple[str, str, int], str]]:
    """Do the runs that are not in the cache yet, and show how they go.

    ``benchopt.run_benchmark`` does the same, but all in one pool of processes, of which no run is left when one dies.

    Parameters
    ----------
    benchmark
    selected : dict
        What the benchmark made of the patterns: its ``solvers``, ``datasets`` and ``objectives``.
    cells : list of dict
        What `find_cells` found among them.
    settings
    folder : Path
        Where the runs may leave files.

    Returns
    -------
    rows : DataFrame
        The points that benchopt recorded; empty if no run came to an end.
    failures : dict
        What a run raised, or how its process died, by data set, solver and repetition.
    """
    skipped = {(cell["dataset"], cell["solver"]) for cell in cells if cell["reason"] is not None}
    for line in (plan(cells, settings.runs_of_each, settings.limit, settings.n_jobs), *skips(cells)):
        print(line, flush=True)
    calls = generate_run_kwargs(
        benchmark,
        **selected,
        forced_solvers=(),
        n_repetitions=settings.runs_of_each,
        max_runs=MANY_POINTS,
        terminal=QuietTerminal(show_progress=False),
        run_context=RunContext(run_output_base=folder),
    )
    cached: deque[tuple[Call, Any]] = deque()
    run_cached = _cached(benchmark)

    def not_cached() -> Iterator[Call]:
        for call in calls:
            if (call["meta"]["dataset_name"], call["meta"]["solver_name"]) in skipped:
                continue
            if run_cached.check_call_in_cache(**call):  # type: ignore[attr-defined]
                cached.append((call, run_cached(**call)))
            else:
                yield call

    rows: list[dict[str, Any]] = []
    failures: dict[tuple[str, str, int], str] = {}

    log = RunLog(cells, settings.runs_of_each)
    solvers = [solver for solver, installed in _list_parametrized_classes(*selected["solvers"]) if installed]

    def take(call: Call, outcome: Any | Died, is_cached: bool) -> None:
        meta = call["meta"]
        key = meta["dataset_name"], meta["solver_name"], meta["idx_rep"]
        if isinstance(outcome, Died):
            failures[key] = outcome.reason
        elif outcome[2] in FAILURE_STATUS:
            note = _error_file(folder, meta)
            failures[key] = note.read_text(encoding="utf-8") if note.is_file() else "it raised; its output says what"
        else:
            rows.extend(outcome[0])
        log.take(*key, failure=failures.get(key), is_cached=is_cached)

    for call, outcome in completed(not_cached(), settings.n_jobs, settings.backend, solvers):
        while cached:
            take(*cached.popleft(), is_cached=True)
        take(call, outcome, is_cached=False)
    while cached:
        take(*cached.popleft(), is_cached=True)
    log.end()
    if not rows:
        return pd.DataFrame(columns=["dataset_name", "solver_name", "idx_rep", "time", "objective_value"]), failures
    return pd.DataFrame(rows), failures


def _error_file(folder: Path, meta: dict[str, Any]) -> Path:
    """Return where `AnytimeSolver` writes what a run raised."""
    names = [_sanitize_path_component(meta[f"{part}_name"]) for part in ("dataset", "objective", "solver")]
    return folder.joinpath(*names, f"rep_{meta['idx_rep']}", "error.txt")


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
    calls: Iterable[Call], n_jobs: int, backend: str, solvers: Sequence[Any] = ()
) -> Iterator[tuple[Call, Any | Died]]:
    """Yield every call with what `run` returned for it, or `Died`, in the order of completion.

    Calls are read as far as there are processes to take them: processes of joblib, each a pool of its own, which first
    imports what the solvers need, or workers of a local Dask cluster.
    """
    with _loky(n_jobs, solvers) if backend == "loky" else _dask(n_jobs) as launch:
        # The threads only wait.
        threads = Parallel(n_jobs, backend="threading", return_as="generator_unordered", batch_size=1)
        yield from threads(delayed(lambda call: (call, launch(call)))(call) for call in calls)


def _load(solvers: Sequence[Any]) -> None:
    """Import what solvers import when they are made: to loky, torch in a later run is a leak, and ends the process."""
    for solver in solvers:
        if isinstance(solver, AnytimeSolver):
            # What it raises belongs to its own runs.
            with suppress(Exception):
                solver.solver()


@contextmanager
def _loky(n_jobs: int, solvers: Sequence[Any]) -> Iterator[Launch]:
    """Keep as many pools of one process each: loky ends all runs of a pool in which a process dies."""
    # Every process gets as many threads as joblib would give it.
    threads = str(max(cpu_count() // n_jobs, 1))
    environment = {name: os.environ.get(name, threads) for name in ParallelBackendBase.MAX_NUM_THREADS_VARS}
    pools: list[ProcessPoolExecutor] = []
    idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()

    def add() -> None:
        # Its process starts with the first run.
        pools.append(
            ProcessPoolExecutor(1, timeout=IDLE_SECONDS, env=environment, initializer=_load, initargs=(solvers,))
        )
        idle.put(pools[-1])

    def launch(call: Call) -> Any | Died:
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

        def launch(call: Call) -> Any | Died:
            try:
                return client.submit(run, call, pure=False, resources=one).result()
            except KilledWorker:
                return Died("its process died")

        yield launch


def _reason(error: BaseException) -> str:
    """Return what loky says of a process that died; with how it ended, such as ``SIGSEGV(-11)``, if it knows."""
    ending = re.search(r"\{(.+)\}", str(error))
    return f"its process died: {ending[1]}" if ending else f"its process died: {error}"


def cache_folder() -> Path:
    """Return the folder, made if need be: below XDG_CACHE_HOME or ``~/.cache``.

    Its name depends on our sources and on the versions of what a result depends on: benchopt's own key knows neither,
    and would hand out the runs of an older solver.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "moe-search" / "bench" / _digest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def work_folder(cache: Path) -> Iterator[Path]:
    """Make a folder for what a comparison needs no longer than it lasts.

    It is locked for so long. Those of comparisons that were killed, in the folders of other sources too, are removed.
    """
    # Nobody may come between making a folder and locking it.
    with FileLock(cache.parent / LOCK):
        for folder in cache.parent.glob("*/work-*"):
            _remove_if_dead(folder)
        work = Path(tempfile.mkdtemp(prefix="work-", dir=cache))
        alive = FileLock(work / LOCK)
        alive.acquire()
    try:
        yield work
    finally:
        alive.release()
        shutil.rmtree(work, ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    # A file that is locked, or cannot be, says that somebody is alive.
    with suppress(OSError, NotImplementedError), FileLock(folder / LOCK, timeout=0):
        shutil.rmtree(folder)


def _digest() -> str:
    home = Path(moe_search.__file__).parent
    digest = hashlib.sha256(repr(installed_versions()).encode())
    for part in ("problems", "solvers", "bench"):
        for path in sorted((home / part).rglob("*.py")):
            digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
