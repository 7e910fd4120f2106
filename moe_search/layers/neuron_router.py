"""Routers of experts made of neurons: which experts matter most to a row, told from its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.gates.even_top_k import EvenTopK
from moe_search.gates.gate import Gate, SlotWeights, require_k

RIDGE = 1e-2
"""Of the mean variance of a feature."""

STEPS, LEARNING_RATE, WEIGHT_DECAY = 300, 5e-3, 1e-4
"""Of the training of a router."""

SPREAD = 3.0
"""Standard deviation of the logits where training starts."""


class HiddenLayer(nn.Module):
    """What neurons give: ``activation(first(x))``, or in gated layers ``activation(gated_by(x)) * first(x)``.

    Parameters
    ----------
    first : Linear
        The map into the neurons.
    activation : Module
        What follows it, or `gated_by`.
    gated_by : Linear, optional
        The second map into the neurons, of gated layers.
    """

    def __init__(self, first: nn.Linear, activation: nn.Module, gated_by: nn.Linear | None = None) -> None:
        super().__init__()
        self.first, self.activation, self.gated_by = first, activation, gated_by

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the neurons give, shape [rows, h]."""
        if self.gated_by is None:
            return self.activation(self.first(inputs))
        return self.activation(self.gated_by(inputs)) * self.first(inputs)


class ExpertMass(nn.Module):
    """What a row loses without an expert, its neurons taken by themselves: the root of the sum of their squares.

    Parameters
    ----------
    hidden : Module
        Returns what the neurons give, shape [rows, h].
    means : Tensor
        Shape [h], what they give where they are skipped.
    lengths : Tensor
        Shape [h], of their output weights.
    members : Tensor
        Shape [h, n], 1 for the neurons that are an expert's alone, else 0.
    """

    means: Tensor
    lengths: Tensor
    members: Tensor

    def __init__(self, hidden: nn.Module, means: Tensor, lengths: Tensor, members: Tensor) -> None:
        super().__init__()
        self.hidden = hidden
        for name, tensor in (("means", means), ("lengths", lengths), ("members", members)):
            self.register_buffer(name, tensor)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the roots of the masses, shape [rows, n]."""
        return (((self.hidden(inputs) - self.means) * self.lengths).square() @ self.members).sqrt()


class OracleTopK(Gate):
    """Weights the k experts of most mass by 1 / k each, which takes all neurons: what a router is worth at best.

    Parameters
    ----------
    mass : ExpertMass
        Its masses decide.
    in_features, k : int
        Features of a row, and number of experts with weight.
    """

    def __init__(self, mass: ExpertMass, in_features: int, k: int) -> None:
        super().__init__(mass.members.shape[1], in_features=in_features)
        self.k = require_k(k, self.num_slots)
        self.mass = mass

    @property
    def most_slots(self) -> int:
        """The k that are kept."""
        return self.k

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        scores = self.mass(self.features(inputs, mask=mask)).unsqueeze(1)
        slots = scores.topk(self.k, dim=2, sorted=False).indices
        return SlotWeights(torch.zeros_like(scores).scatter(2, slots, 1 / self.k), scores).masked(mask)


def ridge_router(inputs: Tensor, scores: Tensor, k: int) -> EvenTopK:
    """Return a gate whose logits are the linear function of the inputs that comes nearest to the scores [rows, n]."""
    x, y = inputs.double(), scores.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    products = (x - x_mean).T @ (x - x_mean)
    products.diagonal().add_(RIDGE * products.diagonal().mean().clamp_min(torch.finfo(x.dtype).tiny))
    weight = torch.linalg.solve(products, (x - x_mean).T @ (y - y_mean)).T
    with torch.random.fork_rng(devices=[]):
        gate = EvenTopK(x.shape[1], y.shape[1], k).to(inputs)
    with torch.no_grad():
        gate.linear.weight.copy_(weight)
        gate.linear.bias.copy_(y_mean - weight @ x_mean)
    return gate


def trained_router(inputs: Tensor, scores: Tensor, k: int) -> EvenTopK:
    """Return a gate trained to choose the k highest scores of every row, by the cross-entropy of every choice."""
    # A caller's inference mode knows no gradients, and what is made in it can have none: hence the copies.
    with torch.inference_mode(False):
        return _trained(inputs.clone(), scores.clone(), k)


def _trained(inputs: Tensor, scores: Tensor, k: int) -> EvenTopK:
    gate = ridge_router(inputs, scores, k)
    chosen = torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0)
    with torch.no_grad():
        logits = gate.linear(inputs)
        scale = SPREAD / logits.std().clamp_min(torch.finfo(logits.dtype).tiny)
        gate.linear.weight.mul_(scale)
        gate.linear.bias.sub_(logits.topk(k, dim=1).values[:, -1].mean()).mul_(scale)
    with torch.enable_grad():
        optimizer = torch.optim.Adam(gate.linear.parameters(), LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            loss = functional.binary_cross_entropy_with_logits(gate.linear(inputs), chosen)
            optimizer.zero_grad()
            (loss + WEIGHT_DECAY * gate.linear.weight.square().sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        optimizer.zero_grad()
    return gate
