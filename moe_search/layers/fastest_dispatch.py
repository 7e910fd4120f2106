"""Which dispatch is fastest for the sizes at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from moe_search.layers.stacked_experts import StackedExperts

DENSE_BELOW, DENSE_BELOW_GROUPED = 8_000_000, 3_000_000
"""Multiplications of all experts on all samples that take no longer than sorting: against "sorted", and "grouped"."""

DENSE_WEIGHTS = 600_000
"""Weights of all experts beyond which reading those of idle ones, and their gradients, take the time of few samples."""

FULL_DENSE_BELOW = 300_000_000
"""Multiplications up to which samples that go to all experts are not sorted: beyond, what one expert after another
makes of them fits the cache, and what all make at once does not."""

HALF_DENSE_BELOW, HALF_DENSE_BELOW_EACH, HALF_DENSE_SAMPLES = 20_000_000, 2_500_000, 256
"""Multiplications of all experts and of each, and samples, that take no longer than sorting where samples go to half of
the experts or more and there is no backward pass."""

GROUPED_BELOW, GROUPED_ROWS = 6_000_000, 128
"""Multiplications, or samples, of an average expert below which one call for all is best if a backward pass follows:
calls, or the gradients of the weights, take the time, not products."""

GROUPED_BELOW_FORWARD, GROUPED_ROWS_FORWARD, GROUPED_BELOW_FORWARD_ALL = 4_500_000, 64, 24_000_000
"""Multiplications of an average expert below which one call for all is best without a backward pass, if there are as
few samples of an average expert, or multiplications of all."""

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
        "dense", "sorted" or "grouped"; "dense" for fake tensors and those of the device "meta", whose weights nobody
        can count.
    """
    all_pairs, multiplications = expert_weights.numel(), experts.multiplications
    n = expert_weights.shape[1]
    dense = all_pairs * multiplications
    if expert_weights.is_meta:
        return "dense"
    if not expert_weights.is_cpu:
        return "grouped" if experts.refuses_grouped() is None else "sorted"
    light = multiplications * n <= DENSE_WEIGHTS
    if light and dense <= DENSE_BELOW_GROUPED:
        return "dense"
    try:
        num_pairs = int(expert_weights.count_nonzero())
    except RuntimeError:
        return "dense"  # a fake tensor, which has no numbers
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
    all_ = num_pairs * multiplications
    each = all_ / n
    if forward_only:
        few = num_pairs <= n * GROUPED_ROWS_FORWARD or all_ <= GROUPED_BELOW_FORWARD_ALL
        grouped = n >= GROUPED_EXPERTS_FORWARD and each <= GROUPED_BELOW_FORWARD and few
    else:
        grouped = each <= GROUPED_BELOW or num_pairs <= n * GROUPED_ROWS
    small = light and dense <= DENSE_BELOW
    # Asked only where it decides: it takes longer than all else here.
    if (grouped or small) and experts.refuses_grouped() is not None:
        return "dense" if small else "sorted"
    return "grouped" if grouped else "sorted"
