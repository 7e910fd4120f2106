"""A schedule by which gates of trees and of codes come down to k experts a sample, all experts staying in use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moe_search.checks import require_integer, require_number
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import SlotWeights
from moe_search.training.balance import importance_loss
from moe_search.training.wrapped_gate import WrappedGate


class GammaAnnealing(WrappedGate):
    """A gate with smooth steps that comes down to k slots a sample while it is trained.

    A split (a bit) gives a sample to one side alone once it is outside of (-gamma / 2, gamma / 2). With a gamma that
    stays, this is left to training, and many samples keep more than k slots; with a penalty that is high enough for k,
    gates leave experts idle. Here `step`, called after every optimizer step, lowers gamma: at call i of `steps`

        gamma = first (last / first)^(i / steps),

    first being that of the gate. Splits go on learning meanwhile, at a slope that gets steeper. In the first half of
    the `steps`, while samples still try many experts, the penalty has `balance` times `importance_loss` besides, so
    that no expert is left behind. After the last of the `steps` a sample keeps the k slots of the largest weights,
    divided by their sum.

    Parameters
    ----------
    gate : COMET or DSelectK
    steps : int
        Calls of `step` until gamma is at its last: some 80 % of the steps of the training, so that experts are trained
        on under the slots that are left.
    last : float
        Gamma at the end, in the unit of the gate's own.
    balance : float
        Factor of `importance_loss` in the first half of the `steps`. 0 for none.

    Attributes
    ----------
    gate : COMET or DSelectK
        Its ``gamma`` is that of the present step.
    k : int
        Number of trees or selectors, and of slots that a sample has in the end.

    Notes
    -----
    With a shared map, slots of one number in several trees are one expert, and are kept or left out together: a sample
    has k experts, fewer only where fewer have weight. Otherwise it has k slots, two of which may be of one expert.

    The step is in the state dict, so that a model that is loaded has the gamma that it was saved with. torch.compile
    compiles anew when gamma has changed, until it takes it for a variable.

    ``moe-search experiment cardinality-digits``, ``-movielens`` and ``-tokens`` compare it with gates whose gamma
    stays; docs/experiments.md tells what came of it.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.GammaAnnealing(ms.COMET(in_features=8, num_experts=4, k=2, shared_map=True), steps=2, last=0.04)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), gate)
    >>> gate.step(), gate.gate.gamma
    (None, 0.2)
    >>> gate.step(), gate.gate.gamma
    (None, 0.04)
    >>> with ms.RoutingStatistics().watch(moe) as statistics:
    ...     _ = moe(torch.randn(50, 8))
    >>> statistics.summary().mean_experts <= 2
    True
    """

    def __init__(self, gate: COMET | DSelectK, steps: int, last: float = 0.1, balance: float = 0.03) -> None:
        if not isinstance(gate, COMET | DSelectK):
            raise TypeError(f"gate must be a COMET or a DSelectK, which have a gamma, got {type(gate).__name__}")
        super().__init__(gate)
        self.k = gate.k
        self.steps = require_integer("steps", steps)
        self.first, self.last = gate.gamma, require_number("last", last, strict=True)
        self.balance = require_number("balance", balance)
        self._step = 0

    def reset_parameters(self) -> None:
        """Start anew, with a fresh gate and map, at the first step."""
        super().reset_parameters()
        if not any(is_loaded(parameter) for parameter in self.gate.parameters()):
            self._go_to(0)

    def forward(self, inputs: Tensor, ids: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots, after the last step of k of them; see `Gate.forward`."""
        routing = self.gate(inputs, ids)
        if self._step < self.steps:
            return routing
        weights = routing.weights
        # One row of alternatives a sample: what has one expert in all trees is one of them.
        rows = weights.sum(1, keepdim=True) if self.expert_map.shared else weights.flatten(1).unsqueeze(1)
        largest = rows.topk(self.k, dim=2, sorted=False).indices
        kept = torch.zeros_like(rows).scatter(2, largest, 1.0)
        weights = weights * kept.unflatten(2, (-1, self.num_slots)).squeeze(1)
        return replace(routing, weights=weights / weights.sum((1, 2), keepdim=True))

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty of the gate, in the first half of the steps with that on uneven importance."""
        penalty = self.gate.penalty(slot_weights)
        if 2 * self._step < self.steps and self.balance > 0:
            penalty = penalty + self.balance * importance_loss(slot_weights, self.expert_map)
        return penalty

    def step(self) -> None:
        """Count an optimizer step and lower gamma. After `steps` calls it does nothing."""
        self._go_to(min(self._step + 1, self.steps))

    def get_extra_state(self) -> Tensor:
        """Return the step for the state dict."""
        return torch.tensor([self._step])

    def set_extra_state(self, state: Any) -> None:
        """Take up what `get_extra_state` returned."""
        if not isinstance(state, Tensor) or state.shape != (1,) or not 0 <= int(state) <= self.steps:
            raise ValueError(f"the extra state must be a step in 0 .. {self.steps}, got {state!r}")
        self._go_to(int(state))

    def extra_repr(self) -> str:
        """Return the schedule, for `repr`."""
        return (
            f"steps={self.steps}, step={self._step}, first={self.first:g}, last={self.last:g}, balance={self.balance:g}"
        )

    def _go_to(self, step: int) -> None:
        self._step = step
        # At both ends it is what was given, without any rounding.
        part = step / self.steps
        self.gate.gamma = self.first ** (1 - part) * self.last**part
