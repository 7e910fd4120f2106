"""The cells of tables that compare: effects, p-values and effect sizes as texts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moe_search.bench.experiments.experiment import Measure
from moe_search.bench.experiments.paired_statistics import PairedComparison, holm

LOST_PRECISION = 1e-4


def comparison_columns(measure: Measure) -> tuple[str, ...]:
    """Return the names of the columns of `comparison_rows`."""
    effect = ("difference",) if measure.factor is None else ("times less", "68 % interval")
    test = "p" if measure.factor is None else f"p of more than {measure.factor:g} times"
    return "pairs", *effect, test, "Holm", "d_z", "r", "lower in"


def comparison_rows(comparisons: Sequence[PairedComparison], measure: Measure) -> list[tuple[str, ...]]:
    """Return one row of texts a comparison, its p-value also adjusted for all of them."""
    adjusted = holm([comparison.p for comparison in comparisons]) if comparisons else []
    return [
        (str(comparison.pairs), *_effect(comparison, measure), _p(comparison.p), _p(p), *_sizes(comparison))
        for comparison, p in zip(comparisons, adjusted, strict=True)
    ]


def mean_with_error(values: Sequence[float], digits: int) -> str:
    """Return the mean and, of more than one value, its standard error."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return _with_error(float(np.mean(values)), error, digits)


def _effect(comparison: PairedComparison, measure: Measure) -> tuple[str, ...]:
    if measure.factor is None:
        return (_with_error(comparison.mean, comparison.error, measure.digits),)
    mean = f"{math.exp(-comparison.mean):.1f}"
    if math.isnan(comparison.error):
        return (mean, "-")
    low, high = (math.exp(-comparison.mean + sign * comparison.error) for sign in (-1, 1))
    return (mean, f"{low:.1f} to {high:.1f}")


def _sizes(comparison: PairedComparison) -> tuple[str, str, str]:
    d = "-" if math.isnan(comparison.standardized) else f"{comparison.standardized:.2f}"
    return d, f"{comparison.rank_biserial:.2f}", f"{comparison.lower} of {comparison.pairs}"


def _with_error(mean: float, error: float, digits: int) -> str:
    return f"{mean:.{digits}f}" if math.isnan(error) else f"{mean:.{digits}f} ± {error:.{digits}f}"


def _p(p: float) -> str:
    return f"{p:.4f}" if p >= LOST_PRECISION else f"< {LOST_PRECISION:g}"
