"""Whether a found expert map is better on samples that it was not searched on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.cut import forward
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.process_group import ALONE, Ranks
from moe_search.training.lowering.tasks import Tasks


@dataclass(frozen=True)
class Verification:
    """Paired comparison of two expert maps on the same samples.

    Parameters
    ----------
    gain : float
        Mean over the samples of the loss under the old map minus that under the new one.
    standard_error : float
        Standard error of that mean, from the sample standard deviation (ddof = 1) of the differences.
    num_samples : int
        Number of samples compared.
    """

    gain: float
    standard_error: float
    num_samples: int

    def confirmed(self, confidence: float = 1.0) -> bool:
        """Return whether the gain is positive and larger than ``confidence`` times its standard error."""
        return self.gain > 0 and self.gain > confidence * self.standard_error


def verify(
    model: nn.Module,
    tasks: Tasks,
    permutation: NDArray[np.int64],
    batch: Batch,
    chunk_size: int | None = None,
    ranks: Ranks = ALONE,
) -> Verification:
    """Compare the gate's expert map with that of ``permutation`` by true forwards; the gate keeps its map.

    Parameters
    ----------
    model : Module
        The model.
    tasks : Tasks
        The mixture layer in it, and the losses. Those of the tasks of a sample are summed: samples are compared.
    permutation : ndarray of int64
        The new map, as `ExpertMap.assign_permutation` takes it.
    batch : Batch
        At least two samples.
    chunk_size : int, optional
        The most samples that go through the model at once; all by default.
    ranks : Ranks
        Whose samples are compared together; all of them must call this.

    Returns
    -------
    Verification

    Raises
    ------
    ValueError
        If there are fewer than two samples; also whatever `sample_losses` raises.
    """
    batch.require(2, " to verify a map")
    size = chunk_size or len(batch)
    parts = [batch.part(start, min(start + size, len(batch))) for start in range(0, len(batch), size)]
    expert_map = tasks.expert_map
    kept = expert_map.experts.clone()

    def losses() -> NDArray[np.float64]:
        of_parts = []
        for part in parts:
            outputs = tasks.rows("the outputs of model", forward(model, part))
            of_parts.append(tasks.row_losses(outputs, tasks.rows("targets", part.targets)))
        return np.concatenate(of_parts).reshape(-1, tasks.count).sum(1)

    def gains_here() -> NDArray[np.float64]:
        with frozen(model):
            before = losses()
            try:
                expert_map.assign_permutation(permutation)
                return before - losses()
            finally:
                expert_map.assign(kept)

    gains = np.concatenate(ranks.collect(ranks.agree(gains_here)))
    return Verification(float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains))), len(gains))
