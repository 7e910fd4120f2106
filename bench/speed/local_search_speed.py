"""Speed of the local search: deltas a second against the textbook, local optima against scipy, on one core."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import quadratic_assignment

import moe_search as ms
from moe_search.bench.datasets.qaplib import best_known_values
from moe_search.bench.peers.textbook import SymmetricTextbookQuadratic, TextbookQuadratic
from moe_search.bench.speed.rounds import compared, in_turns

TITLE = "Local search: deltas a second against the textbook, local optima against scipy's 2opt"
Row = dict[str, float | str]
ROUNDS = 5
STARTS = 30


def deltas(problem: ms.QuadraticAssignment, seconds: float) -> float:
    """Return the million deltas a second of first-improvement swap search with restarts."""
    result = ms.LocalSearch().solve(problem, ms.MaxRuntime(seconds), seed=0)
    return result.iterations / result.runtime / 1e6


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row a measurement; none without QAPLIB files."""
    return pd.DataFrame([] if qaplib is None else [*delta_rows(qaplib, seconds), *optimum_rows(qaplib, seconds)])


def delta_rows(folder: Path, seconds: float) -> list[Row]:
    """Measure our kernels against the textbook's in the same search."""
    rows: list[Row] = []
    for name in ("tai30a", "tai50a", "sko72", "tai100a"):
        ours = ms.read_qaplib(folder / f"{name}.dat")
        peers = [ours] + [kind(ours.flow, ours.distance) for kind in (TextbookQuadratic, SymmetricTextbookQuadratic)]
        stop = ms.MaxIterations(20_000)
        values = {ms.LocalSearch().solve(peer, stop, seed=0).value for peer in peers}
        if len(values) != 1:
            raise RuntimeError(f"the kernels disagree on {name}: {values}")
        rates = in_turns([partial(deltas, peer, seconds / ROUNDS) for peer in peers], ROUNDS)
        for against, peer_rates in zip(("textbook", "symmetric textbook"), rates[1:], strict=True):
            row = compared(rates[0], peer_rates, rates=True)
            rows.append({"measurement": "deltas, M/s", "instance": name} | row | {"against": against})
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
        row = compared([1e6 * ours], [1e6 * statistics.mean(times)])
        last = {"against": "scipy 2opt", "gap ours, %": gaps[0], "gap peer, %": gaps[1]}
        rows.append({"measurement": "one local optimum, us", "instance": name} | row | last)
    return rows
