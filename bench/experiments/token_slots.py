"""Slots for the tokens of a vocabulary, and groups of slots that are about equally frequent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OWN_SHARE = 0.75
"""Of the slots, that part is of one token each."""


def token_slots(counts: NDArray[np.int64], num_slots: int) -> NDArray[np.int64]:
    """Return the slot of every token: one of its own for the most frequent ones, the others dealt over the rest.

    Parameters
    ----------
    counts : ndarray of int64, shape (vocabulary,)
        How often each token occurs.
    num_slots : int
        At most as many as there are tokens.

    Raises
    ------
    ValueError
        If there are more slots than tokens.
    """
    if not 1 <= num_slots <= len(counts):
        raise ValueError(f"num_slots must be 1 .. {len(counts)}, the tokens of the vocabulary, got {num_slots}")
    own = int(OWN_SHARE * num_slots)
    ranks = np.arange(len(counts))
    slots = np.empty(len(counts), dtype=np.int64)
    slots[np.argsort(-counts, kind="stable")] = np.where(ranks < own, ranks, own + (ranks - own) % (num_slots - own))
    return slots


def frequency_strata(loads: NDArray[np.int64], num_experts: int) -> list[NDArray[np.int64]]:
    """Return groups of slots of like load, the heaviest first: n, n, 2 n, 4 n, ... of them.

    Where every expert holds equally many slots of every group, loads are about equal: the heaviest slots stand in the
    smallest groups.

    Parameters
    ----------
    loads : ndarray of int64, shape (m,)
    num_experts : int
        n, of which m is a multiple.
    """
    order = np.argsort(-loads, kind="stable")
    cuts = [num_experts]
    while cuts[-1] < len(order):
        cuts.append(2 * cuts[-1])
    return [group for group in np.split(order, cuts) if len(group)]
