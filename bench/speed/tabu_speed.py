"""Speed of tabu search: iterations a second against the textbook twin, both compiled by Numba, on one core."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd

import moe_search as ms
from moe_search.bench.peers.textbook import advance, textbook_tabu
from moe_search.bench.speed.rounds import compared, in_turns

TITLE = "Tabu search against the textbook, iterations a second"
BARS = {30: 6.0, 50: 11.0, 100: 15.0}
ROUNDS = 7
CHECKED_ITERATIONS = 5000
BATCH = 100


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each size; without QAPLIB files, random instances of the same kind take their place."""
    rows = []
    for size, bar in BARS.items():
        name = f"tai{size}a" if qaplib is not None else f"random {size}"
        problem = ms.random_quadratic(size, seed=0) if qaplib is None else ms.read_qaplib(qaplib / f"{name}.dat")
        row = compared(*iterations_a_second(problem, name, seconds), rates=True)
        rows.append({"instance": name} | row | {"bar": bar, "met": row["ratio"] >= bar})
    return pd.DataFrame(rows)


def iterations_a_second(problem: ms.QuadraticAssignment, name: str, seconds: float) -> list[list[float]]:
    """Return the rates of ours and of the textbook in every round; from one seed they must end at the same value."""
    initial = np.arange(problem.size)
    twin = textbook_tabu(problem, initial, seed=0)
    found = ms.TabuSearch().solve(problem, ms.MaxIterations(CHECKED_ITERATIONS), 0, initial).value
    if advance(twin, CHECKED_ITERATIONS) != found:
        raise RuntimeError(f"the two searches disagree on {name}: {found} and {int(twin.totals[1])}")

    def ours() -> float:
        result = ms.TabuSearch().solve(problem, ms.MaxRuntime(seconds / ROUNDS), seed=0)
        return result.iterations / result.runtime

    def textbook() -> float:
        started, done = time.perf_counter(), 0
        while time.perf_counter() - started < seconds / ROUNDS:
            advance(twin, BATCH)
            done += BATCH
        return done / (time.perf_counter() - started)

    return in_turns((ours, textbook), ROUNDS)
