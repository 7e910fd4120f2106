"""Speed of the transport solver against OR-Tools' min-cost flow at equal optima, on one core.

Run ``python -m moe_search.bench.speed.transport_speed``.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer

import moe_search as ms

TITLE = "Transport against OR-Tools' min-cost flow"
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
    """Return the medians of rounds taken in turns.

    Parameters
    ----------
    qaplib : Path or None
        Not used: all instances are random.
    seconds : float
        After so many seconds of a case no further round begins, of five at most.

    Raises
    ------
    RuntimeError
        If the two solvers do not find the same optimum.
    """
    rows = []
    for case in CASES:
        rng = np.random.default_rng(0)
        scores = rng.standard_normal((case.tokens, case.experts))
        if case.skewed:
            scores += SKEW * rng.standard_normal(case.experts)
        problem = ms.LinearAssignment(-scores)
        never = ms.MaxRuntime(3600.0)
        times: list[tuple[float, float]] = []
        while len(times) < ROUNDS and sum(map(sum, times)) < seconds:
            ours, peer = (solver.solve(problem, never) for solver in (ms.Transport(), ms.MinCostFlow()))
            if abs(ours.value - peer.value) > 1e-9 * abs(peer.value):
                raise RuntimeError(f"the optima differ on {case}: {ours.value} and {peer.value}")
            times.append((ours.runtime, peer.runtime))
        ratio = statistics.median(peer / ours for ours, peer in times)
        rows.append(
            {
                "instance": f"{case.tokens} x {case.experts}{', skewed' if case.skewed else ''}",
                "ours": statistics.median(ours for ours, _ in times),
                "peer": statistics.median(peer for _, peer in times),
                "ratio": ratio,
                "bar": case.bar,
                "met": ratio >= case.bar,
            }
        )
    return pd.DataFrame(rows)


def main(
    seconds: Annotated[float, typer.Option(help="Seconds for each case.", min=0.01)] = 10.0,
) -> None:
    """Print the table; times in seconds."""
    print(measure(None, seconds).to_string(index=False, float_format="{:,.4f}".format))


if __name__ == "__main__":
    typer.run(main)
