"""The gates of the experiments by name, and three kinds of gate that only experiments have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from moe_search.checks import require_choice
from moe_search.gates import COMET, DSelectK, Gate, HashRouting, SlotWeights, Softmax, TopK

GATES = ("Softmax", "Hash", "Top-k", "DSelect-k", "COMET")
SPARSE = GATES[1:]
"""Those that give most experts no weight: which expert sits where matters to them."""

TRAINED = SPARSE[1:]
"""The sparse gates that learn: the table of Hash is drawn."""

SMOOTH = {"COMET": COMET, "DSelect-k": DSelectK}
"""The gates with a smooth step, which take gamma and entropy."""


def make_gate(
    name: str,
    in_features: int,
    num_experts: int,
    *,
    k: int = 2,
    num_slots: int | None = None,
    seed: int = 0,
    **smooth: Any,
) -> Gate:
    """Return a fresh gate, one of `GATES`, its weights drawn from torch's global generator.

    A sample has `k` slots of Top-k, and COMET has as many trees, DSelect-k as many selectors. There is a slot for each
    expert by default. The seed decides the table of Hash, and `smooth` are further arguments of the `SMOOTH`.
    """
    require_choice("gate", name, GATES)
    if name == "Hash":
        return HashRouting(num_experts, num_slots, in_features=in_features, seed=seed)
    if name == "Softmax":
        return Softmax(in_features, num_experts, num_slots)
    if name == "Top-k":
        return TopK(in_features, num_experts, k, num_slots)
    # One map for all trees or selectors: the problem has one block, so that all maps of few experts can be enumerated.
    return SMOOTH[name](in_features, num_experts, k, num_slots, shared_map=True, **smooth)


def make_task_gate(name: str, tasks: int, experts: int, slots: int) -> Gate:
    """Return a fresh gate whose weights depend on the task of a sample alone.

    A task needs one expert, so that DSelect-k and COMET have one selector. Top-k takes two: the weight of a single one,
    its probability, would come down to 1 only with large logits, and an expert would answer by less until then.
    The slots of Hash are the tasks, however many are asked for, and its map says which expert each of them has.
    """
    require_choice("gate", name, GATES)
    if name == "Hash":
        return HashRouting(experts, tasks, vocabulary=tasks, table=range(tasks))
    return TaskGate(make_gate(name, tasks, experts, k=2 if name == "Top-k" else 1, num_slots=slots))


class TaskGate(Gate):
    """Shows another gate the task of every sample, as a row of one 1 and zeros, instead of its features.

    A gate affine in its inputs has then a row of parameters for every task, beside a bias that all share. Its
    `in_features` is the number of tasks.
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

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`. Tasks are ids in 0 .. num_tasks - 1, which must come."""
        if ids is None:
            raise ValueError("ids must be given to a gate of tasks, got None")
        return self.gate(functional.one_hot(ids, self.num_tasks).to(inputs.dtype), None, mask)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty of the gate."""
        return self.gate.penalty(slot_weights)


class ClusterGate(Gate):
    """A gate with nothing to learn: every sample goes to the slot of the nearest of m fixed centres, [m, features]."""

    centres: Tensor

    def __init__(self, centres: Tensor, num_experts: int) -> None:
        super().__init__(num_experts, len(centres), in_features=centres.shape[1])
        self.register_buffer("centres", centres.clone())

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return weight 1 for the slot of the nearest centre; see `Gate.forward`."""
        features = self.features(inputs, self.centres.dtype, mask)
        nearest = torch.cdist(features, self.centres).argmin(1)
        weights = functional.one_hot(nearest, self.num_slots).to(features.dtype).unsqueeze(1)
        return SlotWeights(weights, None).masked(mask)
