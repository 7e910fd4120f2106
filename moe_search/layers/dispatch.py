"""Which samples go to which expert, in the order in which experts compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DISPATCHES = ("auto", "dense", "sorted", "grouped")
"""The ways from samples to experts and back; `MixtureOfExperts` explains them."""


def known_dispatch(name: Any) -> str:
    """Return ``name``, or raise ValueError if it is none of `DISPATCHES`."""
    if name not in DISPATCHES:
        raise ValueError(f"dispatch must be one of {', '.join(map(repr, DISPATCHES))}, got {name!r}")
    return name


@dataclass(frozen=True, eq=False)
class Dispatch:
    """The pairs of a sample and an expert with a weight other than 0, sorted by expert, then by sample.

    Parameters
    ----------
    samples : Tensor of int64
        Shape [P], the sample of every pair.
    weights : Tensor
        Shape [P], the weight of every pair, with its gradient.
    counts : tuple of int
        The number of pairs of every expert, n numbers that sum to P.
    num_samples : int
        Number of samples B, with and without pairs.
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
