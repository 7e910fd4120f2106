"""A searched layer by its tasks: one for a layer with one gate, one for each gate over a shared map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import Gate
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.training.lowering.losses import Loss, sample_losses

Layer: TypeAlias = MixtureOfExperts | MultiGateMixtureOfExperts
"""What can be searched: a layer with one map."""

TaskLoss: TypeAlias = Loss | Sequence[Loss]
"""The loss of every task, or one for each."""


@dataclass(frozen=True, eq=False)
class Tasks:
    """A layer and a loss for each of its tasks, by rows: a row is a sample and a task, those of a sample side by side.

    If there is one task, rows are samples.
    """

    moe: Layer
    losses: tuple[Loss, ...]

    @classmethod
    def of(cls, moe: Layer, loss: TaskLoss) -> Tasks:
        """Return the tasks of a layer under one loss for all, or one for each."""
        mixtures = mixtures_of(moe)
        count = len(mixtures)
        if len({id(mixture.gate.expert_map) for mixture in mixtures}) > 1:
            raise ValueError(
                f"moe must have one map to be searched, got {count} tasks with maps of their own: "
                "search each of them, moe.task(t), or share the map"
            )
        several = isinstance(loss, (list, tuple)) and isinstance(moe, MultiGateMixtureOfExperts)
        losses: tuple[Any, ...] = tuple(cast(Sequence[Loss], loss)) if several else (loss,) * count
        if len(losses) != count:
            raise ValueError(f"loss must be one callable, or one for each of the {count} tasks, got {len(losses)}")
        for one in losses:
            if not callable(one):
                raise TypeError(f"loss must be a callable (outputs, targets) -> scalar, got {type(one).__name__}")
        return cls(moe, losses)

    @property
    def count(self) -> int:
        """Number of tasks."""
        return len(self.losses)

    @property
    def gates(self) -> list[Gate]:
        """The gates, one for each task."""
        return [mixture.gate for mixture in mixtures_of(self.moe)]

    @property
    def expert_map(self) -> ExpertMap:
        """The map that is searched."""
        return self.gates[0].expert_map

    def device(self) -> torch.device:
        """Return where the map lies now."""
        return self.expert_map.experts.device

    def expert_outputs(self, inputs: Tensor) -> Tensor:
        """Run every expert on every sample; shape [rows, n, ...], the same for all tasks of a sample."""
        outputs = self.moe.expert_outputs(inputs)
        return outputs if self.count == 1 else outputs.repeat_interleave(self.count, 0)

    def shared_outputs(self, inputs: Tensor) -> Tensor | None:
        """Return what is added to the mixture of every sample, whatever the map: [rows, ...], or None for nothing."""
        return self.moe.shared_outputs(inputs) if isinstance(self.moe, MixtureOfExperts) else None

    def combine(self, expert_weights: Tensor, expert_outputs: Tensor) -> Tensor:
        """Mix outputs of experts, shape [rows, n, ...], with weights of shape [rows, n]."""
        return mixtures_of(self.moe)[0].combine(expert_weights, expert_outputs)

    def rows(self, what: str, tensor: Tensor) -> Tensor:
        """Return a tensor by rows that comes by samples: [B, ...], of a layer of several gates [B, tasks, ...].

        If it has not one entry for each task, the error tells ``what`` it is.
        """
        if isinstance(self.moe, MixtureOfExperts):
            return tensor
        if tensor.ndim < 2 or tensor.shape[1] != self.count:
            raise ValueError(
                f"{what} must have shape [B, {self.count}, ...], an entry for each of the {self.count} tasks, "
                f"got shape {tuple(tensor.shape)}"
            )
        return tensor.flatten(0, 1)

    def by_sample(self, rows: Tensor) -> Tensor:
        """Return by samples what comes by rows: the inverse of `rows`."""
        return rows if isinstance(self.moe, MixtureOfExperts) else rows.reshape(-1, self.count, *rows.shape[1:])

    def of_task(self, t: int) -> slice:
        """Return where the rows of task ``t`` stand."""
        return slice(t, None, self.count)

    def row_losses(self, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
        """Return the loss of every row, shape [rows], for outputs and targets by rows; errors as `sample_losses`."""
        if len({id(loss) for loss in self.losses}) == 1:
            return sample_losses(self.losses[0], outputs, targets)
        losses = np.empty(len(outputs))
        for t, loss in enumerate(self.losses):
            losses[self.of_task(t)] = sample_losses(loss, outputs[self.of_task(t)], targets[self.of_task(t)])
        return losses


def mixtures_of(moe: Layer) -> list[MixtureOfExperts]:
    """Return a layer as each of its tasks sees it."""
    if isinstance(moe, MixtureOfExperts):
        return [moe]
    if not isinstance(moe, MultiGateMixtureOfExperts):
        raise TypeError(f"moe must be a MixtureOfExperts or MultiGateMixtureOfExperts, got {type(moe).__name__}")
    return [cast(MixtureOfExperts, task) for task in moe.tasks]
