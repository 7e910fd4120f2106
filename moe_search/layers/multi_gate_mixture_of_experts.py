"""The layer of several tasks: one gate for each, over the same experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from moe_search.gates.batch_checks import like_rows, require_mask, require_rows, rows_of
from moe_search.gates.gate import Gate, SlotWeights, route
from moe_search.gates.leaf import Leaf
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts


class MultiGateMixtureOfExperts(Leaf):
    """Mixes the same experts once for each task: ``sum_e w[b, t, e] f_e(x_b)``, the weights of task t by its own gate.

    An expert runs once, on the samples that any of the gates gives it weight for, or on all: as `dispatch` says.

    Parameters
    ----------
    experts : StackedExperts or iterable of Module
        n experts, as in `MixtureOfExperts`.
    gates : iterable of Gate
        One for each task, each with ``num_experts`` equal to n. Gates of different kinds may stand side by side.
    shared_map : bool
        Whether all tasks use one expert map, that of the first gate. The gates' maps must then be their own and have
        the same sizes: a `SinkhornPermutation` learns one for its gate alone, and a gate of another layer with a shared
        map has none any more. `PermutationSearch` takes this layer if it is shared, and searches it for all tasks
        together.
    dispatch : {"auto", "dense", "sorted", "grouped"}
        How samples reach their experts, as in `MixtureOfExperts`, those of all gates at once.

    Attributes
    ----------
    experts : StackedExperts or ModuleList
    tasks : ModuleList of TaskMixture
        The layer as one task sees it, which `RoutingStatistics` can watch; the experts are in the state dict once, with
        this layer.

    Notes
    -----
    Ma, Zhao, Yi, Chen, Hong and Chi (2018), Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts, equations 5 to 7, with gates of any kind in the place of their softmax.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.top_k import TopK
    >>> from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
    >>> from moe_search.layers.stacked_experts import StackedExperts
    >>> experts = StackedExperts(4, in_features=8, out_features=3)
    >>> multi = MultiGateMixtureOfExperts(experts, [TopK(8, 4, k=2), TopK(8, 4, k=1)])
    >>> multi(torch.randn(5, 8)).shape
    torch.Size([5, 2, 3])
    """

    experts: StackedExperts | nn.ModuleList

    def __init__(
        self,
        experts: StackedExperts | Iterable[nn.Module],
        gates: Iterable[Gate],
        shared_map: bool = False,
        dispatch: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(gates, Gate) or not isinstance(gates, Iterable):
            raise TypeError(f"gates must be an iterable of gates, one for each task, got {type(gates).__name__}")
        of_tasks = list(gates)
        if not of_tasks:
            raise ValueError("gates must hold one gate for each task, got none")
        if len({id(gate) for gate in of_tasks}) < len(of_tasks):
            raise ValueError("gates must be different modules, one for each task, got one of them twice")
        self.experts = MixtureOfExperts(experts, of_tasks[0], dispatch).experts
        self.tasks = nn.ModuleList(TaskMixture(self.experts, gate, dispatch) for gate in of_tasks)
        self.shared_map = bool(shared_map)
        if self.shared_map:
            _require_sharable(of_tasks)
            for gate in of_tasks[1:]:
                share_submodule(gate, "expert_map", of_tasks[0].expert_map)

    @property
    def dispatch(self) -> str:
        """How samples reach their experts, in all tasks together and in each alone."""
        return cast(TaskMixture, self.tasks[0]).dispatch

    @dispatch.setter
    def dispatch(self, dispatch: str) -> None:
        for task in self.tasks:
            cast(TaskMixture, task).dispatch = dispatch

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the mixture of every row for every task.

        Parameters
        ----------
        inputs, ids, mask : Tensor
            As in `MixtureOfExperts.forward`.

        Returns
        -------
        Tensor
            Shape [..., tasks, ...], the leading axes of the inputs before and those of an expert's output behind.

        Raises
        ------
        TypeError, ValueError
            As in `MixtureOfExperts.forward`.
        """
        require_rows(inputs)
        if mask is not None:
            require_mask(mask, inputs)
        tasks = cast(list[TaskMixture], list(self.tasks))
        tasks[0].check_dispatch()
        routings = [route(task.gate, inputs, ids, mask) for task in tasks]
        weights = [task.gate.expert_map(routing.weights) for task, routing in zip(tasks, routings, strict=True)]
        mixtures = tasks[0].mix(rows_of(inputs, mask), weights, [task.gate for task in tasks])
        of_tasks = [
            task(inputs, ids, routing=routing, mixture=mixture)
            for task, routing, mixture in zip(tasks, routings, mixtures, strict=True)
        ]
        return like_rows(torch.stack(of_tasks, 1), inputs, mask)

    def task(self, t: int) -> TaskMixture:
        """Return the layer as task ``t`` sees it, for a search of the map of its gate.

        It is a submodule that runs once in every forward, so that
        ``PermutationSearch(model, multi.task(t), loss=loss)`` searches the map of task t, all others as they are.

        Raises
        ------
        IndexError
            If there is no such task.
        ValueError
            If the map is shared with other tasks: what a map does to one of them does not say what it does to all. A
            search then takes the layer itself, ``PermutationSearch(model, multi, loss=loss)``. For anything but a
            search there is ``multi.tasks[t]``.
        """
        if not 0 <= t < len(self.tasks):
            raise IndexError(f"t must be a task, 0 .. {len(self.tasks) - 1}, got {t}")
        if self.shared_map and len(self.tasks) > 1:
            raise ValueError(
                f"the map of task {t} is shared by all {len(self.tasks)} tasks: it cannot be searched for one of them, "
                f"only for all, with the layer itself in the place of a task; for all but a search there is tasks[{t}]"
            )
        return cast(TaskMixture, self.tasks[t])

    def expert_outputs(self, inputs: Tensor) -> Tensor:
        """Run every expert on every sample; see `MixtureOfExperts.expert_outputs`."""
        return cast(TaskMixture, self.tasks[0]).expert_outputs(inputs)

    def regularization(self) -> Tensor:
        """Return the sum of the gates' penalties for the last forward in training mode, a scalar; else 0."""
        return torch.stack([cast(TaskMixture, task).regularization() for task in self.tasks]).sum()


