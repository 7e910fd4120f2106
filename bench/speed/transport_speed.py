"""Speed of the transport solver against OR-Tools' min-cost flow at equal optima, on one core."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import moe_search as ms
from moe_search.bench.speed.rounds import compared, in_turns

TITLE = "Transport against OR-Tools' min-cost flow, seconds"
ROUNDS = 5
SKEW = 1.5


class Case(NamedTuple):
    """Normal scores of tokens under experts, plus one normal number an expert times `SKEW` if they are skewed."""

    tokens: int
    experts: int
    skewed: bool
    bar: float


CASES = (
    Case(8192, 16, False, 15.0),
    Case(32768, 64, False, 15.0),
    Case(8192, 16, True, 1.0),
    Case(32768, 64, True, 1.0),
)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each case, of at most five rounds; after `seconds` of a case no further round begins."""
    rows = []
    for case in CASES:
        row = compared(*seconds_to_optimum(case, seconds))
        instance = f"{case.tokens} x {case.experts}{', skewed' if case.skewed else ''}"
        rows.append({"instance": instance} | row | {"bar": case.bar, "met": row["ratio"] >= case.bar})
    return pd.DataFrame(rows)


def seconds_to_optimum(case: Case, seconds: float) -> list[list[float]]:
    """Return the seconds of ours and of OR-Tools in every round; both must find the same optimum."""
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((case.tokens, case.experts))
    if case.skewed:
        scores += SKEW * rng.standard_normal(case.experts)
    problem = ms.LinearAssignment(-scores)
    optima = []

    def solve(solver: ms.Solver) -> float:
        result = solver.solve(problem, ms.MaxRuntime(3600.0))
        optima.append(result.value)
        return result.runtime

    times = in_turns([partial(solve, ms.Transport()), partial(solve, ms.MinCostFlow())], ROUNDS, seconds)
    if max(optima) - min(optima) > 1e-9 * abs(optima[0]):
        raise RuntimeError(f"the optima differ on {case}: {min(optima)} and {max(optima)}")
    return times
