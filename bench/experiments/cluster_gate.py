"""A gate with nothing to learn: every sample goes to the slot of the nearest centre."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from moe_search.gates.gate import Gate
from moe_search.gates.slot_weights import SlotWeights


class ClusterGate(Gate):
    """A hash table whose code is the nearest of m fixed centres.

    Parameters
    ----------
    centres : Tensor
        Shape [m, features].
    num_experts : int
        Number of experts n; m is a multiple of it.
    """

    centres: Tensor

    def __init__(self, centres: Tensor, num_experts: int) -> None:
        super().__init__(num_experts, len(centres), in_features=centres.shape[1])
        self.register_buffer("centres", centres.clone())

    def forward(self, inputs: Tensor, ids: Tensor | None = None) -> SlotWeights:
        """Return weight 1 for the slot of the nearest centre; see `Gate.forward`."""
        features = self.features(inputs, self.centres.dtype)
        nearest = torch.cdist(features, self.centres).argmin(1)
        return SlotWeights(functional.one_hot(nearest, self.num_slots).to(features.dtype).unsqueeze(1), None)
