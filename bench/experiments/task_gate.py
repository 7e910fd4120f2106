"""A static gate: what it decides depends on the task of a sample, and on nothing else."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from moe_search.gates.gate import Gate
from moe_search.gates.slot_weights import SlotWeights


class TaskGate(Gate):
    """Shows another gate the task of every sample, as a row of one 1 and zeros, instead of its features.

    A gate affine in its inputs has then a row of parameters for every task, beside a bias that all share.

    Parameters
    ----------
    gate : Gate
        Its `in_features` is the number of tasks.

    Raises
    ------
    ValueError
        If the gate takes no features.
    """

    def __init__(self, gate: Gate) -> None:
        if gate.in_features is None:
            raise ValueError(f"gate must take features, one for each task, got a {type(gate).__name__} that takes none")
        super().__init__(gate.num_experts, gate.num_slots, gate.num_selectors, shared_map=gate.expert_map.shared)
        self.num_tasks = gate.in_features
        # The map is the gate's own: a second name would save and load it twice.
        del self.expert_map
        self.__dict__["expert_map"] = gate.expert_map
        self.gate = gate

    def forward(self, inputs: Tensor, ids: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`. Tasks are ids in 0 .. num_tasks - 1.

        Raises
        ------
        ValueError
            If no ids came.
        """
        if ids is None:
            raise ValueError("ids must be given to a gate of tasks, got None")
        return self.gate(functional.one_hot(ids, self.num_tasks).to(inputs.dtype))

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty of the gate."""
        return self.gate.penalty(slot_weights)
