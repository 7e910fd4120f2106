"""Training experts apart: all from weights of their own, or branched off from one that was trained on everything."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_search.bench.demo.model import TwoDigitsModel, two_task_loss
from moe_search.bench.demo.settings import DemoSettings
from moe_search.bench.demo.tensors import SplitTensors
from moe_search.bench.experiments.domains import NUM_DOMAINS
from moe_search.layers.stacked_experts import StackedExperts


def branch_off(model: TwoDigitsModel, data: SplitTensors, settings: DemoSettings, seed: int) -> None:
    """Train the first expert on samples of all domains, and give its weights to all experts.

    Parameters
    ----------
    model : TwoDigitsModel
        Changed in place.
    data : SplitTensors
    settings : DemoSettings
    seed : int
        Decides the order of the samples.
    """
    optimizer = torch.optim.Adam(model.moe.experts.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(settings.pretraining_epochs):
        for rows in torch.split(torch.randperm(len(data.inputs), generator=generator), settings.batch_size):
            answers = model.classify(model.moe.expert_outputs(data.inputs[rows])[:, 0])
            loss = two_task_loss(answers, data.targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    with torch.no_grad():
        for parameter in model.moe.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))


def train_apart(model: TwoDigitsModel, data: SplitTensors, domains: Tensor, settings: DemoSettings, seed: int) -> None:
    """Train every expert on the samples of its domain, and nothing else of the model.

    Parameters
    ----------
    model : TwoDigitsModel
        Changed in place.
    data : SplitTensors
    domains : Tensor
        Integers in 0 .. 7, shape [N].
    settings : DemoSettings
    seed : int
        Decides the order of the samples.
    """
    experts = model.moe.experts
    assert isinstance(experts, StackedExperts)
    optimizer = torch.optim.Adam(experts.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    own = [(domains == domain).nonzero()[:, 0] for domain in range(NUM_DOMAINS)]
    # A step of all at once is a step of each: no two share a weight, and Adam looks at each weight alone.
    size = settings.batch_size // NUM_DOMAINS
    steps = min(map(len, own)) // size
    model.train()
    for _ in range(settings.pretraining_epochs):
        orders = [rows[torch.randperm(len(rows), generator=generator)[: steps * size]] for rows in own]
        for rows in torch.stack(orders).view(NUM_DOMAINS, steps, size).transpose(0, 1).flatten(1):
            answers = model.classify(experts.forward_sorted(data.inputs[rows], [size] * NUM_DOMAINS))
            loss = NUM_DOMAINS * two_task_loss(answers, data.targets[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    model.eval()
