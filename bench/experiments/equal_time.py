"""Two searches at equal time: the best loss of each where the one that ended first had spent as much."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_search.bench.experiments.experiment import Measure
from moe_search.bench.experiments.paired_statistics import (
    compare_differences,
    comparison_columns,
    comparison_rows,
    mean_and_error,
)
from moe_search.plotting.table import Table

SHARES = (0.25, 0.5, 1.0)
"""Parts of the time of the one that ended first."""

NOTE = (
    "Processor time of the steps and searches of a run, evaluations apart. Every pair is compared where the one of the "
    "two that ended first had spent the share of its time in the row: the least loss that each had reached by then."
)


@dataclass(frozen=True)
class TimedRun:
    """The losses of a run and the seconds spent where they were taken.

    Attributes
    ----------
    seconds, losses : sequence of float
        As many of one as of the other; the seconds rise from 0.
    """

    seconds: Sequence[float]
    losses: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.seconds) != len(self.losses):
            raise ValueError(f"there must be as many seconds as losses, got {len(self.seconds)} and {len(self.losses)}")
        if not len(self.seconds) or self.seconds[0] != 0 or (np.diff(self.seconds) < 0).any():
            raise ValueError(f"seconds must rise from 0, got {list(self.seconds)[:5]}")

    @property
    def end(self) -> float:
        """Seconds spent in all."""
        return self.seconds[-1]

    def best_by(self, seconds: float) -> float:
        """Return the least loss among those taken when no more than so many seconds, at least 0, had been spent."""
        return min(self.losses[: bisect_right(self.seconds, seconds)])


TimedPairs = Mapping[str, Sequence[tuple[TimedRun, TimedRun]]]
"""By gate: the runs of a peer and of a search, a pair a seed."""


def equal_time_table(pairs: TimedPairs, peer: str, search: str) -> Table:
    """Return one row a gate and share of `SHARES`: the paired comparison of a search with a peer, both by name.

    Gates without a pair are left out.
    """
    measure = Measure("loss", "loss")
    labels, cells, comparisons = [], [], []
    for gate, runs in pairs.items():
        for share in SHARES if runs else ():
            times = [share * min(first.end, other.end) for first, other in runs]
            timed = list(zip(runs, times, strict=True))
            both = [[pair[which].best_by(time) for pair, time in timed] for which in (0, 1)]
            labels.append(f"{gate}, {share:.0%}")
            cells.append((f"{np.mean(times):.2f}", *(mean_and_error(losses).text(measure.digits) for losses in both)))
            comparisons.append(compare_differences(*both))
    rows = comparison_rows(comparisons, measure)
    return Table(
        f"validation loss at equal time: {search} against {peer}, lower is better",
        ("gate, share of the time", "seconds", peer, search, *comparison_columns(measure)),
        tuple((label, *shown, *row) for label, shown, row in zip(labels, cells, rows, strict=True)),
        note=NOTE,
    )
