"""The function of DeepSeek's expert parallelism load balancer, by search."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.placement import LEAST_LOAD, Cluster, ExpertPlacement, checked_loads
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.placement_search import PlacementSearch

if TYPE_CHECKING:
    import torch

# Every rank computes the map by itself, and all must find the same: iterations end the search and no clock.
TURNS = 30
# A layer so near its bound is not searched on: traffic is never known as well.
TOLERANCE = 1e-3


def rebalance_experts(
    weight: torch.Tensor | npt.ArrayLike, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Place the experts of all layers anew, with the arguments and the answer of EPLB's function.

    No device holds an expert twice. What is found depends on the arguments alone, so that all ranks find the same.

    Parameters
    ----------
    weight : tensor or array_like, shape (layers, experts) or (windows, layers, experts)
        The load of every expert. In a layer without any, all experts count alike.
    num_replicas : int
        Slots of all devices, a multiple of `num_gpus`.
    num_groups : int
        Groups of experts. They stay on nodes if they can be dealt out evenly to these, as with EPLB; 0 is none.
    num_nodes : int
        Nodes of the devices.
    num_gpus : int
        Devices.

    Returns
    -------
    physical_to_logical : tensor of int64, shape (layers, num_replicas)
        The expert in every slot; slot i is on device ``i // (num_replicas // num_gpus)``.
    logical_to_physical : tensor of int64, shape (layers, experts, most replicas)
        The slots of every expert, then -1.
    counts : tensor of int64, shape (layers, experts)
        The number of replicas of every expert.

    Raises
    ------
    ValueError
        If there are too few slots, or they cannot be dealt out evenly to the devices.

    Examples
    --------
    >>> import moe_search as ms
    >>> loads = [[8, 4, 2, 2], [1, 1, 1, 9]]
    >>> arguments = {"num_replicas": 6, "num_groups": 1, "num_nodes": 1, "num_gpus": 2}
    >>> experts, slots, counts = ms.serving.rebalance_experts(loads, **arguments)
    >>> counts[0].tolist()
    [2, 2, 1, 1]
    """
    import torch

    cluster, groups = cluster_of(num_replicas, num_groups, num_nodes, num_gpus, "num_gpus")
    problem = ExpertPlacement(without_idle_layers(loads_of(weight)), cluster, groups)
    stop = MaxIterations(TURNS * len(problem.load))
    placement = PlacementSearch(tolerance=TOLERANCE).solve(problem, stop).solution
    maps = placement.physical_to_logical, placement.logical_to_physical, placement.replica_count
    first, second, third = (torch.from_numpy(each.copy()) for each in maps)
    return first, second, third


def cluster_of(
    num_slots: int, num_groups: int, num_nodes: int, num_devices: int, name: str
) -> tuple[Cluster, int | None]:
    """Return the cluster, and the number of groups that stay on nodes, if any do; errors call the devices `name`."""
    num_slots, num_devices = require_integer("num_replicas", num_slots), require_integer(name, num_devices)
    num_groups, num_nodes = require_integer("num_groups", num_groups, 0), require_integer("num_nodes", num_nodes)
    if num_slots % num_devices:
        raise ValueError(f"num_replicas must be a multiple of {name}, {num_devices}, got {num_slots}")
    if num_devices % num_nodes:
        raise ValueError(f"{name} must be a multiple of num_nodes, {num_nodes}, got {num_devices}")
    grouped = num_nodes > 1 and num_groups > 0 and num_groups % num_nodes == 0
    return Cluster(num_devices, num_slots // num_devices, num_nodes), num_groups if grouped else None


def loads_of(weight: Any) -> npt.NDArray[np.float64]:
    """Return loads of shape (layers, experts), windows added up, of a tensor on any device or of an array."""
    return checked_loads(as_array(weight), "weight")


def as_array(given: Any) -> npt.NDArray[Any]:
    """Return a tensor on any device and of any type, or what is like an array, as an array."""
    if not hasattr(given, "detach"):
        return np.asarray(given)
    tensor = given.detach().cpu()
    # Numpy has no bfloat16.
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def without_idle_layers(
    load: npt.NDArray[np.float64], previous: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """Return loads where all experts of a layer without any count alike, or so that its previous map is even."""
    load = load.copy()
    for layer in np.flatnonzero(load.max(axis=1) < LEAST_LOAD):
        held = previous[layer] if previous is not None else np.empty(0, dtype=np.int64)
        held = held[(held >= 0) & (held < load.shape[1])]
        load[layer] = np.maximum(np.bincount(held, minlength=load.shape[1]), 1)
    return load
