"""The gate of trees: cardinality-constrained and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_search.gates.arguments import at_most_slots, number_from_zero, positive_integer, positive_number
from moe_search.gates.comet_descent import descend
from moe_search.gates.gate import Gate
from moe_search.gates.leaf_probabilities import leaf_probabilities
from moe_search.gates.slot_weights import SlotWeights


class COMET(Gate):
    """k trees of smooth-step splits with the slots at the leaves.

    A tree has m - 1 split nodes in heap order: the children of node i are 2 i + 1 (left) and 2 i + 2, so that the
    leaves are the nodes m - 1 .. 2 m - 2, for m of any size. A sample x goes left at node i with probability
    S(v_i . x + b_i), S the smooth-step function, and reaches leaf s of tree t with p[t, s], the product along the path.
    With a[t, s] affine in x,

        g = softmax over all k m leaves of a + log p,    g[t, s] = 0 where p[t, s] = 0.

    Once every split is outside of (-gamma / 2, gamma / 2), a sample reaches one leaf a tree: at most k weights are not
    0. The penalty drives the splits there.

    Parameters
    ----------
    in_features : int
        Number of features of a sample.
    num_experts : int
        Number of experts n.
    k : int
        Number of trees, at most m: what the number of experts of a sample comes down to.
    num_slots : int, optional
        Number of leaves m of a tree, a multiple of n; n by default.
    gamma : float
        Width of the part of the smooth-step function that is neither 0 nor 1.
    entropy : float
        Factor lambda of the penalty, ``lambda * mean_b sum_ts -p log p``. 0 for none.
    shared_map : bool
        Whether all trees have one row of the expert map: leaf s is of the same expert in all.

    Raises
    ------
    TypeError
        If a size is not an integer, or gamma or entropy not a number.
    ValueError
        If a size is less than 1, m is not a multiple of n, k > m, gamma is not positive or entropy is negative.

    Notes
    -----
    Ibrahim, Chen, Hazimeh, Ponomareva, Zhao and Mazumder (2023), COMET: learning cardinality constrained mixture of
    experts with trees and local search, section 3. As in its TensorFlow version, and unlike its torch version, splits
    have a bias; log p is exact, p being taken as 0 only below the least normal number of its dtype.

    In eval mode and without gradients, large batches and trees are descended: subtrees that a sample reaches with
    probability 0 are not computed for it, and the logits of the slot weights are None. See `comet_descent`.

    The affine functions of all nodes, splits and leaves of tree after tree, are the rows of the one layer `nodes`:
    row ``t * (2 m - 1) + i`` is node i of tree t. They start as `torch.nn.Linear`, weight and bias uniform within
    1 / sqrt(in_features) of 0: with gamma = 1 and standardized inputs, some 4 of 10 splits are saturated.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.comet import COMET
    >>> gate = COMET(in_features=8, num_experts=6, k=2)
    >>> routing = gate(torch.randn(5, 8))
    >>> routing.weights.shape, gate.penalty(routing).shape
    (torch.Size([5, 2, 6]), torch.Size([]))
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        k: int,
        num_slots: int | None = None,
        gamma: float = 1.0,
        entropy: float = 1e-2,
        shared_map: bool = False,
    ) -> None:
        super().__init__(
            num_experts, num_slots, positive_integer("k", k), in_features=in_features, shared_map=shared_map
        )
        self.k = at_most_slots("k", k, self.num_slots)
        self.gamma = positive_number("gamma", gamma)
        self.entropy = number_from_zero("entropy", entropy)
        self.nodes = nn.Linear(in_features, self.k * (2 * self.num_slots - 1))

    def forward(self, inputs: Tensor, ids: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        features = self.features(inputs, self.nodes.weight.dtype)
        reached = None
        if not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            reached = descend(features, self.nodes, self.k, self.gamma)
        if reached is None:
            splits, logits = (
                self.nodes(features).unflatten(1, (self.k, -1)).split([self.num_slots - 1, self.num_slots], dim=2)
            )
            p = leaf_probabilities(splits, self.gamma)
        else:
            logits, p = reached
        dead = p < torch.finfo(p.dtype).tiny
        # The logarithm is kept away from 0, where its infinite slope times the zero slope of the splits would be NaN.
        scores = (logits + p.masked_fill(dead, 1.0).log()).masked_fill(dead, -torch.inf)
        weights = scores.flatten(1).softmax(1).unflatten(1, (self.k, -1))
        return SlotWeights(weights, logits if reached is None else None, p)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return ``lambda * mean_b sum_ts -p log p`` of the path probabilities, a scalar.

        Raises
        ------
        ValueError
            If the slot weights have no probabilities.
        """
        p = slot_weights.probabilities
        if p is None:
            raise ValueError("slot_weights must have probabilities, as those of COMET do, got None")
        # 1 log 1 = 0 stands for 0 log 0, whose slope is infinite.
        p = p.masked_fill(p < torch.finfo(p.dtype).tiny, 1.0)
        return -self.entropy * (p * p.log()).sum((1, 2)).mean()

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{super().extra_repr()}, k={self.k}, gamma={self.gamma:g}, entropy={self.entropy:g}"
