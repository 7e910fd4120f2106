"""The smooth-step function, a sigmoid that reaches 0 and 1, and the probabilities of leaves that are made of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardtanh, threshold

from moe_search.gates.batch_checks import is_exporting


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
    return _cubic(_part(t, gamma))


def _part(t: Tensor, gamma: float) -> Tensor:
    """Return ``u = t / gamma + 1/2``, kept in 0 .. 1: there both ends of the cubic are exact in floating point."""
    # A clamp takes four passes backward, this takes one.
    return hardtanh(t / gamma + 0.5, 0.0, 1.0)


def _cubic(u: Tensor) -> Tensor:
    return torch.rsub(u, 3.0, alpha=2.0) * u * u


class BothSteps(torch.autograd.Function):
    """S and 1 - S of the smooth-step function at parts u, stacked along a new axis before the last.

    1 - S(t) is S(-t), the same cubic of 1 - u, where a small number keeps its digits. The slopes of the two differ in
    their sign only: what autograd would do takes four times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        """Return both."""
        return _both_steps(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep the parts."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the parts."""
        (u,) = ctx.saved_tensors
        left, right = gradient.unbind(-2)
        return (6.0 * u) * (1.0 - u) * (left - right)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """Return the derivative along a tangent."""
        (u,) = ctx.saved_tensors
        left = (6.0 * u) * (1.0 - u) * tangent
        return torch.stack((left, -left), -2)


def _both_steps(u: Tensor) -> Tensor:
    return torch.stack((_cubic(u), _cubic(1.0 - u)), -2)


def entropy_terms(p: Tensor) -> Tensor:
    """Return -p log p elementwise, 0 where p is 0 or below the least normal number of its dtype.

    Its gradient is finite everywhere, and 0 there.
    """
    # 1 log 1 = 0 stands for 0 log 0, whose slope is infinite.
    p = where_above(p, torch.finfo(p.dtype).tiny, 1.0)
    return -p * p.log()


def where_above(p: Tensor, least: float, value: float) -> Tensor:
    """Return ``p`` where it is greater than ``least``, and else ``value``, without a gradient."""
    if is_exporting():
        # ONNX knows no threshold.
        return p.masked_fill(p <= least, value)
    # This takes one pass in both directions; masks take two each, which branch on every entry.
    return threshold(p, least, value)


def leaf_probabilities(splits: Tensor, gamma: float) -> Tensor:
    """Return the probability of every leaf of binary trees in heap order.

    Parameters
    ----------
    splits : Tensor
        Shape [..., m - 1, R], the argument of the smooth-step function at every split node, R trees side by side;
        m >= 1.
    gamma : float
        Width of the smooth-step function.

    Returns
    -------
    Tensor
        Shape [..., m, R]: the product along the path from the root of S (left) or 1 - S (right), leaf s being node
        m - 1 + s of the heap. Sums to 1.

    Notes
    -----
    With trees along the last axis, all products run over contiguous memory.
    """
    # Where a trace is taken, sizes are tensors.
    num_leaves = int(splits.shape[-2]) + 1
    if num_leaves == 1:
        return torch.ones_like(splits.sum(-2, keepdim=True))
    u = _part(splits, gamma)
    # What becomes a graph is best of torch's own operations.
    graph = is_exporting() or torch.compiler.is_compiling()
    steps = _both_steps(u) if graph else BothSteps.apply(u)  # type: ignore[no-untyped-call]
    # Only the first nodes of the last level but one may have children.
    widths = [min(2**depth, num_leaves - 2**depth) for depth in range((num_leaves - 1).bit_length())]
    root, *parts = steps.split(widths, -3)
    level = root.flatten(-3, -2)
    for part in parts[:-1]:
        level = (level.unsqueeze(-2) * part).flatten(-3, -2)
    if not parts:
        return level
    last = widths[-1]
    if num_leaves == 2 * last:
        return (level.unsqueeze(-2) * parts[-1]).flatten(-3, -2)
    parents, leaves = level[..., :last, :], level[..., last:, :]
    return torch.cat((leaves, (parents.unsqueeze(-2) * parts[-1]).flatten(-3, -2)), -2)


def live_leaves(splits: Tensor, gamma: float) -> tuple[Tensor, Tensor] | None:
    """Descend from the roots of binary trees in heap order, only into branches with a probability other than 0.

    Parameters
    ----------
    splits, gamma : Tensor, float
        As in `leaf_probabilities`, but with R trees along the first axis: shape [R, m - 1], m >= 2.

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
        u = _part(values[tree * num_splits + node], gamma)
        p = torch.cat([p * _cubic(u), p * _cubic(1.0 - u)])
        alive = p.nonzero().squeeze(1)
        tree = torch.cat([tree, tree])[alive]
        node = torch.cat([2 * node + 1, 2 * node + 2])[alive]
        p = p[alive]
        first, width = first + width, 2 * width
        if len(tree) > rows * math.sqrt(2 * width):
            return None
