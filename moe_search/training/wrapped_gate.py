"""A gate around another one, which changes that one while it is trained."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from moe_search.checks import require_integer
from moe_search.gates.batch_checks import cannot_read_values
from moe_search.gates.expert_map import AVERAGED
from moe_search.gates.gate import Gate, SlotWeights
from moe_search.layers.multi_gate_mixture_of_experts import share_submodule


class WrappedGate(Gate):
    """A gate with the sizes and the map of the one that it wraps, `gate`, and with a schedule of so many `steps`.

    The step is a number of Python's, on which a forward may depend without a look at the device. It is in a buffer
    too, beside the number of steps that are left, so that an average of models takes it over with the other buffers: it
    would be at its first step for good. Where buffers are averaged and rounded down, the two no longer sum to `steps`.
    """

    counted: Tensor

    def __init__(self, gate: Gate, steps: int) -> None:
        super().__init__(
            gate.num_experts,
            gate.num_slots,
            gate.num_selectors,
            in_features=gate.in_features,
            shared_map=gate.expert_map.shared,
        )
        # The map is the wrapped gate's, registered there and once only: a second name would save and load it twice.
        share_submodule(self, "expert_map", gate.expert_map)
        self.gate = gate
        self.steps = require_integer("steps", steps)
        self._step = 0
        # The state dict has the step as extra state.
        self.register_buffer("counted", torch.tensor([0, self.steps]), persistent=False)

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots at the present step; see `Gate.forward`."""
        if self.counted.is_cpu:
            self._take_over()
        return self._at_step(inputs, ids, mask)

    def train(self, mode: bool = True) -> WrappedGate:
        """Set training or eval mode, and take over the step where it is not on the CPU: no forward waits for it."""
        if not self.counted.is_cpu:
            self._take_over()
        return super().train(mode)

    @abstractmethod
    def _at_step(self, inputs: Tensor, ids: Tensor | None, mask: Tensor | None) -> SlotWeights:
        """Return the weights of the slots at the present step."""

    @abstractmethod
    def _go_to(self, step: int) -> None:
        """Be as at a step, by `_count` and what follows from the step."""

    @torch.no_grad()
    def _count(self, step: int) -> None:
        self._step = step
        # Filled, not copied: a copy from the CPU would wait for any other device.
        for place, number in enumerate((step, self.steps - step)):
            self.counted[place].fill_(number)

    def _take_over(self) -> None:
        """Go to the step that something else wrote to the buffer."""
        if cannot_read_values(self.counted):
            return
        step, left = self.counted.tolist()
        if step < 0 or left < 0 or step + left != self.steps:
            raise ValueError(
                f"the step of a gate must be in 0 .. {self.steps}, something else wrote {[step, left]} to the buffer "
                "of steps made and left (a module that was emptied, or made on the device meta, starts anew by "
                f"reset_parameters; {AVERAGED})"
            )
        if step != self._step:
            self._go_to(step)
