"""The gate that keeps the k largest logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.checks import require_choice, require_flag
from moe_search.gates.batch_checks import weight_dtype
from moe_search.gates.gate import Gate, SlotWeights, require_k

SCORES = ("softmax", "sigmoid")
"""What the weights of slots are made of."""


class NoiseScale(nn.Linear):
    """The linear function that the scale of the noise is made of; it starts at 0."""

    def reset_parameters(self) -> None:
        """Become 0."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class TopK(Gate):
    """Weights the k slots with the largest logits, and all others by exactly 0.

    Exactly k slots are taken also where logits are equal. With logits a, affine in x, the weights of those taken are

    ===========  ================================  ==============================================================
    scores       renormalize=True                  renormalize=False
    ===========  ================================  ==============================================================
    "softmax"    exp a_s / sum over the k of exp   exp a_s / sum over all m of exp
                 a: Shazeer et al., Mixtral,       a: Switch (k = 1), GShard's first term, OLMoE, DeepSeekMoE and
                 Qwen3-MoE                         DeepSeek-V2, Qwen1.5-MoE
    "sigmoid"    sigmoid a_s / sum over the k of   sigmoid a_s: BASE layers, Llama 4 (both with k = 1)
                 sigmoid a: DeepSeek-V3
    ===========  ================================  ==============================================================

    A softmax before the choice that is renormalized after it is a softmax after the choice. Renormalized weights sum
    to 1. With k = 1 they are 1, and the logits get no gradient: the gate stays as it was drawn. By default it is
    therefore not renormalized with k = 1, and renormalized otherwise.

    With noise, the slots are chosen, and weighted, by

        h = a + e softplus(x W),    e standard normal, drawn anew for every sample and slot,

    in training mode; in eval mode by the logits themselves. A weight that rounds to 0, of a logit more than 100 below
    the largest in float32, is 0 all the same.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and slots m; see `Gate`. With m > n, two of the k slots may be of one expert.
    k : int
        Number of slots with weight, at most m.
    noise : bool
        Whether logits get noise in training mode; torch's global generator of the inputs' device draws it.
    scores : {"softmax", "sigmoid"}
        What weights are made of.
    renormalize : bool, optional
        Whether the weights of the k slots are made to sum to 1; by default if k > 1.

    Notes
    -----
    Shazeer et al. (2017), Outrageously large neural networks, equations 3 to 5. Lepikhin et al. (2020), GShard. Lewis
    et al. (2021), BASE layers. Fedus, Zoph and Shazeer (2022), Switch transformers, equations 1 and 2. Jiang et al.
    (2024), Mixtral of experts. Dai et al. (2024), DeepSeekMoE, equations 3 to 5. Muennighoff et al. (2024), OLMoE.
    DeepSeek-AI (2024), DeepSeek-V3, equations 13 to 15, without the biases that count in the choice alone. For Qwen and
    Llama 4, their configurations and code in Hugging Face's transformers (``norm_topk_prob``).

    The affine function from inputs to logits has a bias and starts as `torch.nn.Linear`: uniform within 1 /
    sqrt(in_features) of 0. W has no bias and starts at 0 (Shazeer et al., appendix A), so that the noise has the
    standard deviation log 2 at first.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.top_k import TopK
    >>> weights = TopK(in_features=8, num_experts=4, k=2)(torch.randn(5, 8)).weights
    >>> (weights > 0).sum(2).flatten()
    tensor([2, 2, 2, 2, 2])
    >>> switch = TopK(in_features=8, num_experts=4, k=1)
    >>> routing = switch(torch.randn(5, 8))
    >>> torch.equal(routing.weights.amax(2), routing.logits.softmax(2).amax(2))
    True
    """

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        k: int,
        num_slots: int | None = None,
        noise: bool = False,
        scores: str = "softmax",
        renormalize: bool | None = None,
    ) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        self.k = require_k(k, self.num_slots)
        require_choice("scores", scores, SCORES)
        self.scores = scores
        if renormalize is not None:
            require_flag("renormalize", renormalize)
        self.renormalize = self.k > 1 if renormalize is None else renormalize
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
        if self.scores == "sigmoid":
            # Not the quotient of sigmoids: those of logits far below 0 are all 0.
            kept = functional.logsigmoid(largest)
            weights = kept.softmax(2) if self.renormalize else kept.exp()
        else:
            weights = largest.softmax(2) if self.renormalize else logits.softmax(2).gather(2, slots)
        return weights.new_zeros(logits.shape).scatter(2, slots, weights)

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return f"{super().extra_repr()}, k={self.k}, scores={self.scores}, renormalize={self.renormalize}"
