"""Gates that begin by telling clusters of the inputs apart, slot j the cluster j."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from moe_search.bench.demo.model import make_gate
from moe_search.bench.demo.settings import DemoSettings
from moe_search.bench.demo.specialists import misrouting
from moe_search.gates.gate import Gate


def clusters_of(inputs: Tensor, count: int, seed: int, restarts: int = 1) -> tuple[Tensor, Tensor]:
    """Return k-means clusters, numbered by chance.

    Returns
    -------
    tuple of two Tensors
        The cluster of every sample, shape [N], in 0 .. count - 1, and the centres, shape [count, features].
    """
    found = KMeans(count, n_init=restarts, random_state=seed).fit(inputs.numpy())
    return torch.from_numpy(found.labels_.astype(np.int64)), torch.from_numpy(found.cluster_centers_).to(inputs.dtype)


def make_warm_gate(name: str, inputs: Tensor, parts: Tensor, sizes: DemoSettings, seed: int, weights_seed: int) -> Gate:
    """Return a gate that was trained alone, as long as specialists are, to give the samples of part j to slot j.

    Parameters
    ----------
    name : str
        As in `make_gate`.
    inputs, parts : Tensor
        As in `warm_up`.
    sizes : DemoSettings
    seed : int
        Decides the samples of every step.
    weights_seed : int
        Decides the weights that the gate begins with.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed)
        gate = make_gate(name, inputs.shape[1], seed)
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
    steps : int
    learning_rate : float
    batch_size : int
    seed : int
        Decides the samples of every step.
    """
    parameters = list(gate.parameters())
    if not parameters:
        return
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    gate.train()
    for _ in range(steps):
        rows = torch.randint(len(parts), (batch_size,), generator=generator)
        routing = gate(inputs[rows])
        loss = misrouting(routing, parts[rows]) + gate.penalty(routing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
