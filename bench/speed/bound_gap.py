"""How far proved bounds are below the best known value, and what they cost."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pandas as pd

import moe_search as ms
from moe_search.bench.datasets.qaplib import best_known_values

TITLE = "Lower bounds, percent below the best known value, and milliseconds of processor time"
NOTES = """\
The semidefinite bound has two seconds up to 12 slots, five up to 15, and ten up to 20. "Bar" is for the best of a row,
and of the two quick bounds where there is no semidefinite one.

"""
QUICK = ("gilmore-lawler", "projection")
# The least sizes that each time of the semidefinite bound is not for, in units of the seconds of a measurement.
TIMES = ((13, 2), (16, 5), (21, 10))
CALLS = 5
BARS = {
    "nug12": 1.8,
    "nug15": 1.0,
    "nug20": 2.6,
    "tai20a": 4.6,
    "nug30": 14.1,
    "sko42": 13.0,
    "tho40": 21.0,
    "wil50": 10.0,
    "sko72": 12.0,
}


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each instance whose best value is known; none without QAPLIB files."""
    if qaplib is None:
        return pd.DataFrame()
    rows = []
    for name, known in best_known_values(qaplib).items():
        problem = ms.read_qaplib(qaplib / f"{name}.dat")
        row: dict[str, object] = {"instance": name}
        bounds: list[float] = []
        for method in QUICK:
            times = []
            for _ in range(CALLS):
                before = time.thread_time()
                bound = bound_by(problem, method)
                times.append(1e3 * (time.thread_time() - before))
            bounds.append(bound)
            row |= {method: percent(known, bound), f"{method}, ms": statistics.median(times)}
        limit = next((units * seconds for size, units in TIMES if problem.size < size), None)
        if limit is not None:
            bounds.append(bound_by(problem, "semidefinite", limit))
        best = percent(known, max(bounds))
        bar = BARS.get(name)
        rows.append(
            row
            | {
                "semidefinite": None if limit is None else percent(known, bounds[-1]),
                "best": best,
                "bar": bar,
                "met": None if bar is None else best <= bar,
            }
        )
    return pd.DataFrame(rows)


def bound_by(problem: ms.QuadraticAssignment, method: str, seconds: float = 1.0) -> float:
    """Return the bound of a method that takes all quadratic problems of the size."""
    bound = ms.lower_bound(problem, method, seconds)
    assert bound is not None
    return bound


def percent(known: float, bound: float) -> float:
    """Return how far a bound is below the best known value."""
    return 100.0 * (known - bound) / known
