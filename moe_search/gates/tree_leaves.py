"""The probabilities of the leaves of trees of smooth-step splits: of all leaves, or of those that samples reach."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_search.gates.smooth_step import smooth_step


def leaf_probabilities(splits: Tensor, gamma: float) -> Tensor:
    """Return the probability of every leaf of binary trees in heap order.

    Parameters
    ----------
    splits : Tensor
        Shape [..., m - 1], the argument of the smooth-step function at every split node; m >= 1.
    gamma : float
        Width of the smooth-step function.

    Returns
    -------
    Tensor
        Shape [..., m]: the product along the path from the root of S (left) or 1 - S (right), leaf s being node
        m - 1 + s of the heap. Sums to 1.
    """
    num_leaves = splits.shape[-1] + 1
    # 1 - S(t) = S(-t), but a small S(-t) keeps its digits. In the last two axes: nodes 1, 2, 3, ... two by two.
    steps = smooth_step(torch.stack((splits, -splits), -1), gamma)
    level = splits.new_ones((*splits.shape[:-1], 1))
    levels = [level]
    first = 0
    while first < num_leaves - 1:
        # Only the first nodes of the last level but one may have children.
        parents = min(level.shape[-1], num_leaves - 1 - first)
        level = (level[..., :parents, None] * steps[..., first : first + parents, :]).flatten(-2)
        levels.append(level)
        first += parents
    # Leaves lie on the last two levels.
    return torch.cat(levels[-2:], -1)[..., -num_leaves:]


def live_leaves(splits: Tensor, gamma: float) -> tuple[Tensor, Tensor] | None:
    """Descend from the roots of binary trees in heap order, only into branches with a probability other than 0.

    Parameters
    ----------
    splits, gamma : Tensor, float
        As in `leaf_probabilities`, for R trees: shape [R, m - 1], m >= 2.

    Returns
    -------
    leaves : Tensor of int64
        The position of every leaf reached in a table of shape [R, m], flattened.
    probabilities : Tensor
        The probabilities of these leaves, to the bit what `leaf_probabilities` gives them.
    None
        If so many branches are alive that looking at all nodes at once costs less: more than sqrt(2 w) nodes a tree, at
        a level of w nodes.
    """
    rows, num_splits = splits.shape
    values = splits.reshape(-1)
    tree = torch.arange(rows, device=splits.device)
    node = torch.zeros_like(tree)
    p = splits.new_ones(rows)
    found: list[tuple[Tensor, Tensor]] = []
    first, width = 0, 1
    while True:
        if first + width > num_splits:
            leaf = (node >= num_splits).nonzero().squeeze(1)
            found.append((tree[leaf] * (num_splits + 1) + node[leaf] - num_splits, p[leaf]))
            split = (node < num_splits).nonzero().squeeze(1)
            tree, node, p = tree[split], node[split], p[split]
            if not len(tree):
                return torch.cat([leaves for leaves, _ in found]), torch.cat([reached for _, reached in found])
        t = values[tree * num_splits + node]
        # 1 - S(t) = S(-t), but a small S(-t) keeps its digits.
        p = torch.cat([p * smooth_step(t, gamma), p * smooth_step(-t, gamma)])
        alive = p.nonzero().squeeze(1)
        tree = torch.cat([tree, tree])[alive]
        node = torch.cat([2 * node + 1, 2 * node + 2])[alive]
        p = p[alive]
        first, width = first + width, 2 * width
        if len(tree) > rows * math.sqrt(2 * width):
            return None
