"""The model of the demo: one mixture of eight experts and a linear head for two tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.demo.settings import DemoSettings
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.gate import Gate
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

NUM_EXPERTS = 8
"""Few enough that all 8! = 40,320 maps can be tried: the exact optimum stands beside every search."""

NUM_TASKS = 2
NUM_CLASSES = 10
EXPERTS_PER_SAMPLE = 2

GATES = ("Softmax", "Hash", "Top-k", "COMET")
SEARCHED = GATES[1:]
"""The sparse gates, each of which is also trained with search."""

KNOWN_GATES = (*GATES, "DSelect-k")
"""All that `make_gate` knows; the demo leaves the last one to the experiments."""


class TwoDigitsModel(nn.Module):
    """A mixture of experts on the pixels, then a linear head to the logits of both tasks.

    Parameters
    ----------
    moe : MixtureOfExperts
        From pixels, shape [B, pixels], to features, shape [B, features].
    features : int
        Width of the mixture.
    """

    def __init__(self, moe: MixtureOfExperts, features: int) -> None:
        super().__init__()
        self.moe = moe
        self.head = nn.Linear(features, NUM_TASKS * NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, shape [B, tasks, classes], of flat images, shape [B, pixels]."""
        return self.classify(self.moe(inputs))

    def classify(self, mixture: Tensor) -> Tensor:
        """Return the logits, shape [B, tasks, classes], of mixtures, shape [B, features]."""
        return self.head(mixture).unflatten(-1, (NUM_TASKS, NUM_CLASSES))


def make_gate(name: str, in_features: int, seed: int) -> Gate:
    """Return a fresh gate of one of the names `KNOWN_GATES`."""
    if name == "Softmax":
        return Softmax(in_features, NUM_EXPERTS)
    if name == "Hash":
        return HashRouting(NUM_EXPERTS, in_features=in_features, seed=seed)
    if name == "Top-k":
        return TopK(in_features, NUM_EXPERTS, EXPERTS_PER_SAMPLE)
    if name == "COMET":
        # One map for both trees: its problem has one block, so that all its maps can be enumerated.
        return COMET(in_features, NUM_EXPERTS, EXPERTS_PER_SAMPLE, shared_map=True)
    if name == "DSelect-k":
        return DSelectK(in_features, NUM_EXPERTS, EXPERTS_PER_SAMPLE, shared_map=True)
    raise ValueError(f"name must be one of {', '.join(KNOWN_GATES)}, got {name!r}")


def make_model(gate: str, settings: DemoSettings, seed: int) -> TwoDigitsModel:
    """Return a fresh model on the CPU; equal arguments give equal weights."""
    pixels = settings.canvas**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = StackedExperts(NUM_EXPERTS, pixels, settings.features, settings.hidden_features)
        moe = MixtureOfExperts(experts, make_gate(gate, pixels, seed))
        return TwoDigitsModel(moe, settings.features)


def two_task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy, mean over samples and tasks; outputs [B, tasks, classes], targets [B, tasks]."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
