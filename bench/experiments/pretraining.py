"""What is trained before a trial: gates that tell parts of the data apart, and experts that each know a part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from moe_search.bench.experiments.gates import make_gate
from moe_search.bench.experiments.training import descend, rows_by_epoch
from moe_search.bench.experiments.two_image_model import NUM_EXPERTS, ModelSizes, TwoImageModel, two_task_loss
from moe_search.gates import Gate, HashRouting, SlotWeights
from moe_search.layers import StackedExperts
from moe_search.training.lowering.batch import Batch

ROUTING_FLOOR = 1e-6


def clusters_of(inputs: Tensor, count: int, seed: int, restarts: int = 1) -> tuple[Tensor, Tensor]:
    """Return the k-means cluster of every sample, shape [N], numbered by chance, and the centres [count, features]."""
    found = KMeans(count, n_init=restarts, random_state=seed).fit(inputs.cpu().numpy())
    labels, centres = torch.from_numpy(found.labels_.astype(np.int64)), torch.from_numpy(found.cluster_centers_)
    return labels.to(inputs.device), centres.to(inputs)


def make_warm_gate(
    name: str,
    inputs: Tensor,
    parts: Tensor,
    sizes: ModelSizes,
    seed: int,
    weights_seed: int,
    *,
    steps: int | None = None,
    num_slots: int | None = None,
) -> Gate:
    """Return a gate of a name that was trained alone, by default as long as specialists are; see `warm_up`.

    `weights_seed` decides the weights that it begins with, and `seed` all else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        gate = make_gate(name, inputs.shape[1], NUM_EXPERTS, num_slots=num_slots, seed=seed)
    warm_up(
        gate,
        inputs,
        parts,
        steps=sizes.pretraining_epochs * len(inputs) // sizes.batch_size if steps is None else steps,
        learning_rate=sizes.learning_rate,
        batch_size=sizes.batch_size,
        seed=seed,
    )
    return gate


def warm_up(
    gate: Gate, inputs: Tensor, parts: Tensor, *, steps: int, learning_rate: float, batch_size: int, seed: int
) -> None:
    """Train a gate alone, by Adam, to give the samples of part j to slot j.

    Inputs have shape [N, features], parts are integers in 0 .. m - 1 of shape [N], and the seed decides the samples of
    every step. The gate is left in training mode; one with nothing to learn stays as it is.
    """
    parameters = list(gate.parameters())
    if not parameters:
        return

    def loss(rows: Tensor) -> Tensor:
        routing = gate(inputs[rows])
        return misrouting(routing, parts[rows]) + gate.penalty(routing)

    generator = torch.Generator().manual_seed(seed)
    rows = (torch.randint(len(parts), (batch_size,), generator=generator) for _ in range(steps))
    gate.train()
    descend(parameters, rows, loss, learning_rate)


def misrouting(routing: SlotWeights, parts: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the parts under the gate; 0 for a gate with nothing to learn."""
    if not routing.weights.requires_grad:
        return routing.weights.new_zeros(())
    if routing.logits is not None and routing.probabilities is None:
        # The weights of Top-k have no gradient at the slots left out, its logits have. Logits of COMET are but a part.
        return functional.cross_entropy(routing.logits[:, 0], parts)
    share = routing.weights.sum(1).gather(1, parts[:, None])
    return -(share + ROUTING_FLOOR).log().mean()


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

    The model has the map of a fresh gate, slot j to expert j. Parts, shape [N], are those of `parts_of`; the seed
    decides the order of the samples; `on_epoch` is called after every epoch.
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

    Parts are integers in 0 .. 7, shape [N]; the seed decides the order of the samples.
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
