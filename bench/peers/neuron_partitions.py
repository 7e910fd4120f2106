"""How others divide the neurons of a feed-forward layer into experts.

Each function returns the neurons of every expert, shape [n, h / n], as `split_feed_forward` takes them.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_search.layers import deal_neurons
from moe_search.problems import LinearAssignment
from moe_search.solvers import MaxRuntime, Transport

KMEANS_STEPS = 12
ACTIVATED = 10
"""Neurons of a token that count as activated, ``K_a`` of CMoE."""


def moebert_deal(mass: Tensor, num_experts: int) -> Tensor:
    """Deal the neurons round by their importance: Zuo et al. (2022), MoEBERT, here of the masses [rows, h]."""
    return deal_neurons(mass.sum(0), num_experts, mass.shape[1] // num_experts, 0)


def moefication(first: Tensor, num_experts: int, seed: int = 0) -> Tensor:
    """Cluster the input weights [h, in] of neurons by balanced k-means: Zhang et al. (2022), MoEfication."""
    points = (first / first.norm(dim=1, keepdim=True)).double().numpy()
    generator = np.random.default_rng(seed)
    centers = points[generator.choice(len(points), num_experts, replace=False)]
    experts = None
    for _ in range(KMEANS_STEPS):
        before, experts = experts, _transported(np.square(centers).sum(1) - 2 * points @ centers.T)
        if before is not None and np.array_equal(experts, before):
            break
        centers = np.stack([points[experts == e].mean(0) for e in range(num_experts)])
    assert experts is not None
    return _neurons(experts)


def cmoe(activations: Tensor, num_experts: int) -> Tensor:
    """Cluster by which tokens activate a neuron most, around the busiest ones: Pei et al. (2025), CMoE.

    One balanced assignment by the Hamming distance to centers that are neurons themselves, as published; `activations`
    have shape [rows, h].
    """
    largest = activations.abs().topk(min(ACTIVATED, activations.shape[1]), dim=1).indices
    marks = torch.zeros_like(activations, dtype=torch.float64).scatter(1, largest, 1.0).numpy()
    counts = marks.sum(0)
    centers = np.argsort(-counts, kind="stable")[:num_experts]
    return _neurons(_transported(counts[:, None] + counts[centers] - 2 * marks.T @ marks[:, centers]))


def _transported(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    result = Transport().solve(LinearAssignment(cost), MaxRuntime(math.inf))
    return result.permutation // (cost.shape[0] // cost.shape[1])


def _neurons(experts: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.argsort(experts, kind="stable")).view(int(experts.max()) + 1, -1)
