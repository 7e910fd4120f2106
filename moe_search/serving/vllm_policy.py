"""A policy for vLLM's load balancer of experts: few migrations, and the same map on every rank."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.placement import ExpertPlacement, Experts
from moe_search.problems.problem import Problem
from moe_search.problems.rebalancing import Rebalancing
from moe_search.serving.eplb import TOLERANCE, TURNS, as_array, cluster_of, loads_of, without_idle_layers
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.placement_search import PlacementSearch

if TYPE_CHECKING:
    import torch

PLUGIN = "moe_search"
# How far a layer may be above its bound before experts migrate. Out of sample, the last hundredths are noise.
MIGRATION_TOLERANCE = 0.02


def expert_map(
    weight: torch.Tensor | npt.ArrayLike,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
    old_global_expert_indices: torch.Tensor | npt.ArrayLike | None = None,
) -> torch.Tensor:
    """Return the expert in every slot, with few migrations from the map before.

    Parameters
    ----------
    weight : tensor or array_like, shape (layers, experts)
        The load of every expert. A layer without any keeps its map.
    num_replicas, num_groups, num_nodes, num_ranks : int
        As in `rebalance_experts`.
    old_global_expert_indices : tensor or array_like, shape (layers, slots), optional
        The map before; a slot with -1 is empty. One of another width says nothing, as after a change of the cluster.

    Returns
    -------
    tensor of int64, shape (layers, num_replicas)
        The expert in every slot, on the CPU.
    """
    import torch

    cluster, groups = cluster_of(num_replicas, num_groups, num_nodes, num_ranks)
    load = loads_of(weight)
    old = None if old_global_expert_indices is None else as_array(old_global_expert_indices)
    problem: Problem
    if old is None or old.shape != (len(load), num_replicas):
        problem = ExpertPlacement(without_idle_layers(load), cluster, groups)
    else:
        placement = ExpertPlacement(_as_it_is(load, old.astype(np.int64)), cluster, groups)
        problem = Rebalancing(placement, old, tolerance=MIGRATION_TOLERANCE)
    stop = MaxIterations(TURNS * len(load))
    placed = PlacementSearch(tolerance=TOLERANCE).solve(problem, stop).solution
    return torch.from_numpy(placed.physical_to_logical.copy())


def _as_it_is(load: npt.NDArray[np.float64], old: Experts) -> npt.NDArray[np.float64]:
    """Return loads under which the map of a layer without any is as balanced as can be."""
    load = load.copy()
    for layer in np.flatnonzero(load.max(axis=1) == 0):
        held = old[layer][(old[layer] >= 0) & (old[layer] < load.shape[1])]
        load[layer] = np.maximum(np.bincount(held, minlength=load.shape[1]), 1)
    return load


def register() -> None:
    """Put the policy in the place of vLLM's default one, where ``VLLM_PLUGINS`` names it.

    vLLM calls this in every process, as it does for all plug-ins that are installed; who installs this package for
    another purpose keeps vLLM as it is.
    """
    if PLUGIN not in os.environ.get("VLLM_PLUGINS", "").split(","):
        return
    from vllm.distributed.eplb import policy  # type: ignore[import-not-found]

    policy.EPLB_POLICIES["default"] = policy_of(policy.AbstractEplbPolicy)


def policy_of(base: Any) -> type:
    """Return the policy, a class of vLLM's kind."""

    class PlacementPolicy(base):  # type: ignore[misc]
        """Rebalance by search from the map before, within a tolerance of the bound."""

        @classmethod
        def rebalance_experts(
            cls,
            weight: torch.Tensor,
            num_replicas: int,
            num_groups: int,
            num_nodes: int,
            num_ranks: int,
            old_global_expert_indices: Any = None,
        ) -> torch.Tensor:
            """Return the expert in every slot; see `expert_map`."""
            return expert_map(weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices)

    return PlacementPolicy
