"""A gate around another one, which changes that one while it is trained."""

from __future__ import annotations

from moe_search.gates.gate import Gate
from moe_search.layers.multi_gate_mixture_of_experts import share_submodule


class WrappedGate(Gate):
    """A gate with the sizes and the map of the one that it wraps, `gate`."""

    def __init__(self, gate: Gate) -> None:
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
