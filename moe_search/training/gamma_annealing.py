"""A schedule by which gates of trees and of codes come down to k experts a sample, all experts staying in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_search.checks import require_number
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import SlotWeights
from moe_search.training.balance import importance_loss
from moe_search.training.wrapped_gate import WrappedGate


class GammaAnnealing(WrappedGate):
    """A gate with smooth steps whose width falls while it is trained, until each tree or selector has one slot.

    A split (a bit) gives a sample to one side alone once it is outside of (-gamma / 2, gamma / 2). With a gamma that
    stays, this is left to training, and many samples keep more than k slots; with a penalty that is high enough for k,
    gates leave experts idle. Here `step`, called after every optimizer step, lowers gamma: at call i of `steps`

        gamma = first (last / first)^(i / steps),

    first being that of the gate. Splits go on learning meanwhile, at a slope that gets steeper. Until the last of the
    `steps` the penalty has `balance` times `importance_loss` besides, so that no expert is left behind while samples
    choose.

    Parameters
    ----------
    gate : COMET or DSelectK
    steps : int
        Calls of `step` until gamma is at its last: a fifth of the steps of the training, say, so that experts are
        trained on under the slots that are left.
    last : float
        Gamma at the end, in the unit of the gate's own.
    balance : float
        Factor of `importance_loss` in the `steps`. 0 for none.

    Attributes
    ----------
    gate : COMET or DSelectK
        Its ``gamma`` is that of the present step.
    k : int
        Number of trees or selectors.

    Notes
    -----
    The step is in the state dict, so that a model that is loaded has the gamma that it was saved with. The gate alone
    does not keep it: to go on without the schedule, give a fresh gate ``gamma=last``. torch.compile compiles anew when
    gamma has changed, until it takes it for a variable.

    ``moe-search experiment cardinality-digits``, ``-movielens`` and ``-tokens`` compare it with gates whose gamma
    stays; docs/experiments.md tells what came of it. In short, 96 % of samples and more have k experts at most, and
    hardly an expert is idle; with COMET on digits at the loss of the defaults, on films and tokens at 2 to 16 % more.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> gate = ms.GammaAnnealing(ms.COMET(in_features=8, num_experts=4, k=2), steps=2)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), gate)
    >>> gate.step(), gate.gate.gamma
    (None, 0.1)
    >>> gate.step(), gate.gate.gamma
    (None, 0.01)
    """

    def __init__(self, gate: COMET | DSelectK, steps: int, last: float = 0.01, balance: float = 0.03) -> None:
        if not isinstance(gate, COMET | DSelectK):
            raise TypeError(f"gate must be a COMET or a DSelectK, which have a gamma, got {type(gate).__name__}")
        super().__init__(gate, steps)
        self.k = gate.k
        self.first, self.last = gate.gamma, require_number("last", last, strict=True)
        self.balance = require_number("balance", balance)

    def reset_parameters(self) -> None:
        """Start anew, with a fresh gate and map, at the first step."""
        super().reset_parameters()
        loaded = any(is_loaded(parameter) for parameter in self.gate.parameters())
        self._go_to(self._step if loaded else 0)

    def _at_step(self, inputs: Tensor, ids: Tensor | None, mask: Tensor | None) -> SlotWeights:
        return self.gate(inputs, ids, mask)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty of the gate, until the last step with that on uneven importance."""
        penalty = self.gate.penalty(slot_weights)
        if self._step < self.steps and self.balance > 0:
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
        self._count(step)
        # At both ends it is what was given, without any rounding.
        part = step / self.steps
        self.gate.gamma = self.first ** (1 - part) * self.last**part
