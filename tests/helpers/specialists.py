"""Small models whose experts are specialists, on data that they fit best under the map they have."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from moe_search.gates.comet import COMET
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.lowering.lowering import lower
from moe_search.training.search.permutation_search import PermutationSearch

FEATURES, OUTPUTS, VOCABULARY = 6, 4, 40
ROUTERS: dict[str, dict[str, Any]] = {
    "top": {},
    "olmoe": {"renormalize": False},
    "sigmoid": {"scores": "sigmoid", "renormalize": False},
    "deepseek": {"scores": "sigmoid", "scale": 2.5, "choice_bias": True},
}


class Model(nn.Module):
    """A mixture layer and a head behind it."""

    def __init__(self, moe, head):
        super().__init__()
        self.moe = moe
        self.head = head

    def forward(self, inputs, ids=None):
        return self.head(self.moe(inputs, ids))


@dataclass
class Setting:
    """A model, its data (under which its own map is best) and a loss."""

    model: Model
    inputs: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor | None
    loss: Any

    @property
    def moe(self):
        return self.model.moe

    @property
    def expert_map(self):
        return self.model.moe.gate.expert_map

    def batch(self, start=0, stop=None):
        """The arguments of lower and step: inputs, targets, and ids as a keyword."""
        ids = None if self.ids is None else self.ids[start:stop]
        return self.inputs[start:stop], self.targets[start:stop], ids

    def true_loss(self, start=0, stop=None):
        """The loss by a plain forward in eval mode."""
        training = self.model.training
        self.model.eval()
        inputs, targets, ids = self.batch(start, stop)
        with torch.no_grad():
            loss = float(self.loss(self.model(inputs, ids=ids), targets))
        self.model.train(training)
        return loss

    def scramble(self, seed=0):
        self.expert_map.scramble(torch.Generator().manual_seed(seed))


def random_permutation(problem, rng):
    """A permutation that keeps every slot in its block, drawn uniformly."""
    blocks = range(0, problem.size, problem.block_size)
    return np.concatenate([start + rng.permutation(problem.block_size) for start in blocks])


def make_gate(name, n, m):
    if name == "hash":
        return HashRouting(n, m, vocabulary=VOCABULARY, seed=5)
    if name == "softmax":
        return Softmax(FEATURES, n, m)
    if name in ("comet", "comet-shared"):
        return COMET(FEATURES, n, k=2, num_slots=m, gamma=0.5, shared_map=name == "comet-shared")
    return TopK(FEATURES, n, int(name[-1]), m, **ROUTERS[name[:-2]])


def make_head(name):
    if name == "none":
        return nn.Identity()
    if name == "linear":
        return nn.Linear(FEATURES, OUTPUTS)
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.GELU(), nn.Dropout(0.3), nn.Linear(12, OUTPUTS))


def make(gate, head="linear", n=4, m=4, samples=96, loss="squared", noise=0.01, seed=0, dtype=torch.float64):
    """Random linear experts, far apart; the targets are the model's own outputs, with some noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = [nn.Linear(FEATURES, FEATURES) for _ in range(n)]
        for expert in experts:
            nn.init.orthogonal_(expert.weight)
        model = Model(MixtureOfExperts(experts, make_gate(gate, n, m)), make_head(head)).to(dtype)
        inputs = torch.randn(samples, FEATURES, dtype=dtype)
        ids = torch.randint(VOCABULARY, (samples,)) if gate == "hash" else None
        model.eval()
        with torch.no_grad():
            outputs = model(inputs, ids=ids)
        model.train()
        outputs = outputs + noise * torch.randn_like(outputs)
        if loss == "squared":
            return Setting(model, inputs, outputs, ids, nn.MSELoss())
        if loss == "bce":
            return Setting(model, inputs, torch.sigmoid(outputs), ids, functional.binary_cross_entropy_with_logits)
        return Setting(model, inputs, outputs.argmax(1), ids, nn.CrossEntropyLoss())


def lowered(setting, loss=None, **options):
    inputs, targets, ids = setting.batch()
    return lower(setting.model, setting.moe, inputs, targets, loss or setting.loss, ids=ids, **options)


def searching(setting, **options):
    options = {"loss": setting.loss, "stop": MaxIterations(5_000), **options}
    return PermutationSearch(setting.model, setting.moe, **options)


def step(search, setting, start=0, stop=None):
    inputs, targets, ids = setting.batch(start, stop)
    return search.step(inputs, targets, ids=ids)
