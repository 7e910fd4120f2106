"""Binary trees in heap order: from splits to the probability of every leaf."""

from __future__ import annotations

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
        Of the smooth-step function.

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
        # Of the last level, only the first nodes may have children.
        parents = min(level.shape[-1], num_leaves - 1 - first)
        level = (level[..., :parents, None] * steps[..., first : first + parents, :]).flatten(-2)
        levels.append(level)
        first += parents
    # Leaves lie on the last two levels.
    return torch.cat(levels[-2:], -1)[..., -num_leaves:]
