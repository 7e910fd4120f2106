"""Even loads: penalties on uneven use of experts and on large logits, or biases lowered where samples crowd.

A penalty is a scalar function of the slot weights that a gate returned for a batch, `MixtureOfExperts.routing`, and of
the gate's expert map; it is added to the loss times a factor. Where the gate ran with gradients off, so that a penalty
would have none, each raises ValueError, as `MixtureOfExperts.regularization` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from moe_search.checks import require_number
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import SlotWeights
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.training.lowering.process_group import ranks_of
from moe_search.training.saved_state import require_keys


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

    Raises
    ------
    ValueError
        If the slot weights would give no gradient.

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
    slot_weights.require_gradient()
    return _squared_variation(expert_map(slot_weights.weights).sum(0))


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

    Raises
    ------
    ValueError
        If the slot weights have no noise or would give no gradient, or k is not in 1 .. m.

    References
    ----------
    Shazeer et al. (2017), Outrageously large neural networks, appendix A.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.TopK(8, 4, k=2, noise=True)
    >>> loss = ms.smooth_load_loss(gate(torch.randn(32, 8)), gate.expert_map, k=2)
    >>> loss.ndim, bool(loss >= 0)
    (0, True)
    """
    slot_weights.require_gradient()
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
    return _squared_variation(expert_map(slot_weights.without_padding(probabilities)).sum(0))


def load_balancing_loss(slot_weights: SlotWeights, expert_map: ExpertMap) -> Tensor:
    """Return n times the scalar product of the experts' shares of the load and of the probability.

    ``n sum_e f[e] P[e]``: f[e] is the share of expert e in all pairs of a sample and an expert with weight greater than
    0, and P[e] the mean probability that softmax over the logits gives it, all slots of a selector at once, mean over
    the selectors. 1 if both are even; the gradient goes through P alone.

    Parameters
    ----------
    slot_weights : SlotWeights
        What the gate returned for the batch: `MixtureOfExperts.routing`.
    expert_map : ExpertMap
        The map of the gate.

    Returns
    -------
    Tensor
        A scalar, to be added to the loss times a factor (alpha = 0.01 in the paper).

    Raises
    ------
    ValueError
        If the slot weights have no logits, or would give no gradient.

    References
    ----------
    Fedus, Zoph and Shazeer (2022), Switch transformers, equations 4 to 6, where every sample has one expert.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.TopK(8, 4, k=2)
    >>> loss = ms.load_balancing_loss(gate(torch.randn(32, 8)), gate.expert_map)
    >>> loss.ndim, bool(loss > 0)
    (0, True)
    """
    logits = _required_logits(slot_weights)
    pairs = (expert_map(slot_weights.weights.detach()) > 0).sum(0)
    share = pairs / pairs.sum().clamp(min=1)
    probabilities = slot_weights.without_padding(logits.softmax(2) / logits.shape[1])
    probability = expert_map(probabilities).sum(0) / slot_weights.num_rows
    return expert_map.num_experts * (share * probability).sum()


def router_z_loss(slot_weights: SlotWeights) -> Tensor:
    """Return the mean over samples and selectors of ``(log sum_s exp(logits[b, t, s]))^2``.

    It keeps logits small, where softmax in low precision is exact; it does not balance experts.

    Parameters
    ----------
    slot_weights : SlotWeights
        What the gate returned for the batch: `MixtureOfExperts.routing`.

    Returns
    -------
    Tensor
        A scalar, to be added to the loss times a factor (0.001 in the paper).

    Raises
    ------
    ValueError
        If the slot weights have no logits, or would give no gradient.

    References
    ----------
    Zoph et al. (2022), ST-MoE: designing stable and transferable sparse expert models, equation 5.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> weights = torch.full((5, 1, 4), 0.25)
    >>> round(float(ms.router_z_loss(ms.SlotWeights(weights, logits=torch.zeros(5, 1, 4)))), 4)  # log(4) squared
    1.9218
    """
    squares = _required_logits(slot_weights).logsumexp(2).square().mean(1)
    return slot_weights.without_padding(squares).sum() / slot_weights.num_rows


