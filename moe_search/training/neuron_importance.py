"""How much the loss depends on each hidden neuron of a feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Some = TypeVar("Some")


def neuron_importance(
    layers: Sequence[tuple[nn.Linear, nn.Linear]],
    sample_losses: Callable[[Some], Tensor],
    batches: Iterable[Some],
) -> list[Tensor]:
    """Return the importance of every hidden neuron of feed-forward layers, summed over the samples of batches.

    The importance of neuron j is ``sum_(x, y) |w1_j . dL/dw1_j + w2_j . dL/dw2_j|``, with w1_j its weights in, without
    bias, and w2_j its weights out: to first order, what the loss L(x, y) of a sample changes by without these weights.

    Parameters
    ----------
    layers : sequence of pairs of Linear
        The two affine maps of every layer, each called once a forward with the samples along its first axis.
    sample_losses : callable
        Runs the model on a batch and returns the loss of each sample, shape [B], each from its own sample alone. The
        weights may be frozen.
    batches : iterable
        Each is what `sample_losses` takes.

    Returns
    -------
    list of Tensor
        One for each layer, shape [h].

    Notes
    -----
    Zuo et al. (2022), MoEBERT, section 3, after Molchanov et al. (2019), Importance estimation for neural network
    pruning. No gradient of a weight is formed: with z the neurons before the activation and a after it,
    ``w1_j . dL/dw1_j`` is ``sum (z_j - b_j) dL/dz_j`` and ``w2_j . dL/dw2_j`` is ``sum a_j dL/da_j``, the sums going
    over the tokens of a sample.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> first, second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 3)
    >>> def losses(batch):
    ...     return second(first(batch).relu()).square().sum(1)
    >>> [importance] = ms.neuron_importance([(first, second)], losses, [torch.randn(32, 8)])
    >>> importance.shape, bool((importance >= 0).all())
    (torch.Size([16]), True)
    """
    if not layers:
        raise ValueError("layers must hold at least one pair, got none")
    scores = [torch.zeros_like(first.weight[:, 0]) for first, _ in layers]
    seen: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in layers]

    def keep_before(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> None:
            # Where all weights are frozen, the graph begins here.
            if not output.requires_grad:
                output.requires_grad_()
            seen[index][0].append(output)

        return hook

    def keep_after(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen[index][1].append(arguments[0])

        return hook

    count = 0
    with torch.enable_grad(), ExitStack() as hooks:
        for index, (first, second) in enumerate(layers):
            hooks.callback(first.register_forward_hook(keep_before(index)).remove)
            hooks.callback(second.register_forward_pre_hook(keep_after(index)).remove)
        for batch in batches:
            _add(scores, layers, seen, sample_losses(batch))
            for before, after in seen:
                before.clear()
                after.clear()
            count += 1
    if count == 0:
        raise ValueError("batches must hold at least one, got none")
    return scores


@torch.no_grad()
def _add(
    scores: list[Tensor],
    layers: Sequence[tuple[nn.Linear, nn.Linear]],
    seen: list[tuple[list[Tensor], list[Tensor]]],
    losses: Tensor,
) -> None:
    for before, after in seen:
        if (len(before), len(after)) != (1, 1):
            raise ValueError(
                f"sample_losses must call every layer once, got {len(before)} calls of its first map and {len(after)} "
                "of its second"
            )
    size = len(seen[0][0][0])
    if losses.shape != (size,):
        raise ValueError(f"sample_losses must return shape ({size},), one loss a sample, got {tuple(losses.shape)}")
    neurons = [tensor for before, after in seen for tensor in (*before, *after)]
    gradients = torch.autograd.grad(losses, neurons, torch.ones_like(losses))
    for index, (first, _) in enumerate(layers):
        (z, a), (of_z, of_a) = (each[2 * index : 2 * index + 2] for each in (neurons, gradients))
        products = (z if first.bias is None else z - first.bias) * of_z + a * of_a
        # All axes between that of the samples and that of the neurons: the tokens.
        of_samples = products.flatten(1, -2).sum(1) if products.ndim > 2 else products
        scores[index] += of_samples.abs().sum(0)
