"""The loss of every sample, from a loss that returns the mean over a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_search.training.lowering.precision import at_least_single

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)``: a scalar tensor, the mean over the samples of a batch."""


class NonFiniteLossError(ValueError):
    """A loss, or an output that a loss is made of, is NaN or infinite."""


@torch.no_grad()
def sample_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Return the loss of each sample alone, shape [B].

    The loss is mapped over the samples by ``torch.func.vmap``; a loss that cannot be mapped (one that calls ``.item()``
    or branches on values) is called once for each sample.

    Parameters
    ----------
    loss : callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples.
    outputs, targets : Tensor
        Shape [B, ...].

    Raises
    ------
    ValueError
        If the loss returns more than a scalar, or something else than the mean over the samples.
    NonFiniteLossError
        If the loss of the batch is NaN or infinite.
    """
    # Half precision has too few digits to tell one loss from another, or a small gain from none.
    outputs, targets = at_least_single(outputs), at_least_single(targets)
    # One sample has the same mean and sum; the same sample twice has not.
    repeats = 2 if len(outputs) == 1 else 1
    of_batch = loss(torch.cat([outputs] * repeats), torch.cat([targets] * repeats))
    if not isinstance(of_batch, Tensor):
        raise TypeError(f"loss must return a scalar tensor, got {type(of_batch).__name__}")
    if of_batch.ndim != 0:
        raise ValueError(
            f"loss must return a scalar, the mean over the samples, got a tensor of shape {tuple(of_batch.shape)}"
        )
    mean = float(of_batch)
    if not np.isfinite(mean):
        raise NonFiniteLossError(f"loss must be finite, got {mean}")

    try:
        with warnings.catch_warnings():
            # vmap warns of every operator that it can only map slowly.
            warnings.simplefilter("ignore")
            of_samples = torch.func.vmap(lambda output, target: loss(output[None], target[None]))(outputs, targets)
    except Exception:
        # Whatever a loss does under vmap, outside of it the loop below meets the same error, if it is one.
        of_samples = torch.stack([loss(outputs[b : b + 1], targets[b : b + 1]) for b in range(len(outputs))])

    losses = of_samples.cpu().double().numpy()
    # Rounding grows far slower than the square root of the machine epsilon with the number of samples summed.
    tolerance = torch.finfo(of_batch.dtype).eps ** 0.5
    if not abs(losses.mean() - mean) <= tolerance * np.abs(losses).mean():
        raise ValueError(
            f"loss must be the mean over the samples, got {mean:.6g} for {len(outputs) * repeats} samples "
            f"whose own losses have the mean {losses.mean():.6g}"
        )
    return losses
