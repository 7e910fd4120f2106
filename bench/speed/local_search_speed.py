"""Speed of the local search: deltas a second against the textbook, local optima against scipy.

Run ``python -m moe_search.bench.speed.local_search_speed --qaplib FOLDER``.
All ratios are taken in one run, on one core.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from scipy.optimize import quadratic_assignment

import moe_search as ms
from moe_search.bench.peers.textbook import SymmetricTextbookQuadratic, TextbookQuadratic
from moe_search.bench.qaplib_folder import best_known_values

TITLE = "Local search: deltas a second against the textbook, local optima against scipy's 2opt"
Row = dict[str, float | str]
ROUNDS = 5
STARTS = 30


def deltas(problem: ms.QuadraticAssignment, seconds: float) -> float:
    """Return the deltas a second of first-improvement swap search with restarts."""
    result = ms.LocalSearch().solve(problem, ms.MaxRuntime(seconds), seed=0)
    return result.iterations / result.runtime


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row a measurement.

    Parameters
    ----------
    qaplib : Path or None
        Folder of QAPLIB files with best_known.csv; without it there are no rows.
    seconds : float
        Seconds for each measurement.
    """
    return pd.DataFrame([] if qaplib is None else [*delta_rows(qaplib, seconds), *optimum_rows(qaplib, seconds)])


def delta_rows(folder: Path, seconds: float) -> list[Row]:
    """Measure our kernels against the textbook's in the same search, in turns; medians of the rounds."""
    rows: list[Row] = []
    for name in ("tai30a", "tai50a", "sko72", "tai100a"):
        ours = ms.read_qaplib(folder / f"{name}.dat")
        peers = [ours] + [kind(ours.flow, ours.distance) for kind in (TextbookQuadratic, SymmetricTextbookQuadratic)]
        stop = ms.MaxIterations(20_000)
        values = {ms.LocalSearch().solve(peer, stop, seed=0).value for peer in peers}
        if len(values) != 1:
            raise RuntimeError(f"the kernels disagree on {name}: {values}")
        rates = [[deltas(peer, seconds / ROUNDS) / 1e6 for peer in peers] for _ in range(ROUNDS)]
        ours_rate, general, symmetric = (statistics.median(column) for column in zip(*rates, strict=True))
        for peer_name, rate in (("textbook", general), ("symmetric textbook", symmetric)):
            rows.append(_row("deltas, M/s", name, ours_rate, peer_name, rate, ours_rate / rate))
    return rows


def optimum_rows(folder: Path, seconds: float) -> list[Row]:
    """Measure the time to one local optimum from a random start, and its gap, against scipy's 2opt."""
    rows: list[Row] = []
    known = best_known_values(folder)
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
        row = _row("one local optimum, us", name, 1e6 * ours, "scipy 2opt", 1e6 * scipy_seconds, scipy_seconds / ours)
        rows.append(row | {"gap ours, %": gaps[0], "gap peer, %": gaps[1]})
    return rows


def _row(measurement: str, instance: str, ours: float, peer_name: str, peer: float, ratio: float) -> Row:
    return {
        "measurement": measurement,
        "instance": instance,
        "ours": ours,
        "peer": peer,
        "ratio": ratio,
        "against": peer_name,
    }


def main(
    qaplib: Annotated[
        Path | None, typer.Option(help="Folder of QAPLIB .dat files and best_known.csv.", exists=True)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01)] = 1.0,
) -> None:
    """Print the table."""
    print(measure(qaplib, seconds).to_string(index=False, float_format="{:,.1f}".format))


if __name__ == "__main__":
    typer.run(main)
