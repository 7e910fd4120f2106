"""A policy for vLLM's load balancer of experts: few migrations, and the same map on every rank."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_number
from moe_search.problems.placement import ExpertPlacement
from moe_search.problems.problem import Problem
from moe_search.problems.rebalancing import Rebalancing
from moe_search.serving.eplb import TOLERANCE, TURNS, as_array, cluster_of, loads_of, without_idle_layers
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.placement_search import PlacementSearch

if TYPE_CHECKING:
    import torch

PLUGIN = "moe_search"
TOLERANCE_VARIABLE = "MOE_SEARCH_TOLERANCE"
# How far a layer may be above its bound before experts migrate. Out of sample, the last hundredths are noise.
MIGRATION_TOLERANCE = 0.02


def expert_map(
    weight: torch.Tensor | npt.ArrayLike,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_ranks: int,
    old_global_expert_indices: torch.Tensor | npt.ArrayLike | None = None,
    tolerance: float = MIGRATION_TOLERANCE,
) -> torch.Tensor:
    """Return the expert in every slot, with few migrations from the map before.

    This is what the policy for vLLM answers, with the arguments of vLLM's policies.

    Parameters
    ----------
    weight : tensor or array_like, shape (layers, experts)
        The load of every expert. A layer without any keeps its map.
    num_replicas, num_groups, num_nodes, num_ranks : int
        As in `rebalance_experts`.
    old_global_expert_indices : tensor or array_like, shape (layers, slots), optional
        The map before; a slot with -1 is empty. One of another width says nothing, as after a change of the cluster.
    tolerance : float, default 0.02
        As few experts migrate as keep every layer so near its bound.

    Returns
    -------
    tensor of int64, shape (layers, num_replicas)
        The expert in every slot, on the CPU.

    Examples
    --------
    >>> import moe_search as ms
    >>> cluster = {"num_replicas": 4, "num_groups": 0, "num_nodes": 1, "num_ranks": 2}
    >>> drifted = ms.serving.expert_map([[9, 1, 7, 3]], **cluster, old_global_expert_indices=[[0, 2, 1, 3]])
    >>> sorted(sorted(device) for device in drifted.reshape(2, 2).tolist())
    [[0, 1], [2, 3]]
    """
    import torch

    require_number("tolerance", tolerance)

    cluster, groups = cluster_of(num_replicas, num_groups, num_nodes, num_ranks, "num_ranks")
    load = loads_of(weight)
    old = None if old_global_expert_indices is None else as_array(old_global_expert_indices)
    problem: Problem
    if old is None or old.shape != (len(load), num_replicas):
        problem = ExpertPlacement(without_idle_layers(load), cluster, groups)
    else:
        placement = ExpertPlacement(without_idle_layers(load, old.astype(np.int64)), cluster, groups)
        problem = Rebalancing(placement, old, tolerance=tolerance)
    stop = MaxIterations(TURNS * len(load))
    placed = PlacementSearch(tolerance=TOLERANCE).solve(problem, stop).solution
    return torch.from_numpy(placed.physical_to_logical.copy())


def register() -> None:
    """Put the policy in the place of vLLM's default one, where ``VLLM_PLUGINS`` names it.

    vLLM calls this in every process, as it does for all plug-ins that are installed; who installs this package for
    another purpose keeps vLLM as it is. ``MOE_SEARCH_TOLERANCE`` is the tolerance, which must be the same on all ranks.
    """
    if PLUGIN not in os.environ.get("VLLM_PLUGINS", "").split(","):
        return
    from vllm.distributed.eplb import policy  # type: ignore[import-not-found]

    text = os.environ.get(TOLERANCE_VARIABLE, str(MIGRATION_TOLERANCE))
    try:
        tolerance = float(text)
    except ValueError:
        raise ValueError(f"{TOLERANCE_VARIABLE} must be a number such as 0.02, got {text!r}") from None
    policy.EPLB_POLICIES["default"] = policy_of(
        policy.AbstractEplbPolicy, require_number(TOLERANCE_VARIABLE, tolerance)
    )


def policy_of(base: Any, tolerance: float = MIGRATION_TOLERANCE) -> type:
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
            return expert_map(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices, tolerance
            )

    return PlacementPolicy
