"""Comparing two treatments over paired seeds, where both have ended or at equal time, and the tables that say so."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import PermutationMethod, rankdata, wilcoxon

from moe_search.bench.experiments.experiment import Measure
from moe_search.plotting.table import Table

MOST_ENUMERATED = 14
"""Pairs up to which all signs of tied ranks are tried; beyond, the normal approximation is close."""

TIED_DIGITS = 12

LEAST_P = 1e-4
"""A smaller p-value is shown as less than this."""

SHARES = (0.25, 0.5, 1.0)
"""Parts of the time of the one that ended first, at which two runs are compared."""


@dataclass(frozen=True)
class MeanAndError:
    """A mean and its standard error, which is NaN for a single value."""

    mean: float
    error: float

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Return ``mean ± error``; without the error if it is not known."""
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if math.isnan(self.error) else f"{mean} ± {scale * self.error:.{digits}f}"


def mean_and_error(values: Sequence[float]) -> MeanAndError:
    """Return the mean of some values and its standard error (sample standard deviation, ddof = 1)."""
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan
    return MeanAndError(float(array.mean()), error)


@dataclass(frozen=True)
class PairedComparison:
    """Differences other - baseline over the pairs; differences of logarithms where ratios were asked for.

    Attributes
    ----------
    error : float
        Standard error of the mean difference, from the sample standard deviation (ddof = 1); NaN for one pair.
    p : float
        The p-value of Wilcoxon's signed-rank test; 1 if no difference counts.
    standardized : float
        Mean over standard deviation of the differences, Cohen's d_z; NaN if all differences are alike.
    rank_biserial : float
        Rank sum of the positive less that of the negative differences, as a part of their total, in [-1, 1]; 0 if all
        are 0.
    lower, higher : int
        Pairs in which the other is lower, and in which it is higher.
    """

    pairs: int
    mean: float
    error: float
    p: float
    standardized: float
    rank_biserial: float
    lower: int
    higher: int


def compare_differences(baseline: Sequence[float], other: Sequence[float]) -> PairedComparison:
    """Test whether differences other - baseline, one number a seed each, are symmetric around 0, two-sided."""
    first, second = _pairs(baseline, other)
    return _compare(second - first, 0.0, "two-sided")


def compare_ratios(baseline: Sequence[float], other: Sequence[float], factor: float = 1.0) -> PairedComparison:
    """Test whether the baseline is more than `factor` times the other, one-sided, on differences of logarithms.

    Mean, error and effect sizes are those of log other - log baseline, around 0; only `p` looks at the factor.
    """
    first, second = _pairs(baseline, other)
    if not 0 < factor < math.inf:
        raise ValueError(f"factor must be a positive number, got {factor}")
    if min(first.min(), second.min()) <= 0:
        raise ValueError(f"ratios need positive numbers, got {min(first.min(), second.min())}")
    return _compare(np.log(second) - np.log(first), -math.log(factor), "less")


def compare(measure: Measure, baseline: Sequence[float], other: Sequence[float]) -> PairedComparison:
    """Compare what a measure is of: differences, or ratios where it claims a factor."""
    if measure.factor is None:
        return compare_differences(baseline, other)
    return compare_ratios(baseline, other, measure.factor)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in their order.

    Holm (1979), A simple sequentially rejective multiple test procedure: the i-th smallest of r is multiplied by
    r - i + 1, none is smaller than one before it, and none larger than 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"p-values must lie in [0, 1], got {values.tolist()}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted.tolist()


@dataclass(frozen=True)
class PairedRow:
    """What a row of a `paired_table` shows: how it is called, cells of its own, and a comparison."""

    label: str
    comparison: PairedComparison
    cells: tuple[str, ...] = ()


def paired_table(
    title: str, columns: tuple[str, ...], rows: Sequence[PairedRow], measure: Measure, note: str = ""
) -> Table:
    """Return a table of comparisons of a measure, every p-value also adjusted for all of them.

    The columns are those of the labels and of the rows' own cells.
    """
    effect = ("difference",) if measure.factor is None else ("times less", "68 % interval")
    test = "p" if measure.factor is None else f"p of more than {measure.factor:g} times"
    adjusted = holm([row.comparison.p for row in rows])
    return Table(
        title,
        (*columns, *effect, test, "Holm", "d_z", "r", f"{measure.better} in"),
        tuple(
            (row.label, *row.cells, *_comparison_cells(row.comparison, p, measure))
            for row, p in zip(rows, adjusted, strict=True)
        ),
        note=note,
    )


