"""A batch on its way through a model, opened at the mixture layer in chunks of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.training.batch import Batch
from moe_search.training.cut import Cut, cut, run_head
from moe_search.training.sample_losses import Loss, sample_losses


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some samples of an opened batch.

    Parameters
    ----------
    start : int
        Number of the first sample in the batch.
    batch : Batch
        The samples.
    cut : Cut
        What they showed at the layer.
    slot_weights : Tensor
        Shape [c, rows, m], by row of the expert map: one map for all selectors cannot tell the same slot of two
        selectors apart, so their weights are added.
    """

    start: int
    batch: Batch
    cut: Cut
    slot_weights: Tensor

    @property
    def stop(self) -> int:
        """The number after that of the last sample."""
        return self.start + len(self.batch)


@dataclass(frozen=True, eq=False)
class Opened:
    """A batch that went through a model once.

    What is kept grows with the samples, never with samples times experts: those arrays are made chunk by chunk.

    Parameters
    ----------
    model, moe, loss
        As in `lower`.
    chunk_size : int
        The most samples that go through the model at once.
    chunks : tuple of Chunk
        All samples of the batch, in order.
    losses : ndarray of float64
        Loss of every sample under the present map, shape [B].
    """

    model: nn.Module
    moe: MixtureOfExperts
    loss: Loss
    chunk_size: int
    chunks: tuple[Chunk, ...]
    losses: NDArray[np.float64]

    @property
    def num_samples(self) -> int:
        """Number of samples B."""
        return len(self.losses)

    @property
    def num_slots(self) -> int:
        """Number of slots of all rows of the expert map."""
        return self.moe.gate.expert_map.experts.numel()

    @property
    def slots_per_sample(self) -> int:
        """The most slots that a sample gives weight to."""
        return max(int((chunk.slot_weights > 0).sum((1, 2)).max()) for chunk in self.chunks)

    @property
    def slot_loads(self) -> NDArray[np.int64]:
        """Number of samples that give weight to every slot, in the order of the rows; shape (num_slots,)."""
        return torch.stack([(chunk.slot_weights > 0).sum(0).flatten() for chunk in self.chunks]).sum(0).cpu().numpy()

    @property
    def outputs(self) -> Tensor:
        """What the model returned, shape [B, ...]."""
        return torch.cat([chunk.cut.outputs for chunk in self.chunks])

    @property
    def targets(self) -> Tensor:
        """What the loss compares the outputs with, shape [B, ...]."""
        return torch.cat([chunk.batch.targets for chunk in self.chunks])

    def expert_outputs(self, chunk: Chunk) -> Tensor:
        """Run every expert on the samples of a chunk; shape [c, n, ...]."""
        return self.moe.expert_outputs(chunk.cut.moe_inputs)

    def alternatives(self, chunk: Chunk, count: int) -> Iterator[slice]:
        """Split ``count`` mixtures of every sample of a chunk such that few enough go through the model at once."""
        step = max(1, self.chunk_size // len(chunk.batch))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def losses_of(self, chunk: Chunk, mixtures: Tensor) -> NDArray[np.float64]:
        """Return the losses of the samples of a chunk, shape [c, k], for k mixtures each, shape [c, k, ...]."""
        count = mixtures.shape[1]
        repeated = chunk.batch.repeat(count)
        outputs = run_head(self.model, self.moe, repeated, mixtures.flatten(0, 1))
        return sample_losses(self.loss, outputs, repeated.targets).reshape(-1, count)


def open_batch(model: nn.Module, moe: MixtureOfExperts, batch: Batch, loss: Loss, chunk_size: int) -> Opened:
    """Run a batch through a model, at most ``chunk_size`` samples at once.

    Raises
    ------
    ValueError, TypeError
        As `cut` and `sample_losses`.
    """
    one_row = len(moe.gate.expert_map.experts) == 1
    chunks = []
    for start in range(0, len(batch), chunk_size):
        part = batch.part(start, min(start + chunk_size, len(batch)))
        opened = cut(model, moe, part)
        weights = opened.slot_weights.sum(1, keepdim=True) if one_row else opened.slot_weights
        chunks.append(Chunk(start, part, opened, weights))
    losses = [sample_losses(loss, chunk.cut.outputs, chunk.batch.targets) for chunk in chunks]
    return Opened(model, moe, loss, chunk_size, tuple(chunks), np.concatenate(losses))
