"""The runs of a comparison, which benchopt defines, does and caches; where they are done is for us to say."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from benchopt._generate_runs import generate_run_kwargs
from benchopt.benchmark import Benchmark
from benchopt.runner import FailedRun, run_one_to_cvg
from benchopt.utils.run_context import RunContext
from benchopt.utils.terminal_output import TerminalOutput

from moe_search.bench.comparison.run_processes import Call, Died, completed

# benchopt stops a run after so many points of its curve; our runs end by themselves.
MANY_POINTS = 1_000_000
# What does not belong to the key of a run in the cache, as benchopt has it.
NO_KEY = ["force", "terminal", "run_context"]


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
        # benchopt raises it so that the run is not cached.
        return [], None, failure.status, ""


def _cached(benchmark: Benchmark) -> Callable[..., Any]:
    function: Callable[..., Any] = benchmark.cache(run_one_to_cvg, ignore=NO_KEY)
    return function
