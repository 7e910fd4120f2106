"""Neurons of a feed-forward layer put together into experts, by what they do on calibration data."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from moe_search.api import solve
from moe_search.problems.neuron_partition import NeuronPartition
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import MaxRuntime, StoppingCriterion
from moe_search.solvers.heuristic.partition_search import PartitionSearch


def cluster_neurons(
    activations: Tensor,
    output_weights: Tensor,
    num_experts: int,
    active: int,
    shared: int = 0,
    *,
    mean: bool = True,
    solver: Solver | None = None,
    stop: StoppingCriterion | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the neurons of every expert, so that a row that runs its best few experts loses little of the layer.

    Parameters
    ----------
    activations : Tensor
        Shape [rows, h]: what the h hidden neurons give on calibration data, between the affine maps. In a gated layer,
        what goes into the last of these.
    output_weights : Tensor
        Shape [out, h], the weight of the last affine map: the error of the layer's output is minimized. Or their
        lengths, shape [h]: faster, and the errors of neurons are then taken to be independent.
    num_experts, active, shared : int
        Number of experts n, how many of them a row will run, and how many neurons all experts have in common.
    mean : bool
        Whether skipped neurons will give their mean over the rows, and not 0.
    solver, stop, seed
        As for `solve`; by default one round of `PartitionSearch`, which takes some seconds of a layer of 1,536 neurons
        and 3,000 rows.

    Returns
    -------
    Tensor of int64, shape [n, shared + (h - shared) / n]
        The shared neurons first, as `split_feed_forward` takes it.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> hidden = torch.eye(4).repeat(1, 2)  # neurons 0 and 4 work together, 1 and 5, and so on
    >>> sorted(ms.cluster_neurons(hidden, torch.ones(8), num_experts=4, active=1).tolist())
    [[0, 4], [1, 5], [2, 6], [3, 7]]
    """
    if activations.ndim != 2:
        raise ValueError(f"activations must have shape [rows, h], got {tuple(activations.shape)}")
    if output_weights.ndim not in (1, 2) or output_weights.shape[-1] != activations.shape[1]:
        raise ValueError(
            f"output_weights must have shape [out, {activations.shape[1]}] or [{activations.shape[1]}],"
            f" got {tuple(output_weights.shape)}"
        )
    given = activations.detach().double()
    values = (given - given.mean(0) if mean else given).cpu().numpy()
    weights = output_weights.detach().double().cpu().numpy()
    whole = weights.ndim == 2
    lengths = np.linalg.norm(weights, axis=0) if whole else weights
    problem = NeuronPartition(
        (values * lengths) ** 2,
        num_experts,
        active,
        shared,
        activations=values if whole else None,
        output_weights=weights if whole else None,
    )
    if solver is None:
        solver = PartitionSearch(restarts=False)
        stop = MaxRuntime(math.inf) if stop is None else stop
    labels = solve(problem, solver, stop, seed).solution
    order = np.argsort(labels, kind="stable")
    common, own = order[:shared], order[shared:].reshape(problem.num_experts, problem.size)
    return torch.from_numpy(np.concatenate([np.broadcast_to(common, (len(own), shared)), own], axis=1))
