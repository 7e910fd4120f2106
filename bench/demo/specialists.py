"""Specialists: experts trained each on one part of the data, and a gate trained to send them that part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from moe_search.bench.demo.model import NUM_EXPERTS, TwoDigitsModel, two_task_loss
from moe_search.bench.demo.settings import DemoSettings
from moe_search.bench.demo.tensors import SplitTensors
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.slot_weights import SlotWeights

ROUTING_FLOOR = 1e-6


def parts_of(model: TwoDigitsModel, inputs: Tensor, seed: int) -> Tensor:
    """Return the part of every sample, shape [N], in 0 .. 7.

    A fixed gate has its own parts, the samples of each slot; for the others, k-means clusters of the images.
    """
    gate = model.moe.gate
    if isinstance(gate, HashRouting):
        return gate(inputs).weights[:, 0].argmax(1)
    clusters = KMeans(NUM_EXPERTS, n_init=1, random_state=seed).fit_predict(inputs.cpu().numpy())
    return torch.from_numpy(clusters.astype(np.int64)).to(inputs.device)


def train_specialists(
    model: TwoDigitsModel,
    data: SplitTensors,
    parts: Tensor,
    settings: DemoSettings,
    seed: int,
    on_epoch: Callable[[], None],
) -> None:
    """Train expert j on part j alone, the head on all, and the gate to send part j to the slot of expert j.

    Parameters
    ----------
    model : TwoDigitsModel
        Changed in place. Its map is that of a fresh gate, slot j to expert j.
    data : SplitTensors
        Training data.
    parts : Tensor
        Shape [N], from `parts_of`.
    settings : DemoSettings
    seed : int
        Decides the order of the samples.
    on_epoch : callable
        Called after every epoch.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(settings.pretraining_epochs):
        for rows in torch.split(torch.randperm(len(parts), generator=generator), settings.batch_size):
            inputs, targets, part = data.inputs[rows], data.targets[rows], parts[rows]
            alone = functional.one_hot(part, NUM_EXPERTS).to(inputs.dtype)
            answers = model.classify(model.moe.combine(alone, model.moe.expert_outputs(inputs)))
            routing = model.moe.gate(inputs)
            loss = two_task_loss(answers, targets) + model.moe.gate.penalty(routing) + misrouting(routing, part)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        on_epoch()
    model.eval()


def misrouting(routing: SlotWeights, parts: Tensor) -> Tensor:
    """Mean negative log-likelihood of the parts under the gate; 0 for a gate with nothing to learn."""
    if not routing.weights.requires_grad:
        return routing.weights.new_zeros(())
    if routing.logits is not None and routing.probabilities is None:
        # The weights of Top-k have no gradient at the slots left out, its logits have. Logits of COMET are but a part.
        return functional.cross_entropy(routing.logits[:, 0], parts)
    share = routing.weights.sum(1).gather(1, parts[:, None])
    return -(share + ROUTING_FLOOR).log().mean()
