"""The gate that keeps the k largest logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.gates.batch_checks import weight_dtype
from moe_search.gates.gate import Gate, SlotWeights, require_k


class NoiseScale(nn.Linear):
    """The linear function that the scale of the noise is made of; it starts at 0."""

    def reset_parameters(self) -> None:
        """Become 0."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class TopK(Gate):
    """Weights the k slots with the largest logits by the softmax of these logits, all others by exactly 0.

    Exactly k slots are taken also where logits are equal. A weight that rounds to 0, of a logit more than 100 below the
    largest in float32, is 0 all the same. With k = 1 the weight is 1, and the logits get no gradient from it.

    With noise, the slots are chosen, and weighted, by

        h = a + e softplus(x W),    e standard normal, drawn anew for every sample and slot,

    in training mode; in eval mode by the logits a, affine in x, themselves.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and slots m; see `Gate`. With m > n, two of the k slots may be of one expert.
    k : int
        Number of slots with weight, at most m.
    noise : bool
        Whether logits get noise in training mode; torch's global generator of the inputs' device draws it.

    Notes
    -----
    Shazeer et al. (2017), Outrageously large neural networks, equations 3 to 5. The affine function from inputs to
    logits has a bias and starts as `torch.nn.Linear`: uniform within 1 / sqrt(in_features) of 0. W has no bias and
    starts at 0 (their appendix A), so that the noise has the standard deviation log 2 at first.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.top_k import TopK
    >>> weights = TopK(in_features=8, num_experts=4, k=2)(torch.randn(5, 8)).weights
    >>> (weights > 0).sum(2).flatten()
    tensor([2, 2, 2, 2, 2])
    """

    def __init__(
        self, in_features: int, num_experts: int, k: int, num_slots: int | None = None, noise: bool = False
    ) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        self.k = require_k(k, self.num_slots)
        self.linear = nn.Linear(in_features, self.num_slots)
        self.noise = NoiseScale(in_features, self.num_slots, bias=False) if noise else None

    def forward(self, inputs: Tensor, ids: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        features = self.features(inputs, weight_dtype(self.linear))
        logits = self.linear(features).unsqueeze(1)
        if self.noise is None or not self.training:
            return SlotWeights(self._weights(logits), logits)
        scale = functional.softplus(self.noise(features)).unsqueeze(1)
        noisy = logits + torch.randn_like(logits) * scale
        return SlotWeights(self._weights(noisy), logits, noisy_logits=noisy, noise_scale=scale)

    def _weights(self, logits: Tensor) -> Tensor:
        largest, slots = logits.topk(self.k, dim=2, sorted=False)
        # Autocast raises the softmax, but not the logits, to float32.
        weights = largest.softmax(2)
        return weights.new_zeros(logits.shape).scatter(2, slots, weights)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{super().extra_repr()}, k={self.k}"
