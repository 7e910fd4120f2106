"""Speed of the local search: deltas a second against the textbook, local optima against scipy, start-up.

Run ``python -m moe_search.bench.local_search_speed --qaplib FOLDER``. All ratios are taken in one run, on one core.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy.optimize import quadratic_assignment

import moe_search as ms
from moe_search.bench.textbook import SymmetricTextbookQuadratic, TextbookQuadratic

ROUNDS = 5
STARTS = 30
FIRST_RESULT = """
import sys, time
started = time.perf_counter()
import moe_search as ms
result = ms.solve(ms.random_quadratic(30, seed=0), ms.LocalSearch(), ms.MaxIterations(1000))
seconds = time.perf_counter() - started
print(seconds, *[name for name in ("torch", "ortools", "matplotlib") if name in sys.modules])
"""


def deltas(problem: ms.QuadraticAssignment, seconds: float) -> float:
    """Return the deltas a second of first-improvement swap search with restarts."""
    result = ms.LocalSearch().solve(problem, ms.MaxRuntime(seconds), seed=0)
    return result.iterations / result.runtime


def delta_table(folder: Path, seconds: float) -> Table:
    """Measure our kernels against the textbook's in the same search, in turns; medians of the rounds."""
    table = Table("instance", "ours, M/s", "textbook, M/s", "ratio", "symmetric textbook, M/s", "ratio", title="Deltas")
    for name in ("tai30a", "tai50a", "sko72", "tai100a"):
        ours = ms.read_qaplib(folder / f"{name}.dat")
        peers = [ours] + [kind(ours.flow, ours.distance) for kind in (TextbookQuadratic, SymmetricTextbookQuadratic)]
        stop = ms.MaxIterations(20_000)
        values = {ms.LocalSearch().solve(peer, stop, seed=0).value for peer in peers}
        if len(values) != 1:
            raise RuntimeError(f"the kernels disagree on {name}: {values}")
        rates = [[deltas(peer, seconds / ROUNDS) / 1e6 for peer in peers] for _ in range(ROUNDS)]
        ours_rate, general, symmetric = (statistics.median(column) for column in zip(*rates, strict=True))
        table.add_row(
            name,
            f"{ours_rate:.0f}",
            f"{general:.1f}",
            f"{ours_rate / general:.1f}x",
            f"{symmetric:.1f}",
            f"{ours_rate / symmetric:.1f}x",
        )
    return table


def optimum_table(folder: Path, seconds: float) -> Table:
    """Measure the time to one local optimum from a random start, and its gap, against scipy's 2opt."""
    table = Table(
        "instance", "ours, us", "scipy 2opt, us", "ratio", "gap ours, %", "gap scipy, %", title="One local optimum"
    )
    known = best_known(folder)
    for name in ("nug12", "nug30", "tai30a", "tai50a"):
        problem = ms.read_qaplib(folder / f"{name}.dat")
        run = ms.LocalSearch().solve(problem, ms.MaxRuntime(seconds), seed=0)
        ours = run.runtime / (run.restarts + 1)
        descent = ms.LocalSearch(restarts=False)
        values = [descent.solve(problem, ms.MaxRuntime(60.0), seed=seed).value for seed in range(STARTS)]
        times, peers = [], []
        for seed in range(3 if problem.size > 40 else 10):
            before = time.perf_counter()
            options = {"rng": np.random.default_rng(seed)}
            peers.append(quadratic_assignment(problem.flow, problem.distance, method="2opt", options=options).fun)
            times.append(time.perf_counter() - before)
        gaps = [100 * (statistics.mean(found) / known[name] - 1) for found in (values, peers)]
        scipy_seconds = statistics.mean(times)
        table.add_row(
            name,
            f"{1e6 * ours:.1f}",
            f"{1e6 * scipy_seconds:.0f}",
            f"{scipy_seconds / ours:.0f}x",
            f"{gaps[0]:.2f}",
            f"{gaps[1]:.2f}",
        )
    return table


def start_up_table() -> Table:
    """Measure import to first result in a new process, twice: the second time from a warm cache."""
    table = Table("process", "import to first result, s", "heavy modules loaded", title="Start-up")
    for process in ("first", "second", "third"):
        words = subprocess.run(
            [sys.executable, "-c", FIRST_RESULT], check=True, capture_output=True, text=True
        ).stdout.split()
        table.add_row(process, f"{float(words[0]):.2f}", ", ".join(words[1:]) or "none")
    return table


def best_known(folder: Path) -> dict[str, int]:
    """Return the best known value of every instance, from best_known.csv of a folder of QAPLIB files."""
    rows = [line.split(",") for line in (folder / "best_known.csv").read_text(encoding="utf-8").splitlines()]
    column = rows[0].index("best_known_value")
    return {row[0]: int(row[column]) for row in rows[1:]}


def main(
    qaplib: Annotated[Path, typer.Option(help="Folder of QAPLIB .dat files and best_known.csv.", exists=True)],
    seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01)] = 1.0,
) -> None:
    """Print three tables."""
    console = Console(width=120)
    tables: list[Callable[[], Table]] = [
        lambda: delta_table(qaplib, seconds),
        lambda: optimum_table(qaplib, seconds),
        start_up_table,
    ]
    for build in tables:
        console.print(build())


if __name__ == "__main__":
    typer.run(main)
