"""Quality of tabu search: the median gap to the best known value, of five seeds, after one and after five seconds.

Run ``python -m moe_search.bench.speed.tabu_gap --qaplib FOLDER``.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import typer

import moe_search as ms
from moe_search.bench.qaplib_folder import best_known_values

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
    """Return a row for each bar; the bars hold for `seconds` = 1.

    Parameters
    ----------
    qaplib : Path or None
        Folder of QAPLIB files and best_known.csv; without it the table is empty, since no value is known.
    seconds : float
        The shorter of the two time limits; the longer one is five times as long.
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


def main(
    qaplib: Annotated[Path, typer.Option(help="Folder of QAPLIB .dat files and best_known.csv.", exists=True)],
    seconds: Annotated[float, typer.Option(help="The shorter time limit.", min=0.01)] = 1.0,
) -> None:
    """Print the table."""
    print(measure(qaplib, seconds).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
