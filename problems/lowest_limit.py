"""The lowest limit on the load of every expert, the same for all, that some permutation keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_search.problems.load_limited_start import LoadLimits, greedy, least_highest_load, repair
from moe_search.problems.problem import Permutation

ROUNDS = 10


def lowest_limit(limits: LoadLimits, near: Permutation) -> tuple[int, Permutation]:
    """Return a low limit for all experts alike, and a permutation that keeps it.

    Bisection between `least_highest_load` and the highest load found so far; at each limit, swaps repair ``near`` and
    what longest processing time first gives. Where one heavy slot decides, this is mostly exact; the lowest limit of
    all is a bin-packing problem, and a somewhat lower one may exist.

    Parameters
    ----------
    limits : LoadLimits
        The loads; their limits are not looked at.
    near : ndarray of int64
        A permutation, whose highest load is the worst that is returned.

    Returns
    -------
    limit : int
        The highest load of the permutation.
    permutation : ndarray of int64
    """
    least = low = least_highest_load(limits)
    best, found = _highest(limits, near), near
    trial = least
    for _ in range(ROUNDS):
        if low >= best:
            break
        even = replace(limits, limit=np.full_like(limits.limit, trial))
        for start in (near, greedy(even)):
            repaired = repair(even, start)
            highest = _highest(limits, repaired)
            if highest < best:
                best, found = highest, repaired
        if best > trial:
            low = trial + 1
        trial = (low + best) // 2
    return best, found


def _highest(limits: LoadLimits, permutation: Permutation) -> int:
    return int(limits.loads(limits.experts(permutation)).max())
