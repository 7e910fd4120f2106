"""COMET at inference: only the branches that a sample reaches."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.gates.leaf_probabilities import leaf_probabilities

LEAST_LEAVES = 128
"""Trees with fewer leaves are faster computed whole."""

LEAST_SAMPLES = 2048
"""Batches with fewer samples too: every subtree reached costs some calls, however few its samples are."""

MOST_REACHED = 0.3
"""Descend only if this part of the subtrees, at most, is reached by an average sample."""


def descend(features: Tensor, nodes: nn.Linear, num_trees: int, gamma: float) -> tuple[Tensor, Tensor] | None:
    """Return logits and probabilities of the leaves that samples reach, or None where it is faster to compute all.

    Every tree is cut at half its depth. The splits above the cut are computed for all samples; a subtree below, splits
    and leaves, only for the samples that reach its root with a probability other than 0.

    Parameters
    ----------
    features : Tensor
        Shape [B, d].
    nodes : Linear
        From d features to T (2 m - 1) nodes, tree after tree in heap order.
    num_trees : int
        Number of trees T.
    gamma : float
        Of the smooth-step function.

    Returns
    -------
    logits, probabilities : Tensor
        Shape [B, T, m]. Both 0 at the leaves of a subtree that is not reached.
    """
    num_leaves = (nodes.out_features // num_trees + 1) // 2
    if num_leaves < LEAST_LEAVES or len(features) < LEAST_SAMPLES:
        return None
    num_subtrees = 2 ** (num_leaves.bit_length() // 2)
    trees = torch.arange(nodes.out_features, device=features.device).view(num_trees, -1)
    splits = _affine(features, nodes, trees[:, : num_subtrees - 1].flatten()).view(len(features), num_trees, -1)
    reach = leaf_probabilities(splits, gamma)
    roots, samples = reach.flatten(1).t().nonzero(as_tuple=True)
    if len(samples) > MOST_REACHED * reach.numel():
        return None
    counts = torch.bincount(roots, minlength=num_trees * num_subtrees).tolist()
    logits = reach.new_zeros(len(features), num_trees, num_leaves)
    probabilities = torch.zeros_like(logits)
    for number, rows in enumerate(torch.split(samples, counts)):
        if len(rows):
            tree, root = divmod(number, num_subtrees)
            subtree, num_splits = _subtree(num_leaves, num_subtrees, root, features.device)
            values = _affine(features[rows], nodes, trees[tree, subtree])
            below = leaf_probabilities(values[:, :num_splits], gamma)
            place = rows[:, None], tree, subtree[num_splits:] - (num_leaves - 1)
            logits[place] = values[:, num_splits:]
            probabilities[place] = reach[rows, tree, root, None] * below
    return logits, probabilities


def _affine(features: Tensor, nodes: nn.Linear, rows: Tensor) -> Tensor:
    """Return the values of some nodes, in the precision of the weights, autocast or not."""
    bias = None if nodes.bias is None else nodes.bias[rows]
    return functional.linear(features, nodes.weight[rows], bias).to(nodes.weight.dtype)


@lru_cache(maxsize=4096)
def _subtree(num_leaves: int, num_subtrees: int, root: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the nodes of a subtree in its own heap order, and how many of them are splits.

    Every subtree of a heap is a heap: its leaves come last.
    """
    first = last = num_subtrees - 1 + root
    subtree: list[int] = []
    while first < 2 * num_leaves - 1:
        subtree += range(first, min(last, 2 * num_leaves - 2) + 1)
        first, last = 2 * first + 1, 2 * last + 2
    return torch.tensor(subtree, device=device), len(subtree) // 2
