"""The dense gate."""

from __future__ import annotations

from torch import Tensor, nn

from moe_search.gates.batch_checks import weight_dtype
from moe_search.gates.gate import Gate, SlotWeights


class Softmax(Gate):
    """Weights all slots by the softmax of an affine function of the inputs.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and slots m; see `Gate`.

    Notes
    -----
    Jordan and Jacobs (1994), Hierarchical mixtures of experts, one level. The weights of the affine function have a
    bias and start as those of `torch.nn.Linear`: uniform within 1 / sqrt(in_features) of 0.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.softmax import Softmax
    >>> Softmax(in_features=8, num_experts=3)(torch.randn(5, 8)).weights.shape
    torch.Size([5, 1, 3])
    """

    def __init__(self, in_features: int, num_experts: int, num_slots: int | None = None) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        self.linear = nn.Linear(in_features, self.num_slots)

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        logits = self.linear(self.features(inputs, weight_dtype(self.linear), mask)).unsqueeze(1)
        return SlotWeights(logits.softmax(2), logits).masked(mask)
