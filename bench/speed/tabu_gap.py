"""Quality of tabu search: the median gap to the best known value, of five seeds, after one and after five seconds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import moe_search as ms
from moe_search.bench.datasets.qaplib import best_known_values

TITLE = "Tabu search, gap to the best known value"
SEEDS = 5


class Bar(NamedTuple):
    """The median gap, in percent, that a time limit (in units of `seconds`) must reach on an instance."""

    instance: str
    time: int
    gap: float


BARS = (
    Bar("tai30a", 1, 0.0),
    Bar("tai50a", 1, 0.9),
    Bar("tho40", 1, 0.02),
    Bar("wil50", 1, 0.02),
    Bar("tai50a", 5, 0.65),
    Bar("tai100a", 5, 1.0),
)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each bar, which holds for `seconds` = 1; none without QAPLIB files, since no value is known.

    The shorter of the two time limits is `seconds`, the longer one five times as long.
    """
    columns = ["instance", "seconds", "gap", "best", "worst", "bar", "met"]
    if qaplib is None:
        return pd.DataFrame(columns=columns)
    known = best_known_values(qaplib)
    rows = []
    for bar in BARS:
        problem = ms.read_qaplib(qaplib / f"{bar.instance}.dat")
        limit = ms.MaxRuntime(bar.time * seconds)
        values = [ms.TabuSearch().solve(problem, limit, seed).value for seed in range(SEEDS)]
        gaps = [100.0 * (value / known[bar.instance] - 1.0) for value in values]
        median = statistics.median(gaps)
        rows.append((bar.instance, limit.seconds, median, min(gaps), max(gaps), bar.gap, median <= bar.gap))
    return pd.DataFrame(rows, columns=columns)
