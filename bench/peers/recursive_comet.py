"""The literal twin of COMET: one module a node, calling its children, as the published code is built."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_search.gates.smooth_step import smooth_step


class RecursiveCOMET(nn.Module):
    """A node of k trees and, recursively, all below it; made as node 0, the whole gate.

    It computes what ``COMET(..., convention="torch")`` does, and its state dict has the published torch version's
    layout. Every node gets the list of all experts' outputs and concatenates it, as in the published code.

    Nodes are numbered in heap order, `k` is the number of trees and `gamma` the width of the smooth-step function.
    """

    def __init__(self, in_features: int, num_experts: int, k: int, gamma: float = 1.0, node: int = 0) -> None:
        super().__init__()
        self.k = k
        self.gamma = gamma
        self.node = node
        self.is_leaf = node >= num_experts - 1
        if self.is_leaf:
            self.output_layer = nn.Linear(in_features, k)
        else:
            self.selector_layer = nn.Linear(in_features, k, bias=False)
            self.left_child = RecursiveCOMET(in_features, num_experts, k, gamma, 2 * node + 1)
            self.right_child = RecursiveCOMET(in_features, num_experts, k, gamma, 2 * node + 2)

    def forward(self, outputs: list[Tensor], inputs: Tensor, probability: Tensor | float = 1.0) -> Tensor:
        """Return the mixture, shape [B, D], or, below the root, the scores of the leaves, shape [B, k, leaves].

        Every expert has outputs of shape [B, D]; the probability of reaching this node has shape [B, k].
        """
        stacked = torch.cat([output.unsqueeze(-1) for output in outputs], 2)
        if self.is_leaf:
            assert isinstance(probability, Tensor)
            log = torch.where(probability < 1e-5, -torch.inf, torch.log(probability + 1e-6))
            return (self.output_layer(inputs) + log).unsqueeze(-1)
        left = smooth_step(self.selector_layer(inputs), self.gamma)
        scores = torch.cat(
            [
                self.left_child(outputs, inputs, probability * left),
                self.right_child(outputs, inputs, probability * (1 - left)),
            ],
            2,
        )
        if self.node:
            return scores
        weights = scores.flatten(1).softmax(1).view_as(scores).sum(1)
        return (stacked * weights.unsqueeze(1)).sum(2)
