"""Whether a found expert map is better on samples that it was not searched on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from moe_search.gates.expert_map import ExpertMap
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.forward_pass import forward
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.losses import Loss, mean_and_error, require_finite
from moe_search.training.lowering.process_group import ALONE, Ranks
from moe_search.training.lowering.tasks import Tasks
from moe_search.training.lowering.token_lowering import gains_of_maps


@dataclass(frozen=True)
class Verification:
    """Paired comparison of two expert maps on the same samples.

    Parameters
    ----------
    gain : float
        Mean over the samples of the loss under the old map minus that under the new one.
    standard_error : float
        Standard error of that mean, from the sample standard deviation (ddof = 1) of the differences, added up by group
        where batches have groups.
    num_samples : int
        Number of samples compared.
    """

    gain: float
    standard_error: float
    num_samples: int

    def confirmed(self, confidence: float = 1.0) -> bool:
        """Return whether the gain is positive and larger than ``confidence`` times its standard error."""
        return self.gain > 0 and self.gain > confidence * self.standard_error


def verify_tokens(
    model: nn.Module,
    expert_map: ExpertMap,
    loss: Loss,
    permutations: Sequence[NDArray[np.int64]],
    batches: Iterable[Batch],
    chunk_size: int,
    ranks: Ranks = ALONE,
) -> list[Verification]:
    """Compare a map with those of some permutations by true forwards of sequences; the gate keeps its map.

    A sequence counts as in `sequence_losses`, so that the gain is that of the mean loss, whose standard error is that
    of a ratio: tokens of a sequence depend on each other, sequences do not.
    """

    def gains_here() -> NDArray[np.float64]:
        gains = gains_of_maps(model, expert_map, loss, permutations, batches, chunk_size)
        require_finite(gains)
        return gains

    counts, *gains = np.concatenate(ranks.collect(ranks.agree(gains_here)), axis=1)
    size = int((counts > 0).sum())
    if size < 2:
        raise ValueError(f"batches must hold at least 2 sequences to verify a map, got {size}")
    return [Verification(*mean_and_error(gain, counts)) for gain in gains]


def verify(
    model: nn.Module,
    tasks: Tasks,
    permutation: NDArray[np.int64],
    batches: Iterable[Batch],
    chunk_size: int | None = None,
    ranks: Ranks = ALONE,
) -> Verification:
    """Compare the gate's expert map with that of ``permutation`` by true forwards; the gate keeps its map.

    The losses of the tasks of a sample are summed: samples are compared.

    Parameters
    ----------
    permutation : ndarray of int64
        The new map, as `ExpertMap.assign_permutation` takes it.
    batches : iterable of Batch
        They hold at least two samples together, or two groups. They are looked at one after another; a number is kept
        for each sample.
    chunk_size : int, optional
        The most samples that go through the model at once; a batch by default.
    ranks : Ranks
        Their samples are compared together. All of them must call this, and may have different numbers of batches.
    """
    expert_map = tasks.expert_map
    kept = expert_map.experts.clone()

    def losses(batch: Batch) -> NDArray[np.float64]:
        of_parts = []
        for part in batch.parts(chunk_size or len(batch)):
            outputs = tasks.rows("the outputs of model", forward(model, part))
            of_parts.append(tasks.row_losses(outputs, tasks.rows("targets", part.targets)))
        return np.concatenate(of_parts).reshape(-1, tasks.count).sum(1)

    def gains_here() -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
        gains, groups = [], []
        with frozen(model):
            for batch in batches:
                before = losses(batch)
                try:
                    expert_map.assign_permutation(permutation)
                    gains.append(before - losses(batch))
                finally:
                    expert_map.assign(kept)
                if batch.groups is not None:
                    groups.append(batch.groups.cpu().numpy())
        if groups and len(groups) < len(gains):
            raise ValueError("groups must come with every batch that verifies or with none, got some without")
        return np.concatenate(gains or [np.empty(0)]), np.concatenate(groups) if groups else None

    of_ranks = ranks.collect(ranks.agree(gains_here))
    gains = np.concatenate([gain for gain, _ in of_ranks])
    groups = [group for _, group in of_ranks if group is not None]
    units = np.bincount(np.unique(np.concatenate(groups), return_inverse=True)[1], gains) if groups else gains
    if len(units) < 2:
        what = "groups" if groups else "samples"
        raise ValueError(f"batches must hold at least 2 {what} to verify a map, got {len(units)}")
    per_sample = len(units) / len(gains)
    error = units.std(ddof=1) / np.sqrt(len(units))
    return Verification(float(units.mean() * per_sample), float(error * per_sample), len(gains))
