"""A schedule of the width of smooth steps, by which gates of trees and of codes come down to k experts a sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_search.checks import require_number
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import SlotWeights
from moe_search.training.wrapped_gate import WrappedGate


class GammaAnnealing(WrappedGate):
    """A gate with smooth steps whose width falls while it is trained, until each tree or selector has one slot.

    A split (a bit) gives a sample to one side alone once it is outside of (-gamma / 2, gamma / 2). With a gamma that
    stays, this is left to training, and many samples keep more than k slots; with a penalty that is high enough for k,
    gates tend to leave experts idle. Here `step`, called after every optimizer step, lowers gamma: at call i of `steps`

        gamma = first (last / first)^(i / steps),

    first being that of the gate. Splits go on learning meanwhile, at a slope that gets steeper.

    Parameters
    ----------
    gate : COMET or DSelectK
    steps : int
        Calls of `step` until gamma is at its last: some 80 % of the steps of the training, so that experts are trained
        on under the slots that are left.
    last : float
        Gamma at the end, in the unit of the gate's own.

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

    ``moe-search experiment cardinality-digits`` compares it with gates whose gamma stays; docs/experiments.md tells
    what came of it. In short, k is kept, at the loss of the defaults with the gate's penalty on entropy, which leaves
    experts idle; where none may be, `importance_loss` with its factor of 0.1 keeps all in use, at a higher loss.

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

    def __init__(self, gate: COMET | DSelectK, steps: int, last: float = 0.01) -> None:
        if not isinstance(gate, COMET | DSelectK):
            raise TypeError(f"gate must be a COMET or a DSelectK, which have a gamma, got {type(gate).__name__}")
        super().__init__(gate, steps)
        self.k = gate.k
        self.first, self.last = gate.gamma, require_number("last", last, strict=True)

    def reset_parameters(self) -> None:
        """Start anew, with a fresh gate and map, at the first step."""
        super().reset_parameters()
        loaded = any(is_loaded(parameter) for parameter in self.gate.parameters())
        self._go_to(self._step if loaded else 0)

    def _at_step(self, inputs: Tensor, ids: Tensor | None, mask: Tensor | None) -> SlotWeights:
        return self.gate(inputs, ids, mask)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty of the gate."""
        return self.gate.penalty(slot_weights)

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
        return f"steps={self.steps}, step={self._step}, first={self.first:g}, last={self.last:g}"

    def _go_to(self, step: int) -> None:
        self._count(step)
        # At both ends it is what was given, without any rounding.
        part = step / self.steps
        self.gate.gamma = self.first ** (1 - part) * self.last**part
