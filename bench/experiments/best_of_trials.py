"""What a tuning budget buys: the expected best of r trials, and how many trials a loss takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
BAND = 0.9
"""Part of the bootstrap samples within a band."""

ROUNDING = 1e-12
"""Relative to the largest loss: two sums of the same losses in another order are the same loss."""


def expected_best(losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected least loss of r trials drawn without replacement, shape [N], entry r - 1 for r trials.

    The i-th smallest of N losses is the least of r with probability C(N - i, r - 1) / C(N, r); nothing is simulated.

    Parameters
    ----------
    losses : sequence of float
        One a trial of a random search, at least one.

    Raises
    ------
    ValueError
        If there is none, or one is not finite.
    """
    values = np.sort(_checked(losses))
    return _rank_weights(len(values)) @ values


def bootstrap_band(
    losses: Sequence[float] | NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper end of the middle 90 % of `expected_best` over bootstrap samples of the trials.

    Parameters
    ----------
    losses : sequence of float
    seed : int
    resamples : int

    Raises
    ------
    ValueError
        As `expected_best`.
    """
    values = _checked(losses)
    chosen = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(_curves(values[chosen]), _ENDS, axis=0)
    return low, high


def trials_needed(losses: Sequence[float] | NDArray[np.float64], target: float) -> int | None:
    """Return the least r whose expected best is at most the target; None if not even all trials are enough.

    Raises
    ------
    ValueError
        As `expected_best`.
    """
    needed = _needed(expected_best(losses)[None], np.array([target]))[0]
    return math.ceil(needed) if needed < math.inf else None


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
    """

    needed: float | None
    times: float
    low: float
    high: float


def fewer_trials(
    baseline: Sequence[float] | NDArray[np.float64],
    other: Sequence[float] | NDArray[np.float64],
    budget: int,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> FewerTrials:
    """Return how many trials with a search are as good as a budget of trials without.

    Parameters
    ----------
    baseline, other : sequence of float
        The losses of the same draws without and with the search, in the same order.
    budget : int
        Trials without, at least 1 and at most as many as there are.
    seed : int
    resamples : int

    Raises
    ------
    ValueError
        As `expected_best`; if there are not as many losses with as without, or the budget is out of range.
    """
    first, second = _checked(baseline), _checked(other)
    if len(first) != len(second):
        raise ValueError(f"losses must be of the same draws, got {len(first)} without and {len(second)} with search")
    if not 1 <= budget <= len(first):
        raise ValueError(f"budget must be between 1 and {len(first)}, the number of draws, got {budget}")
    chosen = np.random.default_rng(seed).integers(len(first), size=(resamples, len(first)))
    resampled = budget / _needed(_curves(second[chosen]), _curves(first[chosen])[:, budget - 1])
    needed = float(_needed(expected_best(second)[None], expected_best(first)[budget - 1 : budget])[0])
    low, high = np.quantile(resampled, _ENDS)
    return FewerTrials(needed if needed < math.inf else None, budget / needed, float(low), float(high))


_ENDS = ((1 - BAND) / 2, (1 + BAND) / 2)


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
