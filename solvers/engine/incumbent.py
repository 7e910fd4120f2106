"""The best permutation met so far, as a running solver shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moe_search.problems.permutation_problem import Permutation


@dataclass(frozen=True, eq=False)
class Incumbent:
    """What a solver has found so far.

    Parameters
    ----------
    seconds : float
        Time since the start, compilation apart.
    iterations : int
        Work done when it was found; each solver says what it counts.
    value : int or float
        Its value; floats up to the rounding errors of the deltas that led there.
    permutation : ndarray of int64, shape (size,)
        A copy of its own, read-only.
    """

    seconds: float
    iterations: int
    value: int | float
    permutation: Permutation

    def __post_init__(self) -> None:
        permutation = np.array(self.permutation, dtype=np.int64)
        permutation.flags.writeable = False
        object.__setattr__(self, "permutation", permutation)


OnImprovement = Callable[[Incumbent], object]


def delayed(on_improvement: OnImprovement | None, seconds: float) -> OnImprovement | None:
    """Return the callback for a run that began some seconds later than its caller's clock."""
    if on_improvement is None:
        return None
    return lambda incumbent: on_improvement(replace(incumbent, seconds=incumbent.seconds + seconds))


def uncounted(on_improvement: OnImprovement | None) -> OnImprovement | None:
    """Return the callback for a run whose iterations are none to its caller."""
    if on_improvement is None:
        return None
    return lambda incumbent: on_improvement(replace(incumbent, iterations=0))
