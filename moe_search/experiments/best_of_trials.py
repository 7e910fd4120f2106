"""What a tuning budget buys: the expected best of r trials, and how many trials a loss takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
BAND = 0.9
"""Part of the bootstrap samples within a band."""


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
    count = len(values)
    curve = np.empty(count)
    # P(the least of r has rank i) over P(rank i - 1) is (N - i - r + 2) / (N - i + 1): no large binomials.
    for r in range(1, count + 1):
        probability, total = r / count, 0.0
        for i in range(1, count - r + 2):
            total += probability * values[i - 1]
            if i < count:
                probability *= (count - i - r + 1) / (count - i)
        curve[r - 1] = total
    return curve


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
    generator = np.random.default_rng(seed)
    curves = np.stack([expected_best(generator.choice(values, len(values))) for _ in range(resamples)])
    low, high = np.quantile(curves, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
    return low, high


def trials_needed(losses: Sequence[float] | NDArray[np.float64], target: float) -> int | None:
    """Return the least r whose expected best is at most the target; None if not even all trials are enough.

    Raises
    ------
    ValueError
        As `expected_best`.
    """
    reached = np.flatnonzero(expected_best(losses) <= target)
    return int(reached[0]) + 1 if len(reached) else None


def _checked(losses: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"losses must be a list of at least one, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("losses must be finite, got NaN or infinite ones")
    return values
