"""Small models of several tasks over one expert map, and their loss from the definition."""

from dataclasses import dataclass

import torch
from specialists import Setting
from torch import nn

from moe_search.gates.comet import COMET
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts

FEATURES, WIDTH, OUTPUTS = 5, 6, 3


class SeveralHeads(nn.Module):
    """A head for each task behind a layer of several gates."""

    def __init__(self, moe, heads):
        super().__init__()
        self.moe = moe
        self.heads = nn.ModuleList(heads)

    def forward(self, inputs, ids=None):
        mixtures = self.moe(inputs, ids)
        return torch.stack([head(mixtures[:, t]) for t, head in enumerate(self.heads)], 1)


@dataclass
class SharedSetting(Setting):
    """A model of several tasks, its data (under which its own map is best) and one loss for all or one for each."""

    @property
    def expert_map(self):
        return self.moe.tasks[-1].gate.expert_map

    def true_loss(self, start=0, stop=None):
        """The losses of the tasks by a plain forward in eval mode, summed."""
        losses = self.loss if isinstance(self.loss, list) else [self.loss] * len(self.moe.tasks)
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            outputs = self.model(self.inputs[start:stop])
        self.model.train(training)
        targets = self.targets[start:stop]
        return sum(float(loss(outputs[:, t], targets[:, t])) for t, loss in enumerate(losses))


def make_gate(name, n, m):
    if name == "hash":
        return HashRouting(n, m, in_features=FEATURES, seed=torch.randint(100, ()).item())
    if name.startswith("comet"):
        return COMET(FEATURES, n, k=2, num_slots=m, gamma=0.5, shared_map=name == "comet-one-row")
    return TopK(FEATURES, n, k=int(name[-1]), num_slots=m)


def make_head(name):
    if name == "linear":
        return nn.Linear(WIDTH, OUTPUTS)
    return nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Linear(12, OUTPUTS))


def make_shared(gates=("top-2", "top-2"), head="linear", n=4, m=4, samples=40, loss=None, seed=0, noise=0.01):
    """Random linear experts, far apart; the targets are the model's own outputs, with some noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = [nn.Linear(FEATURES, WIDTH) for _ in range(n)]
        for expert in experts:
            nn.init.orthogonal_(expert.weight, gain=2.0)
        moe = MultiGateMixtureOfExperts(experts, [make_gate(gate, n, m) for gate in gates], shared_map=True)
        model = SeveralHeads(moe, [make_head(head) for _ in gates]).double()
        inputs = torch.randn(samples, FEATURES, dtype=torch.float64)
        with torch.no_grad():
            outputs = model.eval()(inputs)
        model.train()
        targets = outputs + noise * torch.randn_like(outputs)
        return SharedSetting(model, inputs, targets, None, loss or nn.MSELoss())
