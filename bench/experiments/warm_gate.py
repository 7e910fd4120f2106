"""Gates that were trained alone to tell parts of the data apart, slot j the part j."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional

from moe_search.bench.experiments.gates import make_gate
from moe_search.bench.experiments.training import descend
from moe_search.bench.experiments.two_image_model import NUM_EXPERTS, ModelSizes
from moe_search.gates import Gate, SlotWeights

ROUTING_FLOOR = 1e-6


def clusters_of(inputs: Tensor, count: int, seed: int, restarts: int = 1) -> tuple[Tensor, Tensor]:
    """Return k-means clusters, numbered by chance.

    Returns
    -------
    tuple of two Tensors
        The cluster of every sample, shape [N], in 0 .. count - 1, and the centres, shape [count, features].
    """
    found = KMeans(count, n_init=restarts, random_state=seed).fit(inputs.cpu().numpy())
    labels, centres = torch.from_numpy(found.labels_.astype(np.int64)), torch.from_numpy(found.cluster_centers_)
    return labels.to(inputs.device), centres.to(inputs)


def make_warm_gate(name: str, inputs: Tensor, parts: Tensor, sizes: ModelSizes, seed: int, weights_seed: int) -> Gate:
    """Return a gate of a name that was trained alone, as long as specialists are; see `warm_up`.

    `weights_seed` decides the weights that it begins with, and `seed` all else.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        gate = make_gate(name, inputs.shape[1], NUM_EXPERTS, seed=seed)
    warm_up(
        gate,
        inputs,
        parts,
        steps=sizes.pretraining_epochs * len(inputs) // sizes.batch_size,
        learning_rate=sizes.learning_rate,
        batch_size=sizes.batch_size,
        seed=seed,
    )
    return gate


def warm_up(
    gate: Gate, inputs: Tensor, parts: Tensor, *, steps: int, learning_rate: float, batch_size: int, seed: int
) -> None:
    """Train a gate alone, by Adam, to give the samples of part j to slot j.

    Parameters
    ----------
    gate : Gate
        Changed in place, and left in training mode; a gate with nothing to learn stays as it is.
    inputs : Tensor
        Shape [N, features].
    parts : Tensor
        Integers in 0 .. m - 1, shape [N].
    steps, learning_rate, batch_size
    seed : int
        Decides the samples of every step.
    """
    parameters = list(gate.parameters())
    if not parameters:
        return

    def rows_by_chance() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            yield torch.randint(len(parts), (batch_size,), generator=generator)

    def loss(rows: Tensor) -> Tensor:
        routing = gate(inputs[rows])
        return misrouting(routing, parts[rows]) + gate.penalty(routing)

    gate.train()
    descend(parameters, rows_by_chance(), loss, learning_rate)


def misrouting(routing: SlotWeights, parts: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the parts under the gate; 0 for a gate with nothing to learn."""
    if not routing.weights.requires_grad:
        return routing.weights.new_zeros(())
    if routing.logits is not None and routing.probabilities is None:
        # The weights of Top-k have no gradient at the slots left out, its logits have. Logits of COMET are but a part.
        return functional.cross_entropy(routing.logits[:, 0], parts)
    share = routing.weights.sum(1).gather(1, parts[:, None])
    return -(share + ROUTING_FLOOR).log().mean()
