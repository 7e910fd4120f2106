"""Speed of tabu search: iterations a second against the textbook twin, both compiled by Numba, on one core.

Run ``python -m moe_search.bench.speed.tabu_speed --qaplib FOLDER``.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

import moe_search as ms
from moe_search.bench.peers.textbook_tabu import advance, textbook_tabu

TITLE = "Tabu search against the textbook, iterations a second"
BARS = {30: 6.0, 50: 11.0, 100: 15.0}
ROUNDS = 7
CHECKED_ITERATIONS = 5000
BATCH = 100


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return the medians of rounds taken in turns.

    Parameters
    ----------
    qaplib : Path or None
        Folder of QAPLIB files; without it, random instances of the same sizes and kind take their place.
    seconds : float
        Time of each search in each round.

    Raises
    ------
    RuntimeError
        If the two searches, from one seed, do not end at the same value.
    """
    rows = []
    for size, bar in BARS.items():
        name = f"tai{size}a" if qaplib is not None else f"random {size}"
        problem = ms.random_quadratic(size, seed=0) if qaplib is None else ms.read_qaplib(qaplib / f"{name}.dat")
        initial = np.arange(problem.size)
        twin = textbook_tabu(problem, initial, seed=0)
        found = ms.TabuSearch().solve(problem, ms.MaxIterations(CHECKED_ITERATIONS), 0, initial).value
        if advance(twin, CHECKED_ITERATIONS) != found:
            raise RuntimeError(f"the two searches disagree on {name}: {found} and {int(twin.totals[1])}")
        rates = []
        for _ in range(ROUNDS):
            ours = ms.TabuSearch().solve(problem, ms.MaxRuntime(seconds / ROUNDS), seed=0)
            started, done = time.perf_counter(), 0
            while time.perf_counter() - started < seconds / ROUNDS:
                advance(twin, BATCH)
                done += BATCH
            rates.append((ours.iterations / ours.runtime, done / (time.perf_counter() - started)))
        ours_rate, peer_rate = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(ours / peer for ours, peer in rates)
        rows.append(
            {
                "instance": name,
                "ours": ours_rate,
                "peer": peer_rate,
                "ratio": ratio,
                "bar": bar,
                "met": ratio >= bar,
            }
        )
    return pd.DataFrame(rows)


def main(
    qaplib: Annotated[Path | None, typer.Option(help="Folder of QAPLIB .dat files.", exists=True)] = None,
    seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01)] = 1.0,
) -> None:
    """Print the table."""
    print(measure(qaplib, seconds).to_string(index=False, float_format="{:,.1f}".format))


if __name__ == "__main__":
    typer.run(main)
