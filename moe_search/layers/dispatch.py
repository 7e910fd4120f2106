"""Which samples go to which expert, in the order in which experts compute, and which way there is the fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_search.layers.stacked_experts import StackedExperts

DISPATCHES = ("auto", "dense", "sorted", "grouped")
"""The ways from samples to experts and back; `MixtureOfExperts` explains them."""


DENSE_BELOW = 300_000_000
"""Multiplications up to which all experts run on all samples; beyond, what all make at once does not fit the cache. One
that is wasted, by an expert on a sample that does not go to it, counts as `WASTED` of them."""

GROUPED_BELOW = 6_000_000
"""Multiplications of an average expert up to which one call for all is best: calls take the time, not products."""

WASTED = 33
BACKWARD = 3
"""With a backward pass, one call for all saves this many times as much."""

LEAST_SAMPLES = 16
"""Fewer take an expert as long as these: reading its weights takes the time."""


@dataclass(frozen=True, eq=False)
class Dispatch:
    """The pairs of a sample and an expert with a weight other than 0, sorted by expert, then by sample.

    Parameters
    ----------
    samples, weights : Tensor
        Shape [P]: the sample of every pair, int64, and its weight with its gradient.
    counts : tuple of int
        The number of pairs of every expert, n numbers that sum to P.
    num_samples : int
        Number of samples B, those without pairs too.
    """

    samples: Tensor
    weights: Tensor
    counts: tuple[int, ...]
    num_samples: int

    @classmethod
    def of(cls, expert_weights: Tensor) -> Dispatch:
        """Return the pairs of expert weights of shape [B, n]."""
        by_expert = expert_weights.t()
        # Row by row, so this is the sort. A NaN is not 0: it goes to its expert and shows in the output.
        experts, samples = by_expert.nonzero(as_tuple=True)
        counts = torch.bincount(experts, minlength=len(by_expert))
        return cls(samples, by_expert[experts, samples], tuple(counts.tolist()), len(expert_weights))

    def gather(self, inputs: Tensor) -> Tensor:
        """Return the inputs of all pairs, shape [P, ...], for inputs of shape [B, ...]."""
        return inputs.index_select(0, self.samples)

    def scatter(self, outputs: Tensor) -> Tensor:
        """Add up the weighted outputs of every sample: shape [B, ...], for outputs of all pairs of shape [P, ...]."""
        weights = self.weights.to(outputs.dtype).reshape(-1, *[1] * (outputs.ndim - 1))
        return outputs.new_zeros(self.num_samples, *outputs.shape[1:]).index_add(0, self.samples, weights * outputs)

    def mix_part(self, expert_weights: Tensor, outputs: Tensor) -> Tensor:
        """Add up by sample like `scatter`, with other weights of experts, shape [B, n], for these pairs or fewer.

        Pairs of weight 0 are left out, not multiplied by it: outputs that another weight asked for may be infinite.
        """
        counts = torch.tensor(self.counts).to(self.samples.device)
        experts = torch.arange(len(counts), device=counts.device).repeat_interleave(
            counts, output_size=len(self.samples)
        )
        of_pairs = expert_weights[self.samples, experts]
        own = of_pairs.nonzero().squeeze(1)
        return replace(self, samples=self.samples[own], weights=of_pairs[own]).scatter(outputs[own])


def union_of(weights: Sequence[Tensor]) -> Tensor:
    """Return what is other than 0 where one of some weights of experts is, shape [B, n]: the weights if there are one.

    Several give a mask.
    """
    return weights[0] if len(weights) == 1 else torch.stack([each != 0 for each in weights]).any(0)


def fastest_dispatch(experts: StackedExperts, expert_weights: Tensor) -> str:
    """Return the fastest dispatch on a CPU, "dense", "sorted" or "grouped", by the number of multiplications.

    Its two thresholds were fitted to the times of `bench.speed.dispatch_speed` on a CPU core, of which the choice is
    within 8 % of the best. They say nothing of other devices, where `device_dispatch.chosen_path` chooses.

    Parameters
    ----------
    experts : StackedExperts
    expert_weights : Tensor
        Shape [B, n], with numbers that can be read.
    """
    samples, n = expert_weights.shape
    passes = BACKWARD if torch.is_grad_enabled() else 1
    cost = experts.multiplications * max(1.0, LEAST_SAMPLES / samples)
    all_pairs = samples * n
    # Pairs are counted only where they decide: a small layer takes less time than that.
    if WASTED * passes * all_pairs * cost <= DENSE_BELOW:
        return "dense"
    pairs = int(expert_weights.count_nonzero())
    dense, wasted = pairs * cost, WASTED * (all_pairs - pairs) * cost
    if dense + passes * wasted <= DENSE_BELOW:
        return "dense"
    if experts.refuses_grouped() is None:
        return "grouped" if pairs * experts.multiplications <= passes * GROUPED_BELOW * n else "sorted"
    # One call after another takes as much longer with a backward pass as all experts do.
    return "dense" if dense + wasted <= DENSE_BELOW else "sorted"
