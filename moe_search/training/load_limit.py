"""A limit on the load of every expert, put on a lowered layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moe_search.gates.arguments import positive_number
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.load_limited_start import InfeasibleLimitsError, LoadLimits
from moe_search.problems.lowest_limit import lowest_limit
from moe_search.training.lowering import Lowering


def limit_load(lowering: Lowering, load_limit: float) -> Lowering:
    """Return the same lowering with its problem put under a load limit.

    The load of an expert is the number of samples of the batch with weight on one of its slots, a sample counted once
    for each such slot; no expert may bear more than ``load_limit`` times the mean load. A map
    can shift load only where experts have several slots, m > n or several rows.

    Parameters
    ----------
    lowering : Lowering
        Of any kind of problem.
    load_limit : float
        In multiples of the mean load, at least 1.

    Returns
    -------
    Lowering
        With a `LoadLimited` problem. Its `initial` may break the limit; a search then starts near it.

    Raises
    ------
    TypeError, ValueError
        If `load_limit` is no number of at least 1.
    InfeasibleLimitsError
        If no map keeps the limit on this batch, or none was found.
    """
    require_load_limit(load_limit)
    limit = load_limit * mean_load(lowering)
    return replace(lowering, problem=LoadLimited(lowering.problem, lowering.slot_loads, limit, start=lowering.initial))


def limit_load_if_possible(lowering: Lowering, load_limit: float) -> Lowering:
    """Return the same lowering under a load limit, or under the lowest that a map was found for.

    Parameters
    ----------
    lowering : Lowering
        Of any kind of problem.
    load_limit : float
        In multiples of the mean load, at least 1. Where no map keeps it, or none was found, the limit is the one that
        `moe_search.problems.lowest_limit.lowest_limit` finds: never more than the highest load of the present map.

    Returns
    -------
    Lowering
        With a `LoadLimited` problem, whose limits are alike.

    Raises
    ------
    TypeError, ValueError
        If `load_limit` is no number of at least 1.
    """
    try:
        return limit_load(lowering, load_limit)
    except InfeasibleLimitsError:
        problem, loads = lowering.problem, lowering.slot_loads
        unlimited = np.full(problem.block_size // problem.capacity, loads.sum())
        limits = LoadLimits(loads, unlimited, problem.block_size, problem.capacity)
        limit, start = lowest_limit(limits, lowering.initial)
        return replace(lowering, problem=LoadLimited(problem, loads, limit, start=start))


def mean_load(lowering: Lowering) -> float:
    """Return the mean load of the experts, in samples."""
    problem = lowering.problem
    return int(lowering.slot_loads.sum()) * problem.capacity / problem.block_size


def require_load_limit(load_limit: Any) -> None:
    """Raise TypeError or ValueError unless ``load_limit`` is a finite number of at least 1."""
    if positive_number("load_limit", load_limit) < 1:
        raise ValueError(f"load_limit must be at least 1, the mean load, got {load_limit}")
