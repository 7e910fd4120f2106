"""Devices of two slots: how many replicas every expert has decides whether all devices stay within a limit.

The replicas of an expert share its load evenly, so that the heaviest shares must each have a light enough partner: for
every s, no more replicas bear s or more than bear limit - s or less. Conversely, where that holds, the heaviest share
goes with the lightest, the second with the second, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.optimize import linprog

from moe_search.problems.placement import ExpertPlacement

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# A device this part above a limit, or this part of a slot beyond those there are, is within: rounding errors.
ROUNDING = 1e-12
SLOT_ROUNDING = 1e-6
# The relaxation begins with so many numbers of replicas above the least; others enter where they would cost less.
FIRST_COPIES = 3
# A limit is raised by this part at first; half as much whenever that makes it possible, down to a hundred-thousandth.
FIRST_RISE, MOST_STEPS = 0.08, 24
SECONDS_PER_EXPERT = 7e-4
LEAST_GAIN = 1e-7


@dataclass(frozen=True, eq=False)
class ReplicaCounts:
    """Numbers of replicas that an expert may have where no device bears more than a limit, one row for each.

    Parameters
    ----------
    expert, copies : ndarray of int64, shape (rows,)
        The expert, and how many replicas it has.
    share : ndarray, shape (rows,)
        What each of these bears.
    limit : float
        What a device bears at most.
    least_slots : float
        How many slots the experts take at least, by the linear relaxation.
    extra : ndarray, shape (rows,)
        How many more they take at least if this row is chosen.
    """

    expert: Integers
    copies: Integers
    share: Floats
    limit: float
    least_slots: float
    extra: Floats

    def within(self, extra: float) -> ReplicaCounts:
        """Return the rows that take at most so many slots more."""
        kept = self.extra <= extra
        return ReplicaCounts(
            self.expert[kept], self.copies[kept], self.share[kept], self.limit, self.least_slots, self.extra[kept]
        )


def possible_counts(load: Floats, devices: int, limit: float) -> ReplicaCounts | None:
    """Return what may be chosen if no device bears more than `limit`; None if nothing, which is then proved.

    The relaxation minimizes the slots that are taken. Whatever its solver answers, what is returned follows from the
    prices of the conditions alone: each price times its condition is added to the slots, and every expert chooses its
    number of replicas by itself.
    """
    slots, limit = 2 * devices, limit * (1 + ROUNDING)
    most = min(devices, slots - len(load) + 1)
    room = limit - load.min() / most
    if room <= 0:
        return None
    least = np.maximum(1, np.ceil(load / room - 1e-9).astype(np.int64))
    spare = slots - int(least.sum())
    if spare < 0 or least.max() > most:
        return None
    copies = (least[:, None] + np.arange(spare + 1)).ravel()
    expert = np.repeat(np.arange(len(load)), spare + 1)
    expert, copies = expert[copies <= most], copies[copies <= most]
    share = load[expert] / copies
    used = copies <= least[expert] + FIRST_COPIES
    while True:
        kept = np.flatnonzero(used)
        heavy = heavy_shares(share[kept], limit)
        once = sp.csr_matrix((np.ones(len(kept)), (expert[kept], np.arange(len(kept)))), shape=(len(load), len(kept)))
        # A condition may be violated at a price, so that there always is a solution.
        answer = linprog(
            np.concatenate([copies[kept], np.full(len(heavy), slots)]),
            A_ub=sp.hstack([sp.csr_matrix(conditions(share[kept], copies[kept], limit)), -sp.identity(len(heavy))]),
            b_ub=np.zeros(len(heavy)),
            A_eq=sp.hstack([once, sp.csr_matrix((len(load), len(heavy)))]),
            b_eq=np.ones(len(load)),
            method="highs",
        )
        prices = np.maximum(0.0, -answer.ineqlin.marginals)
        # Prices of the conditions that a row is heavy in, less those that it is light in.
        as_heavy = np.concatenate([[0.0], np.cumsum(prices)])[np.searchsorted(heavy, share, side="right")]
        fall = np.concatenate([[0.0], np.cumsum(prices[::-1])])
        as_light = fall[-1] - fall[np.searchsorted((limit - heavy)[::-1], share, side="left")]
        cost = copies * (1 + as_heavy - as_light)
        lowest = np.full(len(load), np.inf)
        np.minimum.at(lowest, expert, cost)
        enter = ~used & (cost < answer.eqlin.marginals[expert] - LEAST_GAIN)
        if not enter.any():
            break
        used |= enter
    least_slots = float(lowest.sum())
    if least_slots > slots + SLOT_ROUNDING:
        return None
    found = ReplicaCounts(expert, copies, share, limit, least_slots, cost - lowest[expert])
    return found.within(slots - least_slots + SLOT_ROUNDING)


def counting_bounds(problem: ExpertPlacement, seconds: float) -> Floats:
    """Return what the most loaded device of every layer bears at least, as closely as about `seconds` allow.

    That is `load_bounds` where devices have not two slots each. Else a limit is raised as long as it is impossible.
    """
    bounds = problem.load_bounds.copy()
    if not has_two_slots(problem):
        return bounds
    steps = seconds / (SECONDS_PER_EXPERT * problem.load.size)
    for layer, load in enumerate(problem.load):
        rise = FIRST_RISE
        for _ in range(int(min(steps, MOST_STEPS))):
            limit = bounds[layer] * (1 + rise)
            if possible_counts(load, problem.cluster.num_devices, limit) is None:
                bounds[layer] = limit
            else:
                rise *= 0.5
    return bounds


def has_two_slots(problem: ExpertPlacement) -> bool:
    """Return whether every device has two slots, and any may hold any expert."""
    return problem.num_groups is None and bool((problem.cluster.slots == 2).all())


def heavy_shares(share: Floats, limit: float) -> Floats:
    """Return the least of the shares above half the limit for each choice of partners, in rising order."""
    heavy = np.unique(share[share > 0.5 * limit])
    partners = np.searchsorted(np.sort(share), limit - heavy, side="right")
    return heavy[np.unique(partners, return_index=True)[1][::-1]]


def conditions(share: Floats, copies: Integers, limit: float) -> Integers:
    """Return what every row adds to each condition, which holds at 0 or less: its replicas that need a light partner.

    Those that are one are taken off.
    """
    heavy = heavy_shares(share, limit)[:, None]
    return copies * ((share >= heavy).astype(np.int64) - (share <= limit - heavy))


def paired(load: Floats, copies: Integers, limit: float) -> Integers | None:
    """Return the expert in every slot, two a device, none twice on one; None if no pairing within the limit is found.

    The heaviest replica goes with the lightest. A pair of an expert with itself exchanges with a pair near it.
    """
    share = load / copies
    order = np.argsort(-share, kind="stable")
    expert = np.repeat(order, copies[order])
    half = len(expert) // 2
    pairs = np.stack([expert[:half], expert[half:][::-1]], axis=1)
    for i in np.flatnonzero(pairs[:, 0] == pairs[:, 1])[::-1]:
        e = pairs[i, 0]
        after = share[e] + share[pairs]
        fits = np.flatnonzero((pairs != e).all(axis=1) & (after <= limit).all(axis=1))
        if not len(fits):
            return None
        j = fits[-1]
        pairs[i, 1], pairs[j, 0] = pairs[j, 0], e
    return pairs.ravel()
