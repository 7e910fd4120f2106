"""A limit on the load of every expert, put on a lowered layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from moe_search.checks import require_number
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.load_limits import InfeasibleLimitsError, LoadLimits, lowest_limit, lowest_multiple
from moe_search.training.lowering.lowering import Lowering

LoadLimit: TypeAlias = float | Sequence[float]
"""The most that experts may bear, in multiples of the mean load: all alike, or each its own."""


def limit_load(lowering: Lowering, load_limit: LoadLimit) -> Lowering:
    """Return the same lowering with its problem put under a load limit.

    The load of an expert is the number of samples of the batch with weight on one of its slots, a sample counted once
    for each such slot; no expert may bear more than ``load_limit`` times the mean load. A map
    can shift load only where experts have several slots, m > n or several rows, or limits of their own.

    Parameters
    ----------
    lowering : Lowering
        Its problem may be of any kind.
    load_limit : float or sequence of n floats
        One limit for all experts, at least 1, or one for each, at least 1 in the mean, in multiples of the mean load.

    Returns
    -------
    Lowering
        Its problem is a `LoadLimited` one. Its `initial` may break the limit; a search then starts near it.

    Raises
    ------
    InfeasibleLimitsError
        If no map keeps the limit on this batch, or none was found.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> inputs = torch.randn(64, 8)
    >>> targets = moe(inputs).detach()  # so that the present map is the best one
    >>> moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    >>> lowering = ms.lower(moe, moe, inputs, targets, torch.nn.functional.mse_loss)
    >>> try:
    ...     ms.limit_load(lowering, 1.0)
    ... except ms.InfeasibleLimitsError:
    ...     print("no map gives all experts the same load, since every one has a single slot")
    no map gives all experts the same load, since every one has a single slot
    >>> ms.limit_load(lowering, 4.0).problem.limits.tolist()
    [64.0, 64.0, 64.0, 64.0]
    """
    require_load_limit(load_limit, lowering.problem.block_size // lowering.problem.capacity)
    limit = np.asarray(load_limit, dtype=np.float64) * mean_load(lowering)
    return replace(lowering, problem=LoadLimited(lowering.problem, lowering.slot_loads, limit, start=lowering.initial))


def limit_load_if_possible(lowering: Lowering, load_limit: LoadLimit) -> Lowering:
    """Return the same lowering under a load limit as in `limit_load`, or under the lowest that a map was found for.

    Where no map keeps the limit, or none was found, limits are those that `moe_search.problems.load_limits` finds,
    alike or in the same proportions: never more than the present map needs.
    """
    try:
        return limit_load(lowering, load_limit)
    except InfeasibleLimitsError:
        problem, loads = lowering.problem, lowering.slot_loads
        unlimited = np.full(problem.block_size // problem.capacity, loads.sum())
        limits = LoadLimits(loads, unlimited, problem.block_size, problem.capacity)
        if np.ndim(load_limit) == 0:
            limit, start = lowest_limit(limits, lowering.initial)
            return replace(lowering, problem=LoadLimited(problem, loads, limit, start=start))
        each, start = lowest_multiple(limits, np.asarray(load_limit, dtype=np.float64), lowering.initial)
        return replace(lowering, problem=LoadLimited(problem, loads, each, start=start))


def mean_load(lowering: Lowering) -> float:
    """Return the mean load of the experts, in samples."""
    problem = lowering.problem
    return int(lowering.slot_loads.sum()) * problem.capacity / problem.block_size


def require_load_limit(load_limit: Any, num_experts: int) -> None:
    """Raise TypeError or ValueError unless it is a number of at least 1, or n positive ones of that mean."""
    if np.ndim(load_limit) == 0:
        if require_number("load_limit", load_limit, strict=True) < 1:
            raise ValueError(f"load_limit must be at least 1, the mean load, got {load_limit}")
        return
    each = [require_number(f"load_limit[{e}]", limit, strict=True) for e, limit in enumerate(load_limit)]
    if len(each) != num_experts:
        raise ValueError(f"load_limit must be a number, or {num_experts} of them, one for each expert, got {len(each)}")
    if sum(each) < num_experts * (1 - 1e-12):
        raise ValueError(f"load_limit must be at least 1 in the mean, the mean load, got {sum(each) / len(each):.6g}")
