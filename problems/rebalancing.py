"""A placement anew when traffic has drifted, at few migrations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer, require_number
from moe_search.problems.arrays import read_only
from moe_search.problems.placement import ExpertPlacement, Experts, Placement, Transfer, checked_map
from moe_search.problems.problem import Problem

# A largest load of this part above its limit costs as much as to migrate all slots of a layer.
LIMIT_UNIT = 1e-3
# Bounds are found up to this part.
ROUNDING = 2e-9


@dataclass(frozen=True, eq=False, repr=False)
class Rebalancing(Problem):
    """Change a placement at few migrations, so that the most loaded device bears little.

    A migration is an expert on a device that did not hold it before: its weights must be sent there. What counts is one
    of three values, summed over the layers:

    - with `budget`, the largest load, at no more migrations than that in all layers together;
    - with `tolerance`, the migrations, as long as the largest load is within the tolerance of its bound. A layer whose
      load is above costs as many migrations as it has slots for every thousandth that it is above;
    - with `transfer_cost`, the largest load, and this for every migration.

    Parameters
    ----------
    placement : ExpertPlacement
        The loads to be expected, and the cluster.
    previous : Placement or array_like of int, shape (layers, slots)
        The expert in every slot so far. A slot may be empty, -1, and a device may hold an expert twice: mending that
        takes migrations.
    budget : int, optional
        The most migrations.
    tolerance : float, optional
        How far the largest load may be above `ExpertPlacement.load_bounds`, 0.02 for two in a hundred.
    transfer_cost : float, optional
        What a migration costs, in units of load.

    Attributes
    ----------
    start : ndarray of int64, shape (layers, slots)
        The previous placement, mended.

    Raises
    ------
    TypeError, ValueError
        If `previous` is of another model or cluster, or none of the three is given, or two that exclude each other.

    Examples
    --------
    >>> import moe_search as ms
    >>> drifted = ms.ExpertPlacement([9, 1, 7, 3], ms.Cluster(num_devices=2, slots_per_device=2))
    >>> plan = ms.solve(ms.Rebalancing(drifted, previous=[0, 2, 1, 3], budget=2))
    >>> plan.value, plan.status, plan.solution.migrations
    (10.0, 'optimal', 2)
    """

    placement: ExpertPlacement
    previous: Experts
    budget: int | None = None
    tolerance: float | None = None
    transfer_cost: float | None = None

    def __post_init__(self) -> None:
        if type(self.placement) is not ExpertPlacement:
            raise TypeError(f"placement must be an ExpertPlacement, got {type(self.placement).__name__}")
        if self.budget is not None:
            require_integer("budget", self.budget)
        if self.tolerance is not None:
            require_number("tolerance", self.tolerance)
        if self.transfer_cost is not None:
            require_number("transfer_cost", self.transfer_cost, strict=True)
        if (self.budget, self.tolerance, self.transfer_cost) == (None, None, None):
            raise ValueError("one of budget, tolerance and transfer_cost must be given, got none")
        if self.tolerance is not None and (self.budget, self.transfer_cost) != (None, None):
            raise ValueError("tolerance must be given without budget and transfer_cost, got two of them")
        previous = self.previous.physical_to_logical if isinstance(self.previous, Placement) else self.previous
        layers, num_experts = self.placement.load.shape
        previous = checked_map("previous", previous, layers, self.placement.cluster.num_slots)
        if previous.min() < -1 or previous.max() >= num_experts:
            raise ValueError(
                f"previous must hold experts 0 .. {num_experts - 1} of this model, or -1 for none,"
                f" got {previous.min()} .. {previous.max()}"
            )
        object.__setattr__(self, "previous", read_only(previous))
        needed = int(self.migrations(self.start).sum())
        if self.budget is not None and self.budget < needed:
            raise ValueError(
                f"budget must be at least {needed}, the migrations found to mend the previous placement,"
                f" got {self.budget}"
            )

    def __repr__(self) -> str:
        chosen = {"budget": self.budget, "tolerance": self.tolerance, "transfer_cost": self.transfer_cost}
        given = ", ".join(f"{name}={value:g}" for name, value in chosen.items() if value is not None)
        return f"{type(self).__name__}({self.placement!r}, {given})"

    @property
    def integral(self) -> bool:
        """Values are floats."""
        return False

    @property
    def limits(self) -> npt.NDArray[np.float64]:
        """Up to which largest load a layer costs its migrations alone."""
        bounds = self.placement.load_bounds
        return np.zeros_like(bounds) if self.tolerance is None else (1 + self.tolerance + ROUNDING) * bounds

    @property
    def slopes(self) -> npt.NDArray[np.float64]:
        """What a unit of load above the limit costs in every layer."""
        if self.tolerance is None:
            return np.ones_like(self.placement.load_bounds)
        return self.placement.cluster.num_slots / (LIMIT_UNIT * self.limits)

    @property
    def price(self) -> float:
        """What a migration costs."""
        return 1.0 if self.tolerance is not None else self.transfer_cost or 0.0

    @cached_property
    def held_before(self) -> npt.NDArray[np.bool_]:
        """Which device held which expert, shape (layers, devices, experts)."""
        return self.placement.held(self.previous)

    @cached_property
    def start(self) -> Experts:
        """The previous placement, mended if it is none."""
        try:
            return self.placement.check_map(self.previous)
        except ValueError:
            return np.stack([self._mended(layer) for layer in range(len(self.previous))])

    def migrations(self, experts: Experts) -> npt.NDArray[np.int64]:
        """Return the number of migrations of every layer, given the expert in every slot."""
        return self._arrived(experts).sum(axis=1)

    def _arrived(self, experts: Experts) -> npt.NDArray[np.bool_]:
        """Return in which slots are experts that their device did not hold before, shape (layers, slots)."""
        layers = np.arange(len(experts))[:, None]
        return ~self.held_before[layers, self.placement.cluster.device_of_slot, experts]

    def value(self, solution: Any) -> float:
        """Return what loads and migrations cost, summed over the layers."""
        experts = self._within_budget(self.placement.check_map(solution), "solution")
        return float(self.costs(experts).sum())

    def costs(self, experts: Experts) -> npt.NDArray[np.float64]:
        """Return what every layer costs, given the expert in every slot."""
        excess = np.maximum(self.placement.largest_loads(experts) - self.limits, 0.0)
        return self.slopes * excess + self.price * self.migrations(experts)

    def check_solution(self, solution: Any, name: str = "solution") -> Placement:
        """Return a `Placement` with its migrations; errors as those of `ExpertPlacement`, and beyond the budget."""
        return self.placed(self._within_budget(self.placement.check_map(solution, name), name))

    def _within_budget(self, experts: Experts, name: str) -> Experts:
        migrations = int(self.migrations(experts).sum())
        if self.budget is not None and migrations > self.budget:
            raise ValueError(f"{name} must have at most {self.budget} migrations, got {migrations}")
        return experts

    def placed(self, experts: Experts) -> Placement:
        """Return the placement of an expert in every slot; experts that stay on a device stay in their slots."""
        experts = self._in_their_slots(experts)
        cluster = self.placement.cluster
        layers, slots = np.nonzero(self._arrived(experts))
        targets, moved = cluster.device_of_slot[slots], experts[layers, slots]
        order = np.lexsort((moved, targets, layers))
        layers, targets, moved = layers[order], targets[order], moved[order]
        sources = self.held_before[layers, :, moved]
        nodes = np.arange(cluster.num_devices) // cluster.devices_per_node
        # Links inside a node are the faster ones.
        near = sources & (nodes == nodes[targets][:, None])
        first = np.where(near.any(axis=1), near.argmax(axis=1), sources.argmax(axis=1))
        first[~sources.any(axis=1)] = -1
        columns = (layers.tolist(), moved.tolist(), first.tolist(), targets.tolist())
        transfers = [Transfer(*each) for each in zip(*columns, strict=True)]
        placed = self.placement.placed(experts)
        return replace(placed, migrations=len(transfers), transfers=tuple(transfers))

    def _in_their_slots(self, experts: Experts) -> Experts:
        experts = experts.copy()
        first = self.placement.cluster.first_slots
        layers, slots = np.nonzero((experts != self.previous) & ~self._arrived(experts))
        shifted = np.stack([layers, self.placement.cluster.device_of_slot[slots]], axis=1)
        for layer, device in np.unique(shifted, axis=0).tolist():
            begin, end = first[device], first[device + 1]
            come = dict.fromkeys(experts[layer, begin:end].tolist())
            # What stays is taken out; a second copy that the device held goes.
            slots_now = [e if come.pop(e, e) is None else -1 for e in self.previous[layer, begin:end].tolist()]
            rest = iter(come)
            experts[layer, begin:end] = [e if e >= 0 else next(rest) for e in slots_now]
        return experts

    def _mended(self, layer: int) -> Experts:
        """Return a placement that keeps what can be kept of the previous one of a layer."""
        problem, cluster = self.placement, self.placement.cluster
        loads, before = problem.load[layer], self.held_before[layer]
        num_groups, regions = problem.num_groups or 1, problem.regions
        size = len(loads) // num_groups
        # Groups go where most of their experts are, as long as there is room.
        kept = np.add.reduceat(before.reshape(cluster.num_devices, num_groups, size).sum(axis=2), regions[:-1])
        home = np.full(num_groups, -1)
        for place in np.argsort(-kept, axis=None, kind="stable"):
            region, group = divmod(int(place), num_groups)
            if home[group] < 0 and (home == region).sum() < num_groups // problem.num_regions:
                home[group] = region
        homes = np.repeat(home, size)
        first, node = cluster.first_slots, np.repeat(np.arange(len(regions) - 1), np.diff(regions))
        on: list[list[int]] = [
            [int(e) for e in np.flatnonzero(before[g]) if problem.anywhere or homes[e] == node[g]]
            for g in range(cluster.num_devices)
        ]
        copies, at_home = np.zeros(len(loads), dtype=np.int64), np.zeros(len(loads), dtype=np.int64)
        for g, held in enumerate(on):
            copies[held] += 1
            at_home[[e for e in held if homes[e] == node[g]]] += 1
        missing = [int(e) for e in np.argsort(-loads, kind="stable") if at_home[e] == 0]
        for e in missing:
            inside = np.flatnonzero(node == homes[e])
            with_room = [g for g in inside if len(on[g]) < first[g + 1] - first[g]]
            if with_room:
                device = min(with_room, key=lambda g: sum(loads[x] / max(copies[x], 1) for x in on[g]))
            else:
                # Then some expert has a copy to spare, or is to be elsewhere.
                spare = [
                    (loads[x] / copies[x], g, x)
                    for g in inside
                    for x in on[g]
                    if at_home[x] > 1 or homes[x] != homes[e]
                ]
                _, device, gone = min(spare)
                on[device].remove(gone)
                copies[gone] -= 1
                at_home[gone] -= homes[gone] == homes[e]
            on[device].append(e)
            copies[e] += 1
            at_home[e] += 1
        for g, held in enumerate(on):
            while len(held) < first[g + 1] - first[g]:
                others = [e for e in np.flatnonzero(problem.anywhere | (homes == node[g])) if e not in held]
                chosen = max(others, key=lambda e: loads[e] / copies[e])
                held.append(int(chosen))
                copies[chosen] += 1
        return np.concatenate(on)

    def random_solution(self, rng: np.random.Generator) -> Placement:
        """Return the previous placement, mended: the one that is within any budget."""
        return self.placed(self.start)

    def ordinary_value(self) -> float:
        """Return the magnitude of a value: loads, or the slots of all layers."""
        return self.placement.ordinary_value() if self.tolerance is None else float(self.previous.size)

    def value_range(self) -> tuple[float, float]:
        """Return the sums over the layers of what they cost at least, and at most."""
        return float(self.least_costs.sum()), float(
            (self.slopes * self.placement.load.sum(axis=1)).sum() + self.price * self.previous.size
        )

    @cached_property
    def least_costs(self) -> npt.NDArray[np.float64]:
        """What every layer costs at least: that of no migration, or of one and the bound of the loads."""
        one = self.slopes * np.maximum(self.placement.load_bounds - self.limits, 0.0) + self.price
        stays = self.costs(self.start)
        mended = self.migrations(self.start) > 0
        return read_only(np.where(mended, one, np.minimum(one, stays)))
