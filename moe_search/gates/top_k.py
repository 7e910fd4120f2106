"""The gate that keeps the k largest logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.checks import require_choice, require_integer, require_number
from moe_search.gates.batch_checks import weight_dtype
from moe_search.gates.gate import Gate, SlotWeights, require_k


class NoiseScale(nn.Linear):
    """The linear function that the scale of the noise is made of; it starts at 0."""

    def reset_parameters(self) -> None:
        """Become 0."""
        super().reset_parameters()
        nn.init.zeros_(self.weight)


SCORES = ("softmax", "sigmoid")


class TopK(Gate):
    """Weights the k slots with the largest logits by their scores, all others by exactly 0.

    With a the logits, affine in the inputs, C the k slots chosen, and sigma the logistic function, slot s of C has

    =============  ==========================================  ====================================
    `renormalize`  True                                        False
    =============  ==========================================  ====================================
    "softmax"      ``scale exp(a_s) / sum_(C) exp(a)``         ``scale exp(a_s) / sum_(all) exp(a)``
    "sigmoid"      ``scale sigma(a_s) / sum_(C) sigma(a)``     ``scale sigma(a_s)``
    =============  ==========================================  ====================================

    Softmax of the chosen logits alone and softmax of all, divided by its sum over the chosen, are the same. Published
    routers in these words, with k, the number of experts of a sample:

    =====================================  =====  ===========  =============  ================================
    router                                 k      `scores`     `renormalize`  further
    =====================================  =====  ===========  =============  ================================
    Shazeer et al. (2017), eqs. 3 to 5     >= 2   "softmax"    True           ``noise=True``
    Switch (Fedus et al. 2022), eq. 2      1      "softmax"    False
    Mixtral (Jiang et al. 2024), sec. 2.1  2      "softmax"    True
    OLMoE (Muennighoff et al. 2024)        8      "softmax"    False
    Qwen3 (2025), ``norm_topk_prob``       8      "softmax"    True
    DeepSeek-V2 (2024), eqs. 20 to 22      6      "softmax"    False          ``scale=16.0``
    DeepSeek-V3 (2024), eqs. 12 to 16      8      "sigmoid"    True           ``scale=2.5, choice_bias=True``
    =====================================  =====  ===========  =============  ================================

    Both of DeepSeek choose among the slots of some groups only: ``num_groups=8, kept_groups=3`` in DeepSeek-V2, 8 and 4
    in DeepSeek-V3. gpt-oss has the router of Mixtral (with a bias), Qwen2 that of OLMoE, ERNIE 4.5 that of Mixtral with
    ``choice_bias=True``, GLM-4.5 that of DeepSeek-V3.

    Exactly k slots are taken also where logits are equal. A weight that rounds to 0, of a logit more than 100 below the
    largest in float32 (or below 0, by "sigmoid"), is 0 all the same.

    With k = 1 and ``renormalize=True``, the weight is `scale` whatever the logits are: no loss that is made of the
    mixture has a gradient for them, and the gate stays as it was drawn, unless a penalty such as `load_balancing_loss`
    moves it. This is why one slot is not renormalized by default.

    With noise, the slots are chosen, and weighted, by

        h = a + e softplus(x W),    e standard normal, drawn anew for every sample and slot,

    in training mode; in eval mode by the logits a themselves.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and slots m; see `Gate`. With m > n, two of the k slots may be of one expert.
    k : int
        Number of slots with weight, at most m.
    noise : bool
        Whether logits get noise in training mode; torch's global generator of the inputs' device draws it.
    scores : {"softmax", "sigmoid"}
        What makes scores of logits.
    renormalize : bool, optional
        Whether the weights of a sample sum to `scale`. By default they do for k > 1, and do not for k = 1.
    scale : float
        Factor of all weights.
    choice_bias : bool
        Whether slots are chosen by their score plus a bias that counts in no weight: the buffer `choice_bias`, shape
        [m], which starts at 0, gets no gradient, and is what `LossFreeBalancing` lowers.
    num_groups, kept_groups : int
        Slots lie in `num_groups` groups of m / `num_groups`, one after another, and the k are chosen among those of the
        `kept_groups` best groups of a sample; all by default. A group is as good as its best score by "softmax", as
        in DeepSeek-V2, and as the sum of its two best by "sigmoid", as in DeepSeek-V3, the bias of the choice included.

    Notes
    -----
    The affine function from inputs to logits has a bias and starts as `torch.nn.Linear`: uniform within 1 /
    sqrt(in_features) of 0. W has no bias and starts at 0 (Shazeer et al., appendix A), so that the noise has the
    standard deviation log 2 at first.

    Shazeer et al. (2017), Outrageously large neural networks. Fedus, Zoph and Shazeer (2022), Switch transformers.
    Jiang et al. (2024), Mixtral of experts. Muennighoff et al. (2024), OLMoE: open mixture-of-experts language models.
    Yang et al. (2025), Qwen3 technical report. DeepSeek-AI (2024), DeepSeek-V2, and DeepSeek-V3 technical report.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.top_k import TopK
    >>> weights = TopK(in_features=8, num_experts=4, k=2)(torch.randn(5, 8)).weights
    >>> (weights > 0).sum(2).flatten()
    tensor([2, 2, 2, 2, 2])
    >>> switch = TopK(in_features=8, num_experts=4, k=1)(torch.randn(5, 8))
    >>> torch.equal(switch.weights.amax(2), switch.logits.softmax(2).amax(2))
    True
    """

    choice_bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        k: int,
        num_slots: int | None = None,
        noise: bool = False,
        scores: str = "softmax",
        renormalize: bool | None = None,
        scale: float = 1.0,
        choice_bias: bool = False,
        num_groups: int = 1,
        kept_groups: int | None = None,
    ) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        self.k = require_k(k, self.num_slots)
        require_choice("scores", scores, SCORES)
        self.scores = scores
        self.renormalize = self.k > 1 if renormalize is None else bool(renormalize)
        self.scale = require_number("scale", scale, strict=True)
        self.num_groups = require_integer("num_groups", num_groups)
        if self.num_slots % self.num_groups:
            raise ValueError(f"num_groups must divide the number of slots, {self.num_slots}, got {num_groups}")
        self.kept_groups = self.num_groups if kept_groups is None else require_integer("kept_groups", kept_groups)
        least = -(-self.k * self.num_groups // self.num_slots)
        if not least <= self.kept_groups <= self.num_groups:
            raise ValueError(
                f"kept_groups must be in {least} .. {self.num_groups}, such that they hold k={self.k} slots, "
                f"got {kept_groups}"
            )
        self.linear = nn.Linear(in_features, self.num_slots)
        self.noise = NoiseScale(in_features, self.num_slots, bias=False) if noise else None
        self.register_buffer("choice_bias", torch.zeros(self.num_slots) if choice_bias else None)

    def reset_parameters(self) -> None:
        """Start anew, with a fresh map, parameters drawn from torch's global generator, and no bias of the choice."""
        super().reset_parameters()
        if self.choice_bias is not None:
            nn.init.zeros_(self.choice_bias)

    @property
    def most_slots(self) -> int:
        """The k that are kept."""
        return self.k

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        features = self.features(inputs, weight_dtype(self.linear), mask)
        logits = self.linear(features).unsqueeze(1)
        if self.noise is None or not self.training:
            return SlotWeights(self._weights(logits), logits).masked(mask)
        scale = functional.softplus(self.noise(features)).unsqueeze(1)
        noisy = logits + torch.randn_like(logits) * scale
        return SlotWeights(self._weights(noisy), logits, noisy_logits=noisy, noise_scale=scale).masked(mask)

    def _weights(self, logits: Tensor) -> Tensor:
        if self.choice_bias is None and self.kept_groups == self.num_groups:
            slots = logits.topk(self.k, dim=2, sorted=False).indices
        else:
            scores = logits.softmax(2) if self.scores == "softmax" else logits.sigmoid()
            if self.choice_bias is not None:
                scores = scores + self.choice_bias
            slots = self._of_best_groups(scores).topk(self.k, dim=2, sorted=False).indices
        return scored_weights(logits, slots, self.scores, self.renormalize, self.scale)

    def _of_best_groups(self, scores: Tensor) -> Tensor:
        """Return the scores that slots are chosen by, -inf in all groups but the best."""
        if self.kept_groups == self.num_groups:
            return scores
        groups = scores.unflatten(2, (self.num_groups, -1))  # type: ignore[no-untyped-call]
        counted = min(1 if self.scores == "softmax" else 2, self.num_slots // self.num_groups)
        best = groups.topk(counted, dim=3).values.sum(3).topk(self.kept_groups, dim=2, sorted=False).indices
        left_out = (best.unsqueeze(3) != torch.arange(self.num_groups, device=best.device)).all(2)
        return groups.masked_fill(left_out.unsqueeze(3), -torch.inf).flatten(2)

    def extra_repr(self) -> str:
        """Return the sizes and the router, for `repr`."""
        return (
            f"{super().extra_repr()}, k={self.k}, scores={self.scores}, renormalize={self.renormalize}, "
            f"scale={self.scale:g}"
        )


def scored_weights(logits: Tensor, slots: Tensor, scores: str, renormalize: bool, scale: float = 1.0) -> Tensor:
    """Return the weights of the slots chosen, shape [..., k], as `TopK` gives them; 0 for all others."""
    chosen = logits.gather(2, slots)
    # Autocast raises the softmax, but not the logits, to float32.
    if renormalize:
        # Scores divided by their sum: a softmax of their logarithms, which no small score upsets.
        weights = (chosen if scores == "softmax" else functional.logsigmoid(chosen)).softmax(2)
    elif scores == "softmax":
        weights = logits.softmax(2).gather(2, slots)
    else:
        weights = chosen.sigmoid()
    return weights.new_zeros(logits.shape).scatter(2, slots, scale * weights)
