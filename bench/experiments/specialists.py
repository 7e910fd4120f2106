"""Experts trained on parts of the data: with a gate that sends them their part, or apart from each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from moe_search.bench.experiments.training import descend, rows_by_epoch
from moe_search.bench.experiments.two_image_model import NUM_EXPERTS, ModelSizes, TwoImageModel, two_task_loss
from moe_search.bench.experiments.warm_gate import clusters_of, misrouting
from moe_search.gates import HashRouting
from moe_search.layers import StackedExperts
from moe_search.training.lowering.batch import Batch


def parts_of(model: TwoImageModel, inputs: Tensor, seed: int) -> Tensor:
    """Return the part of every sample, shape [N], in 0 .. 7.

    A fixed gate has its own parts, the samples of each slot; for the others, they are k-means clusters of the images.
    """
    gate = model.moe.gate
    if isinstance(gate, HashRouting):
        return gate(inputs).weights[:, 0].argmax(1)
    return clusters_of(inputs, NUM_EXPERTS, seed)[0]


def train_specialists(
    model: TwoImageModel,
    data: Batch,
    parts: Tensor,
    sizes: ModelSizes,
    seed: int,
    on_epoch: Callable[[], None] | None = None,
) -> None:
    """Train expert j on part j alone, the head on all, and the gate to send part j to the slot of expert j.

    Parameters
    ----------
    model : TwoImageModel
        Changed in place. Its map is that of a fresh gate, slot j to expert j.
    data : Batch
        Training data.
    parts : Tensor
        Shape [N], from `parts_of`.
    sizes : ModelSizes
    seed : int
        Decides the order of the samples.
    on_epoch : callable, optional
        Called after every epoch.
    """

    def loss(rows: Tensor) -> Tensor:
        inputs, part = data.inputs[rows], parts[rows]
        alone = functional.one_hot(part, NUM_EXPERTS).to(inputs.dtype)
        answers = model.classify(model.moe.combine(alone, model.moe.expert_outputs(inputs)))
        routing = model.moe.gate(inputs)
        wrong = two_task_loss(answers, data.targets[rows])
        return wrong + model.moe.gate.penalty(routing) + misrouting(routing, part)

    model.train()
    rows = rows_by_epoch(len(parts), sizes.batch_size, sizes.pretraining_epochs, seed, on_epoch)
    descend(model.parameters(), rows, loss, sizes.learning_rate)
    model.eval()


def branch_off(model: TwoImageModel, data: Batch, epochs: int, sizes: ModelSizes, seed: int) -> None:
    """Train the first expert on all samples, in an order that the seed decides, and give its weights to all experts."""
    parameters = list(model.moe.experts.parameters())

    def loss(rows: Tensor) -> Tensor:
        answers = model.classify(model.moe.expert_outputs(data.inputs[rows])[:, 0])
        return two_task_loss(answers, data.targets[rows])

    descend(parameters, rows_by_epoch(len(data), sizes.batch_size, epochs, seed), loss, sizes.learning_rate)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter[:1].expand_as(parameter))


def train_apart(model: TwoImageModel, data: Batch, parts: Tensor, sizes: ModelSizes, seed: int) -> None:
    """Train every expert on the samples of its part, and nothing else of the model.

    Parameters
    ----------
    model : TwoImageModel
        Changed in place.
    data : Batch
    parts : Tensor
        Integers in 0 .. 7, shape [N].
    sizes : ModelSizes
    seed : int
        Decides the order of the samples.
    """
    experts = model.moe.experts
    assert isinstance(experts, StackedExperts)
    generator = torch.Generator().manual_seed(seed)
    own = [(parts == part).nonzero()[:, 0] for part in range(NUM_EXPERTS)]
    # A step of all at once is a step of each: no two share a weight, and Adam looks at each weight alone.
    size = sizes.batch_size // NUM_EXPERTS
    steps = min(map(len, own)) // size

    def loss(rows: Tensor) -> Tensor:
        answers = model.classify(experts.forward_sorted(data.inputs[rows], [size] * NUM_EXPERTS))
        return NUM_EXPERTS * two_task_loss(answers, data.targets[rows])

    def epoch() -> Tensor:
        orders = [rows[torch.randperm(len(rows), generator=generator)[: steps * size]] for rows in own]
        return torch.stack(orders).view(NUM_EXPERTS, steps, size).transpose(0, 1).flatten(1)

    model.train()
    rows = (each for _ in range(sizes.pretraining_epochs) for each in epoch())
    descend(experts.parameters(), rows, loss, sizes.learning_rate)
    model.eval()