@dataclass(frozen=True)
class TimedRun:
    """The losses of a run and the seconds spent where they were taken, which rise from 0."""

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


def equal_time_table(pairs: Mapping[str, Sequence[tuple[TimedRun, TimedRun]]], peer: str, search: str) -> Table:
    """Return one row a gate and share of `SHARES`: the paired comparison of a search with a peer, both by name.

    The pairs are, by gate, the runs of the peer and of the search, a pair a seed.
    """
    measure = Measure("loss", "loss")
    rows = []
    for gate, runs in pairs.items():
        for share in SHARES if runs else ():
            times = [share * min(first.end, other.end) for first, other in runs]
            timed = list(zip(runs, times, strict=True))
            both = [[pair[which].best_by(time) for pair, time in timed] for which in (0, 1)]
            means = (mean_and_error(losses).text(measure.digits) for losses in both)
            cells = (f"{np.mean(times):.2f}", *means)
            rows.append(PairedRow(f"{gate}, {share:.0%}", compare_differences(*both), cells))
    return paired_table(
        f"validation loss at equal time: {search} against {peer}, lower is better",
        ("gate, share of the time", "seconds", peer, search),
        rows,
        measure,
        "Processor time of the steps and searches of a run, evaluations apart. Every pair is compared where the one of "
        "the two that ended first had spent the share of its time in the row: the least loss that each had reached by "
        "then.",
    )


def _pairs(baseline: Sequence[float], other: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(baseline, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"numbers must come in pairs, at least one, got shapes {first.shape} and {second.shape}")
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise ValueError("numbers to be compared must be finite, got NaN or infinite ones")
    return first, second


def _compare(differences: NDArray[np.float64], centre: float, alternative: str) -> PairedComparison:
    count = len(differences)
    spread = float(differences.std(ddof=1)) if count > 1 else math.nan
    counted = _rounded(differences - centre)
    counted = counted[counted != 0]
    p = _wilcoxon(counted, alternative) if len(counted) else 1.0
    nonzero = _rounded(differences)
    nonzero = nonzero[nonzero != 0]
    ranks = rankdata(np.abs(nonzero))
    return PairedComparison(
        pairs=count,
        mean=float(differences.mean()),
        error=spread / math.sqrt(count),
        p=p,
        standardized=float(differences.mean()) / spread if spread > 0 else math.nan,
        rank_biserial=float((np.sign(nonzero) * ranks).sum() / ranks.sum()) if len(nonzero) else 0.0,
        lower=int((differences < 0).sum()),
        higher=int((differences > 0).sum()),
    )


def _rounded(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return differences in parts of the largest, tied where they are but for rounding."""
    largest = float(np.abs(differences).max())
    return np.round(differences / largest, TIED_DIGITS) if largest > 0 else differences


def _wilcoxon(differences: NDArray[np.float64], alternative: str) -> float:
    count = len(differences)
    tied = len(np.unique(np.abs(differences))) < count
    # scipy's table of the exact distribution knows no ties.
    exact = tied and count <= MOST_ENUMERATED
    method = PermutationMethod(n_resamples=2**count) if exact else "auto"
    return float(wilcoxon(differences, alternative=alternative, method=method).pvalue)


def _comparison_cells(comparison: PairedComparison, adjusted: float, measure: Measure) -> tuple[str, ...]:
    if measure.factor is None:
        effect: tuple[str, ...] = (MeanAndError(comparison.mean, comparison.error).text(measure.digits),)
    else:
        low, high = (math.exp(-comparison.mean + sign * comparison.error) for sign in (-1, 1))
        interval = "-" if math.isnan(comparison.error) else f"{low:.1f} to {high:.1f}"
        effect = (f"{math.exp(-comparison.mean):.1f}", interval)
    standardized = "-" if math.isnan(comparison.standardized) else f"{comparison.standardized:.2f}"
    return (
        *effect,
        *(f"{p:.4f}" if p >= LEAST_P else f"< {LEAST_P:g}" for p in (comparison.p, adjusted)),
        standardized,
        f"{comparison.rank_biserial:.2f}",
        f"{comparison.lower if measure.better == 'lower' else comparison.higher} of {comparison.pairs}",
    )
