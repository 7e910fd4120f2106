"""Optional penalties on uneven use of experts and on large logits, functions of what a gate returned."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.slot_weights import SlotWeights


def importance_loss(slot_weights: SlotWeights, expert_map: ExpertMap) -> Tensor:
    """Return the squared coefficient of variation of the importance of the experts.

    ``CV^2 = variance / mean^2`` over e of ``importance[e] = sum_b w[b, e]``, with w the weights of experts; 0 if all
    experts get equally much weight from the batch. The variance is that of the n numbers, divided by n.

    Parameters
    ----------
    slot_weights : SlotWeights
        What the gate returned for the batch: `MixtureOfExperts.routing`.
    expert_map : ExpertMap
        The map of the gate.

    Returns
    -------
    Tensor
        A scalar, to be added to the loss times a factor (0.1 in the paper).

    References
    ----------
    Shazeer et al. (2017), Outrageously large neural networks, equations 6 and 7.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=2))
    >>> loss = moe(torch.randn(5, 8)).square().mean()
    >>> loss = loss + moe.regularization() + 0.1 * ms.importance_loss(moe.routing, moe.gate.expert_map)
    """
    return squared_variation(expert_map(slot_weights.weights).sum(0))


def smooth_load_loss(slot_weights: SlotWeights, expert_map: ExpertMap, k: int) -> Tensor:
    """Return the squared coefficient of variation of a smooth estimate of the load of the experts.

    ``load[e]`` is the sum, over samples and the slots of expert e, of the probability that the slot would be among the
    k of its sample if the noise in its logit alone were drawn again,

        P[b, s] = Phi((logits[b, s] - kth_excluding[b, s]) / noise_scale[b, s]),

    Phi being the normal distribution function and kth_excluding the k-th largest noisy logit of the sample without that
    of the slot. Unlike the number of samples it has a gradient.

    Parameters
    ----------
    slot_weights : SlotWeights
        What a gate with noise, such as ``TopK(..., noise=True)``, returned in training mode.
    expert_map : ExpertMap
        The map of the gate.
    k : int
        Number of slots that a sample keeps of every selector.

    Returns
    -------
    Tensor
        A scalar, to be added to the loss times a factor (0.1 in the paper). 0 if k is the number of slots.

    References
    ----------
    Shazeer et al. (2017), Outrageously large neural networks, appendix A.
    """
    logits, noisy, scale = slot_weights.logits, slot_weights.noisy_logits, slot_weights.noise_scale
    if logits is None or noisy is None or scale is None:
        raise ValueError(
            "slot_weights must have noisy logits, as those of TopK(..., noise=True) in training mode do, got None"
        )
    m = logits.shape[2]
    if not 1 <= k <= m:
        raise ValueError(f"k must be in 1 .. {m}, the number of slots, got {k}")
    if k == m:
        return logits.new_zeros(())
    largest = noisy.topk(k + 1, dim=2).values
    # Among the k, a slot left out makes the next one the k-th largest.
    excluding = torch.where(noisy >= largest[..., k - 1 : k], largest[..., k:], largest[..., k - 1 : k])
    probabilities = torch.special.ndtr((logits - excluding) / scale)
    return squared_variation(expert_map(probabilities).sum(0))


def load_balancing_loss(slot_weights: SlotWeights, expert_map: ExpertMap) -> Tensor:
    """Return n times the scalar product of the experts' shares of the load and of the probability.

    ``n sum_e f[e] P[e]``: f[e] is the share of expert e in all pairs of a sample and an expert with weight greater than
    0, and P[e] the mean probability that softmax over the logits gives it, all slots of a selector at once, mean over
    the selectors. 1 if both are even; the gradient goes through P alone.

    Parameters
    ----------
    slot_weights : SlotWeights
        What a gate that has logits returned for the batch: `MixtureOfExperts.routing`.
    expert_map : ExpertMap
        The map of the gate.

    Returns
    -------
    Tensor
        A scalar, to be added to the loss times a factor (alpha = 0.01 in the paper).

    References
    ----------
    Fedus, Zoph and Shazeer (2022), Switch transformers, equations 4 to 6, where every sample has one expert.
    """
    logits = required_logits(slot_weights)
    pairs = (expert_map(slot_weights.weights.detach()) > 0).sum(0)
    share = pairs / pairs.sum()
    probability = expert_map(logits.softmax(2) / logits.shape[1]).mean(0)
    return expert_map.num_experts * (share * probability).sum()


def router_z_loss(slot_weights: SlotWeights) -> Tensor:
    """Return the mean over samples and selectors of ``(log sum_s exp(logits[b, t, s]))^2``.

    It keeps logits small, where softmax in low precision is exact; it does not balance experts.

    Parameters
    ----------
    slot_weights : SlotWeights
        What a gate that has logits returned for the batch: `MixtureOfExperts.routing`.

    Returns
    -------
    Tensor
        A scalar, to be added to the loss times a factor (0.001 in the paper).

    References
    ----------
    Zoph et al. (2022), ST-MoE: designing stable and transferable sparse expert models, equation 5.
    """
    return required_logits(slot_weights).logsumexp(2).square().mean()


def squared_variation(amounts: Tensor) -> Tensor:
    """Return variance / mean^2 of positive amounts."""
    return amounts.var(correction=0) / amounts.mean().square()


def required_logits(slot_weights: SlotWeights) -> Tensor:
    """Return the logits of slot weights, or raise ValueError if there are none."""
    if slot_weights.logits is None:
        raise ValueError("slot_weights must have logits, as those of TopK, COMET and Softmax do, got None")
    return slot_weights.logits