class TaskMixture(MixtureOfExperts):
    """A task's view of a `MultiGateMixtureOfExperts`: its gate, over experts that are not its own.

    Called alone, it is a `MixtureOfExperts`. It does not hold the experts as a submodule.
    """

    def __init__(self, experts: StackedExperts | nn.ModuleList, gate: Gate, dispatch: str) -> None:
        super().__init__(experts, gate, dispatch)
        share_submodule(self, "experts", experts)

    def forward(
        self,
        inputs: Tensor,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        routing: SlotWeights | None = None,
        mixture: Tensor | None = None,
    ) -> Tensor:
        """Return the mixture of every row; see `MixtureOfExperts.forward`.

        `routing` and `mixture`, of rows, are what the layer of all tasks has computed already, and this view is to
        return.
        """
        if mixture is None:
            return super().forward(inputs, ids, mask)
        self._remember(routing)
        return mixture


def _require_sharable(gates: Sequence[Gate]) -> None:
    """Raise ValueError unless the maps of all gates are their own and of the same sizes."""
    first = gates[0].expert_map
    for t, gate in enumerate(gates):
        if "expert_map" not in dict(gate.named_children()):
            raise ValueError(
                f"gates must have maps of their own to share one, got in gate {t} a {type(gate).__name__} with the map "
                "of another module: a gate of another layer with a shared map, or a gate around one that learns its map"
            )
        if gate.expert_map.extra_repr() != first.extra_repr():
            raise ValueError(
                f"gates must have maps of the same sizes to share one, got ({first.extra_repr()}) in gate 0 "
                f"and ({gate.expert_map.extra_repr()}) in gate {t}"
            )


def share_submodule(module: nn.Module, name: str, submodule: Any) -> None:
    """Let ``module`` use a submodule of another module: not in its state dict, and its parameters not counted twice."""
    delattr(module, name)
    module.__dict__[name] = submodule
