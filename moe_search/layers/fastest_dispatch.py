"""Which dispatch is fastest for the sizes at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moe_search.layers.stacked_experts import StackedExperts

DENSE_BELOW, DENSE_BELOW_GROUPED = 8_000_000, 3_000_000
"""Multiplications of all experts on all samples that take no longer than sorting: against "sorted", and "grouped"."""

FULL_DENSE_BELOW = 2_000_000_000
"""Multiplications up to which samples that go to all experts are not sorted: beyond, the sorted rows fit the cache."""

HALF_DENSE_BELOW, HALF_DENSE_BELOW_EACH, HALF_DENSE_SAMPLES = 20_000_000, 2_500_000, 256
"""Multiplications of all experts and of each, and samples, that take no longer than sorting where samples go to half of
the experts or more and there is no backward pass."""

GROUPED_BELOW, GROUPED_BELOW_FORWARD = 4_000_000, 2_000_000
"""Multiplications of an average expert below which calls, not products, take the time, so that one for all is best:
with a backward pass, and without."""

GROUPED_EXPERTS_FORWARD = 8
"""Experts below which one call for all takes no less than a call for each, without a backward pass."""


def fastest_dispatch(experts: StackedExperts, expert_weights: Tensor) -> str:
    """Return the fastest dispatch by the number of multiplications, with limits measured on a CPU core.

    On other devices it is "grouped" where possible, which nothing here has measured. See `bench.dispatch_speed`.

    Parameters
    ----------
    experts : StackedExperts
    expert_weights : Tensor
        Shape [B, n].

    Returns
    -------
    str
        "dense", "sorted" or "grouped".
    """
    on_cpu = expert_weights.device.type == "cpu"
    n = experts.num_experts
    all_pairs = expert_weights.numel()
    dense = all_pairs * experts.multiplications
    if on_cpu and dense <= DENSE_BELOW_GROUPED:
        return "dense"
    refused = experts.refuses_grouped() is not None
    if not on_cpu:
        return "sorted" if refused else "grouped"
    if refused and dense <= DENSE_BELOW:
        return "dense"
    num_pairs = int(expert_weights.count_nonzero())
    if num_pairs == all_pairs and dense <= FULL_DENSE_BELOW:
        return "dense"
    forward_only = not torch.is_grad_enabled()
    if (
        forward_only
        and 2 * num_pairs >= all_pairs
        and dense <= min(HALF_DENSE_BELOW, HALF_DENSE_BELOW_EACH * n)
        and len(expert_weights) <= HALF_DENSE_SAMPLES
    ):
        return "dense"
    if refused or (forward_only and n < GROUPED_EXPERTS_FORWARD):
        return "sorted"
    most = n * (GROUPED_BELOW_FORWARD if forward_only else GROUPED_BELOW)
    return "sorted" if num_pairs * experts.multiplications > most else "grouped"
