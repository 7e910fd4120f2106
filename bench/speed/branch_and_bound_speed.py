"""Speed of branch and bound: seconds from scratch to the proof, its own incumbent included, on one core.

Run ``python -m moe_search.bench.speed.branch_and_bound_speed --qaplib FOLDER``.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

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
    """Return a row for each instance.

    Parameters
    ----------
    qaplib : Path or None
        Folder of QAPLIB files; without it, random instances take their place.
    seconds : float
        The bars are multiples of it: a search ends, proof or not, after twice its bar (without one, sixty times
        `seconds`). A search of less than a second is run three times; the median counts.
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
        proved = all(result.status == "optimal" for result in results)
        rows.append(
            {
                "instance": name,
                "seconds": taken,
                "nodes": results[0].iterations,
                "value": results[0].value,
                "bound": results[0].bound,
                "proved": proved,
                "bar": bar,
                "met": None if bar is None else proved and taken <= bar * seconds,
            }
        )
    return pd.DataFrame(rows)


def main(
    qaplib: Annotated[Path | None, typer.Option(help="Folder of QAPLIB .dat files.", exists=True)] = None,
    seconds: Annotated[float, typer.Option(help="Scale of all limits.", min=0.01)] = 1.0,
) -> None:
    """Print the table."""
    print(measure(qaplib, seconds).to_string(index=False, float_format="{:,.3f}".format))


if __name__ == "__main__":
    typer.run(main)
