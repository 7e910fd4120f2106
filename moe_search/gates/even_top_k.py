"""The gate that weighs the k largest logits alike, until it is trained."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from moe_search.checks import require_number
from moe_search.gates.batch_checks import weight_dtype
from moe_search.gates.gate import Gate, SlotWeights, require_k


class EvenTopK(Gate):
    """Weights the k slots C with the largest logits a by ``exp(b a_s) / sum_(C) exp(b a)``, all others by exactly 0.

    By default the sharpness b starts at 0, where the weights are 1 / k: experts that are parts of one layer add up to
    it, and none is to be weighed more than another. This is the gate of `split_feed_forward`. Training moves b, and
    then the logits have a gradient too.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and slots m; see `Gate`.
    k : int
        Number of slots with weight, at most m.
    start : float
        The sharpness before training.

    Attributes
    ----------
    sharpness : Parameter
        Shape [1], the number b.

    Notes
    -----
    Pei et al. (2025), CMoE, begin training from equal weights too, by a factor that starts at 0.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.EvenTopK(in_features=8, num_experts=4, k=2)
    >>> gate(torch.randn(5, 8)).weights.amax(2).flatten().tolist()
    [0.5, 0.5, 0.5, 0.5, 0.5]
    """

    def __init__(
        self, in_features: int, num_experts: int, k: int, num_slots: int | None = None, start: float = 0.0
    ) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        self.k = require_k(k, self.num_slots)
        self.start = require_number("start", start, -math.inf)
        self.linear = nn.Linear(in_features, self.num_slots)
        self.sharpness = nn.Parameter(torch.full((1,), self.start))

    def reset_parameters(self) -> None:
        """Start anew, with a fresh map, logits drawn from torch's global generator, and the sharpness of the start."""
        super().reset_parameters()
        nn.init.constant_(self.sharpness, self.start)

    @property
    def most_slots(self) -> int:
        """The k that are kept."""
        return self.k

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        logits = self.linear(self.features(inputs, weight_dtype(self.linear), mask)).unsqueeze(1)
        largest, slots = logits.topk(self.k, dim=2, sorted=False)
        weights = (self.sharpness * largest).softmax(2)
        return SlotWeights(weights.new_zeros(logits.shape).scatter(2, slots, weights), logits).masked(mask)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{super().extra_repr()}, k={self.k}"
