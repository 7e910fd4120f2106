"""What a tuning budget buys: the expected best of r trials, how many trials a search saves, and the tables of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import bootstrap

from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO
from moe_search.plotting.table import Table

RESAMPLES = 1000
ENDS = ((1 - 0.9) / 2, (1 + 0.9) / 2)
"""Quantiles of the bootstrap samples between which a band lies, the middle 90 % of them."""

ROUNDING = 1e-12
"""Part of the largest loss by which two sums of the same losses may differ, taken in another order."""

SHOWN = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Numbers of trials in the table, as far as they were run."""

Name = TypeVar("Name")

Losses = Mapping[str, Mapping[str, Sequence[float]]]
"""A loss of every trial by gate, then by search, the baseline first."""


def expected_best(losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected least loss of r trials drawn without replacement, shape [N], entry r - 1 for r trials.

    The i-th smallest of N losses is the least of r with probability C(N - i, r - 1) / C(N, r); nothing is simulated.
    """
    values = np.sort(_checked(losses))
    return _rank_weights(len(values)) @ values


def bootstrap_band(
    losses: Sequence[float] | NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper end of the middle 90 % of `expected_best` over bootstrap samples of the trials."""
    values = _checked(losses)
    chosen = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(_curves(values[chosen]), ENDS, axis=0)
    return low, high


@dataclass(frozen=True)
class FewerTrials:
    """What a search saves of a budget.

    Attributes
    ----------
    needed : float or None
        The least r whose expected best with the search is that of the budget without, the curve taken as straight
        between whole numbers; None if not even all trials are enough.
    times : float
        The budget over `needed`: above 1, fewer trials are needed with the search; 0 if all are not enough.
    low, high : float
        The middle 90 % of `times` over bootstrap samples of the draws, both losses of a draw taken together.
    budget : int
        The trials without.
    """

    needed: float | None
    times: float
    low: float
    high: float
    budget: int


def fewer_trials(
    baseline: Sequence[float] | NDArray[np.float64],
    other: Sequence[float] | NDArray[np.float64],
    budget: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> FewerTrials:
    """Return how many trials with a search are as good as a budget of trials without.

    `baseline` and `other` are the losses of the same draws without and with the search, in the same order.
    """
    first, second = _checked(baseline), _checked(other)
    if len(first) != len(second):
        raise ValueError(f"losses must be of the same draws, got {len(first)} without and {len(second)} with search")
    if not 1 <= budget <= len(first):
        raise ValueError(f"budget must be between 1 and {len(first)}, the number of draws, got {budget}")
    chosen = np.random.default_rng(seed).integers(len(first), size=(resamples, len(first)))
    resampled = budget / _needed(_curves(second[chosen]), _curves(first[chosen])[:, budget - 1])
    needed = float(_needed(expected_best(second)[None], expected_best(first)[budget - 1 : budget])[0])
    low, high = np.quantile(resampled, ENDS)
    return FewerTrials(needed if needed < math.inf else None, budget / needed, float(low), float(high), budget)


def others_reached(
    losses: Mapping[Name, Sequence[float]], seed: int = 0, resamples: int = RESAMPLES
) -> dict[Name, FewerTrials]:
    """Return for each of several searches how many of its trials reach the median best of the others.

    That is the median of what the others have as their expected best of half as many trials as there are. `losses` are
    those of the same draws, at least two, in the same order.
    """
    samples = [_checked(values) for values in losses.values()]
    count = len(samples[0])
    if len(samples) < 2 or count < 2 or any(len(values) != count for values in samples):
        lengths = [len(values) for values in samples]
        raise ValueError(f"losses must be of the same two draws or more, of two searches or more, got {lengths} draws")
    budget = count // 2

    def times(*drawn: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        # The samples of one bootstrap, or of many: draws along the last axis.
        curves = [_curves(values.reshape(-1, count)) for values in drawn]
        best = np.stack([curve[:, budget - 1] for curve in curves])
        found = [
            budget / _needed(curve, np.median(np.delete(best, own, axis=0), axis=0)) for own, curve in enumerate(curves)
        ]
        return np.reshape(found, (len(drawn), *drawn[0].shape[:-1]))

    ends = bootstrap(
        samples,
        times,
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=ENDS[1] - ENDS[0],
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {
        name: FewerTrials(budget / each if each else None, float(each), float(low), float(high), budget)
        for name, each, low, high in zip(losses, times(*samples), ends.low, ends.high, strict=True)
    }


def budget_table(losses: Losses) -> Table:
    """Return one row a gate and search: the expected best of r trials with its band."""
    most = max(len(values) for by_search in losses.values() for values in by_search.values())
    shown = [r for r in SHOWN if r <= most]
    rows = []
    for gate, by_search in losses.items():
        for search, values in by_search.items():
            curve, (low, high) = expected_best(values), bootstrap_band(values)
            cells = (
                f"{curve[r - 1]:.3f} ({low[r - 1]:.3f} to {high[r - 1]:.3f})" if r <= len(values) else "-"
                for r in shown
            )
            rows.append((f"{gate}, {search}", *cells))
    note = "Expected best loss of r trials, and the middle 90 % over bootstrap samples of the trials."
    return Table("Best of r trials", ("gate, search", *(f"best of {r}" for r in shown)), tuple(rows), note=note)


def fewer_trials_table(losses: Losses) -> Table:
    """Return one row a gate and search but the baseline: the trials that are as good as r of the baseline.

    The losses of a gate are those of the same draws under all searches, in the same order.
    """
    least = min(len(values) for by_search in losses.values() for values in by_search.values())
    shown = [r for r in SHOWN if 1 < r <= least]
    rows = []
    for gate, by_search in losses.items():
        baseline, *searches = by_search
        for search in searches:
            saved = [fewer_trials(by_search[baseline], by_search[search], r) for r in shown]
            rows.append((f"{gate}, {search}", *map(_saving, saved)))
    note = (
        "The least number of trials whose expected best is that of r trials of the gate without search, or better; how "
        "many times fewer these are, and its middle 90 % over bootstrap samples of the draws, the losses of a draw "
        "taken together. 0 times: not even all trials are as good."
    )
    return Table("Trials that are as good as r without", ("gate, search", *map(str, shown)), tuple(rows), note=note)


def budget_figure(losses: Losses) -> Figure:
    """Draw the expected best by the number of trials, one panel a gate, the ends of the bands dashed."""
    panels = []
    for gate, by_search in losses.items():
        curves = []
        for colour, (search, values) in zip((MUTED, *OKABE_ITO), by_search.items(), strict=False):
            positions = np.arange(1.0, len(values) + 1)
            curves.append(LossCurve(search, expected_best(values)[None], colour, positions=positions))
            # A label with an underscore stays out of the legend.
            curves.extend(
                LossCurve(f"_{search}", end[None], colour, dashed=True, positions=positions)
                for end in bootstrap_band(values)
            )
        panels.append(LossPanel(gate, tuple(curves)))
    return loss_curves(panels, loss_name="best validation loss", step_name="trials", logarithmic=True)


@lru_cache(maxsize=4)
def _rank_weights(count: int) -> NDArray[np.float64]:
    """Return the probability, in row r - 1 and column i - 1, that the least of r trials has rank i."""
    trials = np.arange(1, count + 1)
    weights = np.empty((count, count))
    weights[:, 0] = trials / count
    # P(the least of r has rank i + 1) over P(rank i) is (N - i - r + 1) / (N - i): no large binomials.
    for rank in range(1, count):
        weights[:, rank] = weights[:, rank - 1] * np.maximum(count - rank - trials + 1, 0) / (count - rank)
    return weights


def _curves(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `expected_best` of every row."""
    curves: NDArray[np.float64] = np.sort(losses, axis=1) @ _rank_weights(losses.shape[1]).T
    return curves


def _needed(curves: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return, for every row, the least r at which it is at most the target, up to rounding; infinity if it never is.

    Between whole numbers of trials a row is straight, and before the first it is level.
    """
    targets = targets[:, None]
    reached = curves <= targets + ROUNDING * np.abs(curves).max(axis=1, keepdims=True)
    last = reached.argmax(axis=1)[:, None]
    before, here = (np.take_along_axis(curves, at, axis=1) for at in (np.maximum(last - 1, 0), last))
    falls = before > here
    part = np.where(falls, (before - targets) / np.where(falls, before - here, 1.0), 1.0)
    needed = np.where(last == 0, 1.0, last + np.clip(part, 0.0, 1.0))
    return np.where(reached.any(axis=1), needed[:, 0], math.inf)


def _checked(losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"losses must be a list of at least one, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("losses must be finite, got NaN or infinite ones")
    return values


def _saving(saved: FewerTrials) -> str:
    needed = "none" if saved.needed is None else f"{saved.needed:.1f}"
    return f"{needed}: {saved.times:.2f} times fewer ({saved.low:.2f} to {saved.high:.2f})"
