"""Speed of branch and bound: seconds from scratch to the proof, its own incumbent included, on one and two threads."""

from __future__ import annotations

import statistics
from pathlib import Path

import pandas as pd

import moe_search as ms

TITLE = "Branch and bound, seconds to the proof"
# The most seconds that each may take; no bar for the last two.
BARS: dict[str, float | None] = {
    **dict.fromkeys(("tai8a", "tai9a", "tai10a", "tai12a", "nug12", "rou12", "chr12a", "had12", "scr12"), 1.0),
    **dict.fromkeys(("nug15", "tai15a"), 15.0),
    **dict.fromkeys(("chr15a", "esc16a")),
}
RANDOM_SIZES = (8, 10, 12)
ROUNDS = 9


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each instance; without QAPLIB files, random instances take their place.

    The bars are multiples of `seconds`: a search ends, proof or not, after twice its bar (without one, sixty times
    `seconds`). A search of less than a second is run nine times, in turn on one thread and on two; the medians count.
    The nodes are the same.
    """
    if qaplib is None:
        problems = {f"random {n}": ms.random_quadratic(n, seed=0) for n in RANDOM_SIZES}
        bars: dict[str, float | None] = dict.fromkeys(problems, 1.0)
    else:
        problems = {name: ms.read_qaplib(qaplib / f"{name}.dat") for name in BARS}
        bars = BARS
    rows = []
    for name, problem in problems.items():
        bar = bars[name]
        limit = ms.MaxRuntime((60.0 if bar is None else 2.0 * bar) * seconds)
        results: list[ms.Result] = []
        on_two: list[ms.Result] = []
        while not results or (results[0].runtime < 1.0 and len(results) < ROUNDS):
            results.append(ms.BranchAndBound().solve(problem, limit, seed=0))
            on_two.append(ms.BranchAndBound(n_jobs=2).solve(problem, limit, seed=0))
        taken, taken_by_two = (statistics.median(result.runtime for result in each) for each in (results, on_two))
        proved = all(result.status == "optimal" for result in results + on_two)
        rows.append(
            {
                "instance": name,
                "seconds": taken,
                "two threads": taken_by_two,
                "nodes": results[0].iterations,
                "value": results[0].value,
                "bound": results[0].bound,
                "proved": proved,
                "bar": bar,
                "met": None if bar is None else proved and taken <= bar * seconds,
            }
        )
    return pd.DataFrame(rows)
