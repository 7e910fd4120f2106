"""A batch on its way through a model, opened at the mixture layer in chunks of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.cut import Cut, cut, require_separate, run_head
from moe_search.training.lowering.tasks import Tasks


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some samples of an opened batch, R rows: one for each sample and task, as in `Tasks`.

    Parameters
    ----------
    start : int
        Number of the first row in the batch.
    batch : Batch
        The samples.
    cut : Cut
        What they showed at the layer.
    slot_weights : Tensor
        Shape [R, map rows, m], by row of the expert map: one map for all selectors cannot tell the same slot of two
        selectors apart, so their weights are added.
    targets : Tensor
        Shape [R, ...].
    """

    start: int
    batch: Batch
    cut: Cut
    slot_weights: Tensor
    targets: Tensor

    @property
    def stop(self) -> int:
        """The number after that of the last row."""
        return self.start + len(self.slot_weights)


@dataclass(frozen=True, eq=False)
class Opened:
    """A batch that went through a model once.

    What is kept grows with the rows, never with rows times experts: those arrays are made chunk by chunk.

    Parameters
    ----------
    model : Module
        As in `lower`.
    tasks : Tasks
        The layer and the losses.
    chunk_size : int
        The most rows that go through the model at once.
    chunks : tuple of Chunk
        All samples of the batch, in order.
    losses : ndarray of float64
        Loss of every row under the present map.
    """

    model: nn.Module
    tasks: Tasks
    chunk_size: int
    chunks: tuple[Chunk, ...]
    losses: NDArray[np.float64]

    @property
    def num_rows(self) -> int:
        """Number of samples times number of tasks."""
        return len(self.losses)

    @property
    def num_slots(self) -> int:
        """Number of slots of all rows of the expert map."""
        return self.tasks.expert_map.experts.numel()

    @property
    def slots_per_sample(self) -> int:
        """The most slots that a sample gives weight to for one task."""
        return max(int((chunk.slot_weights > 0).sum((1, 2)).max()) for chunk in self.chunks)

    @property
    def slot_loads(self) -> NDArray[np.int64]:
        """Number of rows that give weight to every slot, in the order of the map's rows; shape (num_slots,)."""
        return torch.stack([(chunk.slot_weights > 0).sum(0).flatten() for chunk in self.chunks]).sum(0).cpu().numpy()

    @property
    def outputs(self) -> Tensor:
        """What the model returned, by rows."""
        return torch.cat([chunk.cut.outputs for chunk in self.chunks])

    @property
    def targets(self) -> Tensor:
        """What the loss compares the outputs with, by rows."""
        return torch.cat([chunk.targets for chunk in self.chunks])

    def expert_outputs(self, chunk: Chunk) -> Tensor:
        """Run every expert on the samples of a chunk, in the precision of the layer; shape [R, n, ...]."""
        with chunk.cut.autocast.again():
            return self.tasks.expert_outputs(chunk.cut.moe_inputs)

    def alternatives(self, chunk: Chunk, count: int) -> Iterator[slice]:
        """Split ``count`` mixtures of every row of a chunk such that few enough go through the model at once."""
        step = max(1, self.chunk_size // len(chunk.slot_weights))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def losses_of(self, chunk: Chunk, mixtures: Tensor) -> NDArray[np.float64]:
        """Return the losses of the rows of a chunk, shape [R, k], for k mixtures each, shape [R, k, ...]."""
        count, tasks = mixtures.shape[1], self.tasks.count
        repeated = chunk.batch.repeat(count)
        # Every copy of a sample is followed by the next; the rows of a copy are its tasks.
        rows = mixtures.reshape(-1, tasks, *mixtures.shape[1:]).transpose(1, 2).flatten(0, 2)
        rows = rows.to(chunk.cut.mixture.dtype)
        outputs = run_head(self.model, self.tasks, repeated, rows)
        losses = self.tasks.row_losses(outputs, self.tasks.rows("targets", repeated.targets))
        return losses.reshape(-1, count, tasks).swapaxes(1, 2).reshape(-1, count)


def open_batch(model: nn.Module, tasks: Tasks, batch: Batch, chunk_size: int) -> Opened:
    """Run a batch through a model, at most ``chunk_size`` rows at once.

    Raises
    ------
    ValueError, TypeError
        As `cut`, `sample_losses` and `require_separate`.
    """
    one_row = len(tasks.expert_map.experts) == 1
    size = max(1, chunk_size // tasks.count)
    chunks = []
    for start in range(0, len(batch), size):
        part = batch.part(start, min(start + size, len(batch)))
        opened = cut(model, tasks, part)
        weights = opened.slot_weights.sum(1, keepdim=True) if one_row else opened.slot_weights
        chunks.append(Chunk(start * tasks.count, part, opened, weights, tasks.rows("targets", part.targets)))
    losses = [tasks.row_losses(chunk.cut.outputs, chunk.targets) for chunk in chunks]
    for chunk in chunks:
        require_separate(model, tasks, chunk.batch, chunk.cut)
    return Opened(model, tasks, chunk_size, tuple(chunks), np.concatenate(losses))
