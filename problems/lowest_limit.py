"""The lowest limits on the loads of experts that some permutation keeps: the same for all, or in given proportions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_search.problems.load_limited_start import LoadLimits, greedy, least_highest_load, repair
from moe_search.problems.permutation_problem import Permutation

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


def lowest_multiple(
    limits: LoadLimits, shares: npt.NDArray[np.float64], near: Permutation
) -> tuple[npt.NDArray[np.int64], Permutation]:
    """Return low limits in given proportions, and a permutation that keeps them.

    As `lowest_limit`, by bisection on the multiple, from the larger of these on: all loads to all shares, and the
    heaviest slot to the largest share.

    Parameters
    ----------
    limits : LoadLimits
        The loads; their limits are not looked at.
    shares : ndarray, shape (n,)
        What an expert may bear, in proportion to the others; greater than 0.
    near : ndarray of int64
        A permutation, whose highest load of a share is the worst that is returned.

    Returns
    -------
    limits : ndarray of int64, shape (n,)
    permutation : ndarray of int64
    """

    def multiple(permutation: Permutation) -> float:
        return float((limits.loads(limits.experts(permutation)) / shares).max())

    loads = limits.slot_load
    low = max(loads.sum() / shares.sum(), loads.max() / shares.max())
    best, found = multiple(near), near
    trial = low
    for _ in range(ROUNDS):
        if low >= best:
            break
        tried = replace(limits, limit=np.floor(trial * shares).astype(np.int64))
        for start in (near, greedy(tried)):
            repaired = repair(tried, start)
            if multiple(repaired) < best:
                best, found = multiple(repaired), repaired
        low = max(low, trial) if best > trial else low
        trial = (low + best) / 2
    kept = limits.loads(limits.experts(found))
    return np.maximum(kept, np.floor(best * shares).astype(np.int64)), found


def _highest(limits: LoadLimits, permutation: Permutation) -> int:
    return int(limits.loads(limits.experts(permutation)).max())
