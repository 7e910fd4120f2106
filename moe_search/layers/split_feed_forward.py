"""Experts made of the neurons of a trained feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import overload

import torch
from torch import Tensor, nn

from moe_search.checks import require_choice, require_integer
from moe_search.gates.gate import Gate
from moe_search.layers.neuron_router import ExpertMass, HiddenLayer, OracleTopK, ridge_router, trained_router
from moe_search.layers.stacked_experts import StackedExperts, made_activation


def deal_neurons(importance: Tensor, num_experts: int, neurons: int, shared: int) -> Tensor:
    """Return which neurons of a layer every expert gets: the most important ones all of them, the rest dealt round.

    Parameters
    ----------
    importance : Tensor
        Shape [h], one score for each hidden neuron, as `moe_search.training.neuron_importance` returns them.
    num_experts : int
        Number of experts n.
    neurons : int
        Number of neurons of every expert.
    shared : int
        So many of the most important neurons go to all experts. The most important of the others goes to expert 0, the
        next to expert 1, and so on; what is left when all experts are full goes to none.

    Returns
    -------
    Tensor of int64, shape [n, neurons]
        The most important neurons first. Equal scores stand in the order of the neurons.

    Notes
    -----
    Zuo et al. (2022), MoEBERT: importance-guided adaptation of a feed-forward layer into experts.

    Examples
    --------
    >>> import torch
    >>> from moe_search.layers.split_feed_forward import deal_neurons
    >>> deal_neurons(torch.tensor([5.0, 1.0, 3.0, 4.0, 2.0]), num_experts=2, neurons=3, shared=1)
    tensor([[0, 3, 4],
            [0, 2, 1]])
    """
    n, neurons = require_integer("num_experts", num_experts), require_integer("neurons", neurons)
    if importance.ndim != 1 or not bool(importance.isfinite().all()):
        raise ValueError(f"importance must be finite and of shape [h], got shape {tuple(importance.shape)}")
    if not 0 <= shared <= neurons:
        raise ValueError(f"shared must be 0 .. {neurons}, the neurons of an expert, got {shared}")
    needed = shared + n * (neurons - shared)
    if needed > len(importance):
        raise ValueError(
            f"a layer must have {needed} neurons for {n} experts of {neurons} with {shared} in common, "
            f"got importance of {len(importance)}"
        )
    order = importance.argsort(descending=True, stable=True)
    dealt = order[shared:needed].view(neurons - shared, n).T
    return torch.cat([order[:shared].expand(n, -1), dealt], dim=1)


ROUTERS = ("ridge", "oracle", "train")


@overload
def split_feed_forward(
    first: nn.Linear,
    second: nn.Linear,
    activation: Callable[[], nn.Module],
    neurons: Tensor,
    router: None = None,
    *,
    gated_by: nn.Linear | None = None,
) -> StackedExperts: ...


@overload
def split_feed_forward(
    first: nn.Linear,
    second: nn.Linear,
    activation: Callable[[], nn.Module],
    neurons: Tensor,
    router: str,
    *,
    active: int,
    inputs: Tensor,
    mean: bool = True,
    gated_by: nn.Linear | None = None,
) -> tuple[StackedExperts, Gate]: ...


def split_feed_forward(
    first: nn.Linear,
    second: nn.Linear,
    activation: Callable[[], nn.Module],
    neurons: Tensor,
    router: str | None = None,
    *,
    active: int | None = None,
    inputs: Tensor | None = None,
    mean: bool = True,
    gated_by: nn.Linear | None = None,
) -> StackedExperts | tuple[StackedExperts, Gate]:
    """Return experts that compute what some neurons of a feed-forward layer contribute, and a gate that routes to them.

    Without a router, they are n experts of d hidden units with copies of the weights. All get the whole bias of
    `second`: an expert with all neurons is the layer itself.

    With a router, the mixture of the experts by the gate's weights, which are 1 / active at first, is the layer without
    the neurons of the experts that are not run: those give their mean, which is in the biases. For that, the weights of
    the last map are `active` times those of the layer, but for neurons that all experts have.

    Parameters
    ----------
    first, second : Linear
        The layer is ``second(activation(first(x)))``, with h neurons between.
    activation : callable
        Returns the module between, as for `StackedExperts`.
    neurons : Tensor of integers
        Shape [n, d]: the neurons of every expert, as from `deal_neurons` or `cluster_neurons`. With a router, a neuron
        is in one expert, in all, or in none.
    router : {"ridge", "oracle", "train"}, optional
        How the gate tells the experts whose neurons matter most to a row: by ridge regression of what they matter; by
        computing all neurons, which saves nothing and tells what a router is worth at best; or by training it to choose
        as the oracle does, which takes some seconds.
    active : int
        How many experts a row runs, with a router.
    inputs : Tensor
        Shape [rows, in_features]: calibration data for the means and the router.
    mean : bool
        Whether skipped neurons give their mean over the inputs, and not 0.
    gated_by : Linear, optional
        The layer is gated: ``second(activation(gated_by(x)) * first(x))``, as SwiGLU is.

    Returns
    -------
    StackedExperts
        The experts.
    Gate
        With a router: an `EvenTopK`, or the oracle.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> first, second, x = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3), torch.randn(64, 8)
    >>> hidden = first(x).relu()
    >>> neurons = torch.arange(16).view(4, 4)  # or ms.cluster_neurons(hidden, second.weight, num_experts=4, active=2)
    >>> parts = ms.split_feed_forward(first, second, torch.nn.ReLU, neurons, router="ridge", active=2, inputs=x)
    >>> ms.MixtureOfExperts(*parts)(x).shape
    torch.Size([64, 3])
    >>> experts = ms.split_feed_forward(first, second, torch.nn.ReLU, neurons)
    >>> torch.allclose(experts(x).sum(1) - 3 * second.bias, second(hidden), atol=1e-5)  # each has the whole bias
    True
    """
    _check_layer(first, second, neurons, gated_by)
    whole = second.weight.new_zeros(second.out_features) if second.bias is None else second.bias
    if router is None:
        return _experts(
            first, second, activation, neurons, gated_by, torch.ones_like(neurons), whole.expand(len(neurons), -1)
        )
    require_choice("router", router, ROUTERS)
    if active is None or inputs is None:
        raise ValueError("active and inputs must be given with a router, got one of them or none")
    active = require_integer("active", active)
    if active > len(neurons):
        raise ValueError(f"active must be at most the number of experts, {len(neurons)}, got {active}")
    if inputs.ndim != 2 or inputs.shape[1] != first.in_features or len(inputs) == 0:
        raise ValueError(
            f"inputs must have shape [rows, {first.in_features}], one row at least, got {tuple(inputs.shape)}"
        )
    if not bool(inputs.isfinite().all()):
        raise ValueError("inputs must be finite, got NaN or infinite numbers")
    with torch.no_grad():
        hidden = HiddenLayer(first, made_activation(activation), gated_by)
        values = hidden(inputs)
        copies = torch.bincount(neurons.flatten(), minlength=first.out_features)
        common = copies == len(neurons)
        if bool(((copies > 1) & ~common).any()):
            raise ValueError("neurons must have each neuron in one expert, in all or in none, got one in some of them")
        # A row that runs some experts, each with weight 1 / active, has the common neurons from all of these.
        scale = torch.where(common[neurons], 1, active)
        means = values.mean(0) if mean else torch.zeros_like(values[0])
        means = means.masked_fill(common, 0.0)
        present = (means * second.weight)[:, neurons] * scale
        experts = _experts(
            first, second, activation, neurons, gated_by, scale, whole + second.weight @ means - present.sum(2).T
        )
        members = values.new_zeros(len(copies), len(neurons))
        members[neurons.T, torch.arange(len(neurons), device=neurons.device)] = 1.0
        members[common] = 0.0
        mass = ExpertMass(deepcopy(hidden), means, second.weight.norm(dim=0), members)
        if router == "oracle":
            return experts, OracleTopK(mass.requires_grad_(False), first.in_features, active)
        fit = ridge_router if router == "ridge" else trained_router
        return experts, fit(inputs, mass(inputs), active)


def _check_layer(first: nn.Linear, second: nn.Linear, neurons: Tensor, gated_by: nn.Linear | None) -> None:
    if first.out_features != second.in_features:
        raise ValueError(
            f"second must take the {first.out_features} neurons of first, got {second.in_features} in_features"
        )
    if gated_by is not None and gated_by.weight.shape != first.weight.shape:
        raise ValueError(
            f"gated_by must have the shape of first, {tuple(first.weight.shape)}, got {tuple(gated_by.weight.shape)}"
        )
    if not isinstance(neurons, Tensor) or neurons.is_floating_point() or neurons.is_complex():
        what = neurons.dtype if isinstance(neurons, Tensor) else type(neurons).__name__
        raise TypeError(f"neurons must be a tensor of integers, got {what}")
    if neurons.ndim != 2 or neurons.numel() == 0:
        raise ValueError(f"neurons must have shape [n, d], got {tuple(neurons.shape)}")
    if neurons.min() < 0 or neurons.max() >= first.out_features:
        raise ValueError(
            f"neurons must be in 0 .. {first.out_features - 1}, got {int(neurons.min())} .. {int(neurons.max())}"
        )
    if bool((neurons.sort(1).values.diff(dim=1) == 0).any()):
        raise ValueError("neurons must have no neuron twice in an expert, got one that has")


@torch.no_grad()
def _experts(
    first: nn.Linear,
    second: nn.Linear,
    activation: Callable[[], nn.Module],
    neurons: Tensor,
    gated_by: nn.Linear | None,
    scale: Tensor,
    biases: Tensor,
) -> StackedExperts:
    """Return experts of some neurons, whose output weights are scaled, shape [n, d], with biases [n, out]."""
    n, width = neurons.shape
    into = [first] if gated_by is None else [gated_by, first]
    with torch.random.fork_rng(devices=[]):
        experts = StackedExperts(
            n, first.in_features, second.out_features, width, activation, gated=gated_by is not None
        ).to(first.weight)
    experts.weights[0].copy_(torch.cat([each.weight[neurons] for each in into], 1))
    biases_into = [each.weight.new_zeros(n, width) if each.bias is None else each.bias[neurons] for each in into]
    experts.biases[0].copy_(torch.cat(biases_into, 1))
    experts.weights[1].copy_((second.weight[:, neurons] * scale).transpose(0, 1))
    experts.biases[1].copy_(biases)
    return experts
