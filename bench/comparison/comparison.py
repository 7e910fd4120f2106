"""One comparison: every solver on every data set, run and cached by benchopt, and what came out as two tables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moe_search.bench.comparison.settings import SUITES, ComparisonSettings
from moe_search.bench.datasets.qaplib import VARIABLE

OBJECTIVE = "Assignment search"
LATE_SHARE, LATE_SECONDS = 0.05, 0.05
RUN_COLUMNS = (
    "dataset problem size solver repetition status reason value seconds bound best_known".split()  # noqa: SIM905
)
CURVE_COLUMNS = "dataset solver repetition seconds value".split()  # noqa: SIM905


@dataclass(frozen=True, eq=False)
class Comparison:
    """What came out.

    Attributes
    ----------
    runs : DataFrame
        One row a run: dataset, problem (class), size, solver, repetition, status (done, late, failed or skipped),
        reason, value (infinite unless done), seconds (of the last improvement), bound, best_known.
    curves : DataFrame
        One row for each improvement of a run: dataset, solver, repetition, seconds, value.
    seconds : float
        The limit of a run. What was found after it (by solvers that cannot be stopped) does not count.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    seconds: float


def run_comparison(settings: ComparisonSettings) -> Comparison:
    """Run what is not in the cache yet, and return the comparison.

    A run that raises, or whose process dies, is marked failed and will be tried again next time; the others go on. A
    comparison that was killed loses the runs in progress only.
    """
    import click

    # Imported here: what reads and reports a comparison needs no benchopt.
    from moe_search.bench.comparison.dataset_files import dataset_files
    from moe_search.bench.comparison.runs import SearchBenchmark, cache_folder, find_cells, finish_runs, work_folder
    from moe_search.bench.comparison.solver_files import our_solver_files, solver_patterns

    cache = cache_folder()
    environment = {"BENCHOPT_CACHE": str(cache)}
    if settings.qaplib is not None:
        environment[VARIABLE] = str(settings.qaplib.resolve())
    patterns = list(settings.datasets or SUITES[settings.suite].datasets)
    files = [pattern for path in settings.solver_files for pattern in solver_patterns(path, cache / "solver_files")]
    with _environment(environment), work_folder(cache) as work:
        benchmark = SearchBenchmark(
            our_solver_files(cache / "solver_files"), dataset_files=dataset_files(cache / "dataset_files")
        )
        try:
            selected = {
                "solvers": benchmark.check_solver_patterns(
                    [*(settings.solvers or SUITES[settings.suite].solvers), *files]
                ),
                "datasets": benchmark.check_dataset_patterns(patterns),
                "objectives": benchmark.check_objective_filters([f"{OBJECTIVE}[seconds={settings.limit}]"]),
            }
            cells = find_cells(selected["solvers"], selected["datasets"], settings.limit)
        except (click.ClickException, ValueError) as error:
            raise ValueError(getattr(error, "message", str(error))) from error
        rows, failures = finish_runs(benchmark, selected, cells, settings, work / "runs")
        return collect(cells, rows, settings, failures)


def collect(
    cells: list[dict[str, Any]],
    rows: pd.DataFrame,
    settings: ComparisonSettings,
    failures: dict[tuple[str, str, int], str],
) -> Comparison:
    """Make the two tables of a comparison.

    Parameters
    ----------
    cells : list of dict
        Every pair of data set and solver: dataset, problem, size, best_known, solver, and reason if it is skipped.
    rows : DataFrame
        The points that benchopt recorded.
    settings
    failures : dict
        What a run raised, or how its process died, by data set, solver and repetition.
    """
    latest = settings.limit * (1 + LATE_SHARE) + LATE_SECONDS
    points = dict(iter(rows.groupby(["dataset_name", "solver_name", "idx_rep"])))
    runs, curves = [], []
    for cell in cells:
        for repetition in range(settings.runs_of_each):
            run = cell | {"repetition": repetition, "value": np.inf, "seconds": np.nan, "bound": np.nan}
            key = cell["dataset"], cell["solver"], repetition
            if cell["reason"] is not None:
                run["status"] = "skipped"
            elif key not in points:
                run |= {"status": "failed", "reason": failures.get(key, "it gave no answer")}
            else:
                group = points[key]
                run["bound"] = group["objective_bound"].astype(float).max()
                in_time = group[group["time"] <= latest].sort_values("time")
                best = in_time["objective_value"].cummin()
                steps = in_time[best < best.shift(fill_value=np.inf)]
                run |= {"status": "done"} if len(steps) else {"status": "late", "reason": "no answer within the limit"}
                for seconds, value in zip(steps["time"], steps["objective_value"], strict=True):
                    run |= {"value": value, "seconds": seconds}
                    curves.append(dict(zip(CURVE_COLUMNS, (*key, seconds, value), strict=True)))
            runs.append(run)
    return Comparison(
        pd.DataFrame(runs, columns=RUN_COLUMNS), pd.DataFrame(curves, columns=CURVE_COLUMNS), settings.limit
    )


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, which the workers inherit, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