class LossFreeBalancing:
    """Lower the biases of slots whose expert, or that alone, bear more than a limit of the load.

    Call `step` once for every forward in training mode, after the optimizer's step if there is one. Loads are running
    averages over batches, in multiples of the mean load of an expert: the load of a slot is the number of samples with
    weight on it. Every step that the load of an expert is above ``expert_limit`` lowers the bias of each of its slots
    by ``rate``, and every step that the load of one slot is above ``slot_limit`` the bias of that slot, once more if
    both are.

    It holds a balance that is there; it does not bring one about where experts lie idle, whose slots have nothing to
    offer yet. With `PermutationSearch(load_limit=...)`, searches of the first steps spread the slots over the experts,
    this keeps what they reached, and single slots small enough for some map to keep the limit.

    Parameters
    ----------
    moe : MixtureOfExperts
        A layer with a `TopK` gate, as it is within `DistributedDataParallel` and torch.compile. Its biases, those of
        the choice alone if the gate has some (``TopK(..., choice_bias=True)``) and else those of its logits, must not
        be of half precision, in which small steps are lost.
    rate : float, default 0.02
        What is taken off a bias in a step.
    expert_limit : float, default 1.1
        The limit of an expert, in multiples of the mean load of an expert.
    slot_limit : float, optional
        The limit of a slot in the same unit, at least n / m. An expert can have no less load than one slot; by default
        slots have no limit of their own.
    memory : float, default 0.95
        Weight of the past in the running averages, in [0, 1).
    process_group : ProcessGroup, optional
        The ranks that train the layer together, so that loads are those of all; the default one if `torch.distributed`
        is initialized. Every rank then changes its biases alike.

    Attributes
    ----------
    slot_loads : Tensor or None
        Running averages, shape [m]; None before the first step.

    Notes
    -----
    After Wang, Gao, Zhao, Sun and Dai (2024), Auxiliary-loss-free load balancing strategy for mixture-of-experts,
    arXiv 2408.15664, algorithm 1. There a bias of every expert moves by the sign of its excess, up as well as down, and
    counts in the choice of experts alone, as it does here with ``TopK(..., choice_bias=True)``, whose scores lie in 0
    .. 1: a rate of 0.001 is theirs. Here slots are only lowered, above a limit, and without such a bias it is that of
    the logits, which the optimizer trains (a frozen one is lowered too) and which counts in the weights. Biases are not
    raised again: what all have lost in common changes no choice and no weight of softmax, but `router_z_loss` sees it.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> balancing = ms.LossFreeBalancing(moe)
    >>> loss = moe(torch.randn(32, 8)).square().mean()  # and the backward pass, and the optimizer's step
    >>> balancing.step()
    >>> float(balancing.slot_loads.sum())
    4.0
    """

    def __init__(
        self,
        moe: MixtureOfExperts,
        *,
        rate: float = 0.02,
        expert_limit: float = 1.1,
        slot_limit: float | None = None,
        memory: float = 0.95,
        process_group: Any = None,
    ) -> None:
        gate = _top_k(moe)
        self.moe = moe
        self.rate = require_number("rate", rate)
        self.expert_limit = require_number("expert_limit", expert_limit, strict=True)
        self.slot_limit = None if slot_limit is None else require_number("slot_limit", slot_limit, strict=True)
        self.memory = require_number("memory", memory)
        if self.slot_limit is not None and self.slot_limit < gate.num_experts / gate.num_slots:
            mean = gate.num_experts / gate.num_slots
            raise ValueError(f"slot_limit must be at least {mean:.6g}, the mean load of a slot, got {slot_limit}")
        if self.expert_limit < 1:
            raise ValueError(f"expert_limit must be at least 1, the mean load, got {expert_limit}")
        if self.memory >= 1:
            raise ValueError(f"memory must be less than 1, got {memory}")
        self._ranks = ranks_of(process_group, lambda: moe.gate.expert_map.experts.device)
        # Weakly, so that no batch is kept for it.
        self._taken: ReferenceType[SlotWeights] | None = None
        self.slot_loads: Tensor | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Take the loads of the last forward in training mode, and lower biases.

        A batch that gives no slot any weight, because its logits are NaN, is left out. In a process group, all ranks
        call it together, and wait for their devices; otherwise no device is waited for.

        Raises
        ------
        TypeError
            If the layer has another kind of gate now, or biases of half precision, in which small steps are lost.
        ValueError
            If there was no such forward since the last step.
        """
        gate, routing = _top_k(self.moe), self.moe.routing
        if routing is None or (self._taken is not None and routing is self._taken()):
            since = "a step" if routing is None else "another step"
            raise ValueError(f"moe must have run in training mode before {since}, got no routing")
        self._taken = ref(routing)
        counts = (routing.weights.detach() > 0).sum((0, 1))
        if self._ranks.group is None:
            self._lower(gate, counts)
        else:
            # On the CPU, where sums have one order: all ranks must come to the same biases.
            self._lower(gate, torch.from_numpy(self._ranks.sum(counts.cpu().numpy())))

    def _lower(self, gate: TopK, counts: Tensor) -> None:
        """Take the loads of slots, and lower biases, where the counts lie: no device is waited for."""
        if counts.is_cpu and not counts.any():
            return
        loads = counts.double() * (gate.num_experts / counts.sum().clamp(min=1))
        if self.slot_loads is not None:
            before, alone = self.slot_loads.to(loads.device), loads
            loads = self.memory * before + (1 - self.memory) * loads
            if not counts.is_cpu:
                loads = torch.where(counts.any(), torch.where(before.any(), loads, alone), before)
        self.slot_loads = loads
        experts = gate.expert_map.experts[0].to(loads.device)
        expert_loads = loads.new_zeros(gate.num_experts).index_add_(0, experts, loads)
        times = (expert_loads > self.expert_limit)[experts].double()
        if self.slot_limit is not None:
            times += loads > self.slot_limit
        bias = _bias(gate)
        bias.sub_((self.rate * times * counts.any()).to(bias))

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on as if it had not stopped: the running averages."""
        loads = None if self.slot_loads is None else self.slot_loads.clone()
        return {"num_experts": self.moe.gate.num_experts, "slot_loads": loads}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved."""
        require_keys("state", state, ("num_experts", "slot_loads"))
        gate, loads = self.moe.gate, state["slot_loads"]
        if state["num_experts"] != gate.num_experts:
            raise ValueError(f"num_experts must be {gate.num_experts}, got {state['num_experts']}")
        if loads is not None and loads.shape != (gate.num_slots,):
            raise ValueError(f"slot_loads must have shape ({gate.num_slots},), got {tuple(loads.shape)}")
        self.slot_loads = None if loads is None else loads.cpu().double().clone()


def _top_k(moe: Any) -> TopK:
    if not isinstance(moe, MixtureOfExperts) or not isinstance(moe.gate, TopK):
        what = f"a gate {type(moe.gate).__name__}" if isinstance(moe, MixtureOfExperts) else type(moe).__name__
        raise TypeError(f"moe must be a MixtureOfExperts with a TopK gate, got {what}")
    dtype = _bias(moe.gate).dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the biases of the gate must be of float32 or float64, also under autocast, got {dtype}")
    return moe.gate


def _bias(gate: TopK) -> Tensor:
    return gate.linear.bias if gate.choice_bias is None else gate.choice_bias


def _squared_variation(amounts: Tensor) -> Tensor:
    """Return variance / mean^2 of amounts that are not negative; 0 if all are 0."""
    return amounts.var(correction=0) / amounts.mean().square().clamp(min=torch.finfo(amounts.dtype).tiny)


def _required_logits(slot_weights: SlotWeights) -> Tensor:
    slot_weights.require_gradient()
    if slot_weights.logits is None:
        raise ValueError("slot_weights must have logits, as those of TopK, COMET and Softmax do, got None")
    return slot_weights.logits
