"""Experts made of the neurons of a trained feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moe_search.checks import require_integer
from moe_search.layers.stacked_experts import StackedExperts


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


def split_feed_forward(
    first: nn.Linear, second: nn.Linear, activation: Callable[[], nn.Module], neurons: Tensor
) -> StackedExperts:
    """Return experts that compute what some neurons of a feed-forward layer contribute.

    They are n experts of d hidden units with copies of the weights. All get the whole bias of `second`: an expert with
    all neurons is the layer itself.

    Parameters
    ----------
    first, second : Linear
        The layer is ``second(activation(first(x)))``, with h neurons between. Both must have a bias.
    activation : callable
        Returns the module between, as for `StackedExperts`.
    neurons : Tensor of integers
        Shape [n, d]: the neurons of every expert, as from `deal_neurons`.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> first, second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3)
    >>> experts = ms.split_feed_forward(first, second, torch.nn.ReLU, torch.arange(16).view(2, 8))
    >>> x = torch.randn(5, 8)
    >>> whole = second(first(x).relu())
    >>> torch.allclose(experts(x).sum(1) - second.bias, whole, atol=1e-6)  # each expert has the whole bias
    True
    """
    if first.bias is None or second.bias is None:
        raise ValueError("first and second must have a bias, got one without")
    if first.out_features != second.in_features:
        raise ValueError(
            f"second must take the {first.out_features} neurons of first, got {second.in_features} in_features"
        )
    if neurons.ndim != 2 or neurons.numel() == 0 or neurons.min() < 0 or neurons.max() >= first.out_features:
        raise ValueError(
            f"neurons must be of shape [n, d] and hold neurons 0 .. {first.out_features - 1}, "
            f"got shape {tuple(neurons.shape)} and {neurons.tolist()}"
        )
    n, width = neurons.shape
    with torch.random.fork_rng(devices=[]):
        experts = StackedExperts(n, first.in_features, second.out_features, width, activation)
    experts = experts.to(first.weight)
    with torch.no_grad():
        experts.weights[0].copy_(first.weight[neurons])
        experts.biases[0].copy_(first.bias[neurons])
        experts.weights[1].copy_(second.weight[:, neurons].transpose(0, 1))
        experts.biases[1].copy_(second.bias.expand(n, -1))
    return experts
