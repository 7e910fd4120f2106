"""The smooth-step function, a sigmoid that reaches 0 and 1, and the probabilities of leaves that are made of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
    """Return S(t), elementwise.

    S(t) = 0 for t <= -gamma / 2, 1 for t >= gamma / 2, and -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2 between: once
    continuously differentiable, with S(-t) = 1 - S(t).

    Parameters
    ----------
    t : Tensor
        Floating point, any shape.
    gamma : float
        Width of the part that is neither 0 nor 1, greater than 0.

    Returns
    -------
    Tensor
        The shape of t. Exactly 0 and 1, with gradient exactly 0, outside of that part.

    Notes
    -----
    Hazimeh, Ponomareva, Mol, Tan and Mazumder (2020), The Tree Ensemble Layer, equation 3.
    """
    # The same cubic in u = t / gamma + 1/2, where both ends are exact in floating point.
    u = torch.clamp(t / gamma + 0.5, 0.0, 1.0)
    return u * u * (3.0 - 2.0 * u)


def entropy_terms(p: Tensor) -> Tensor:
    """Return -p log p elementwise, 0 where p is 0 or below the least normal number of its dtype.

    Its gradient is finite everywhere, and 0 there.
    """
    # 1 log 1 = 0 stands for 0 log 0, whose slope is infinite.
    p = p.masked_fill(p < torch.finfo(p.dtype).tiny, 1.0)
    return -p * p.log()


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
