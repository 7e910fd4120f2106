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
ROUNDS = 3


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each instance; without QAPLIB files, random instances take their place.

    The bars are multiples of `seconds`: a search ends, proof or not, after twice its bar (without one, sixty times
    `seconds`). A search of less than a second is run three times; the median counts. On two threads the nodes are the
    same.
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
        results = [ms.BranchAndBound().solve(problem, limit, seed=0)]
        while results[0].runtime < 1.0 and len(results) < ROUNDS:
            results.append(ms.BranchAndBound().solve(problem, limit, seed=0))
        taken = statistics.median(result.runtime for result in results)
        pair = ms.BranchAndBound(n_jobs=2).solve(problem, limit, seed=0)
        proved = all(result.status == "optimal" for result in (*results, pair))
        rows.append(
            {
                "instance": name,
                "seconds": taken,
                "two threads": pair.runtime,
                "nodes": results[0].iterations,
                "value": results[0].value,
                "bound": results[0].bound,
                "proved": proved,
                "bar": bar,
                "met": None if bar is None else proved and taken <= bar * seconds,
            }
        )
    return pd.DataFrame(rows)
