"""Which device holds which expert, and how many copies: the problem of serving, and its solutions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_flag, require_integer, store_plain
from moe_search.problems.arrays import numeric_array, read_only
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.placement_bounds import device_bounds, share_out_groups
from moe_search.problems.problem import Problem

Experts = npt.NDArray[np.int64]

# Between these, loads can be added, divided and raised a little without overflow or loss of digits.
LEAST_LOAD, MOST_LOAD = 1e-290, 1e300


@dataclass(frozen=True)
class Cluster:
    """Devices, each with slots that hold one expert each, in nodes of equally many devices.

    The slots are numbered device by device, and the devices node by node.

    Parameters
    ----------
    num_devices : int
        How many devices share the experts of a layer.
    slots_per_device : int or sequence of int
        How many experts a device holds, replicas counted; one number for all, or one for each device.
    num_nodes : int, default 1
        How many nodes the devices stand in.

    Attributes
    ----------
    first_slots : ndarray of int64, shape (num_devices + 1,)
        The first slot of every device, and the number of slots.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.Cluster(num_devices=4, slots_per_device=9, num_nodes=2).num_slots
    36
    """

    num_devices: int
    slots_per_device: int | tuple[int, ...]
    num_nodes: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.slots_per_device, np.ndarray) and self.slots_per_device.ndim:
            object.__setattr__(self, "slots_per_device", tuple(self.slots_per_device.tolist()))
        store_plain(self)
        require_integer("num_devices", self.num_devices)
        require_integer("num_nodes", self.num_nodes)
        if self.num_devices % self.num_nodes:
            raise ValueError(f"num_devices must be a multiple of num_nodes, {self.num_nodes}, got {self.num_devices}")
        if not isinstance(self.slots_per_device, tuple):
            require_integer("slots_per_device", self.slots_per_device)
            return
        if len(self.slots_per_device) != self.num_devices:
            raise ValueError(
                f"slots_per_device must hold a number for each of {self.num_devices} devices,"
                f" got {len(self.slots_per_device)}"
            )
        for slots in self.slots_per_device:
            require_integer("slots_per_device", slots)

    def __reduce__(self) -> Any:
        # Built anew, as problems are: pickled arrays are no longer read-only, and kernels would be compiled again.
        return Cluster, (self.num_devices, self.slots_per_device, self.num_nodes)

    @cached_property
    def first_slots(self) -> npt.NDArray[np.int64]:
        """The first slot of every device, and the number of slots."""
        slots = np.broadcast_to(np.array(self.slots_per_device), self.num_devices)
        return read_only(np.concatenate([[0], np.cumsum(slots)]).astype(np.int64))

    @cached_property
    def slots(self) -> npt.NDArray[np.int64]:
        """The number of slots of every device."""
        return read_only(self.first_slots[1:] - self.first_slots[:-1])

    @property
    def num_slots(self) -> int:
        """The number of slots of all devices."""
        return int(self.first_slots[-1])

    @property
    def devices_per_node(self) -> int:
        """The number of devices of a node."""
        return self.num_devices // self.num_nodes

    @property
    def device_of_slot(self) -> npt.NDArray[np.int64]:
        """The device of every slot."""
        return np.repeat(np.arange(self.num_devices), self.slots)


class Transfer(NamedTuple):
    """One migration: in a layer, an expert is sent from a device that held it to one that did not; -1 if none did.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.Transfer(layer=0, expert=5, source=1, target=3)
    Transfer(layer=0, expert=5, source=1, target=3)
    """

    layer: int
    expert: int
    source: int
    target: int


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the experts of all layers are.

    Parameters
    ----------
    physical_to_logical : ndarray of int64, shape (layers, slots)
        The expert in every slot.
    replica_count : ndarray of int64, shape (layers, experts)
        How many slots hold an expert.
    balancedness : ndarray of float64, shape (layers,)
        The mean load of a device over the largest, at the loads that were planned for.
    migrations : int
        How many experts go to devices that did not hold them before; 0 where nothing was before.
    transfers : tuple of Transfer
        These migrations, one by one.

    Attributes
    ----------
    logical_to_physical : ndarray of int64, shape (layers, experts, most replicas)
        The slots of every expert, in order, then -1.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.ExpertPlacement([8, 6, 1, 2], ms.Cluster(num_devices=2, slots_per_device=3))
    >>> placement = problem.check_solution([0, 1, 2, 0, 1, 3])
    >>> placement.logical_to_physical.tolist(), placement.balancedness.round(3).tolist()
    ([[[0, 3], [1, 4], [2, -1], [5, -1]]], [0.944])
    """

    physical_to_logical: Experts = field(repr=False)
    replica_count: Experts = field(repr=False)
    balancedness: npt.NDArray[np.float64]
    migrations: int = 0
    transfers: tuple[Transfer, ...] = field(default=(), repr=False)

    @cached_property
    def logical_to_physical(self) -> Experts:
        """The slots of every expert, in order, then -1."""
        count, experts = self.replica_count, self.physical_to_logical
        slots = np.full((*count.shape, count.max()), -1)
        order = np.argsort(experts, axis=1, kind="stable")
        rows = np.arange(len(experts))[:, None]
        ordered = experts[rows, order]
        begins = np.cumsum(count, axis=1) - count
        slots[rows, ordered, np.arange(experts.shape[1]) - begins[rows, ordered]] = order
        return read_only(slots)

    @classmethod
    def from_lists(cls, lists: dict[str, Any]) -> Placement:
        """Return a placement whose arrays were written as lists."""
        return cls(
            read_only(np.array(lists["physical_to_logical"], dtype=np.int64)),
            read_only(np.array(lists["replica_count"], dtype=np.int64)),
            read_only(np.array(lists["balancedness"])),
            lists["migrations"],
            tuple(Transfer(*each) for each in lists["transfers"]),
        )


@dataclass(frozen=True, eq=False, repr=False)
class ExpertPlacement(Problem):
    """Put experts, and replicas of the busy ones, on devices so that the most loaded device bears least.

    The value is the largest load of a device, summed over the layers, which run one after the other. The replicas of an
    expert share its load evenly. Every expert is on a device, none twice on one.

    Parameters
    ----------
    load : array_like, shape (experts,), (layers, experts) or (windows, layers, experts)
        What every expert has to do, such as its number of tokens. Windows of traffic are added up, as serving engines
        do.
    cluster : Cluster
        The devices.
    num_groups : int, optional
        The experts form groups of equal size, one after the other, as where routing is limited to few nodes. All
        copies of all experts of a group are on one node, its home, and every node is the home of equally many groups.
    first_copy_only : bool, default False
        Whether one copy of every expert on the home of its group is enough, and further ones may be on any node.

    Attributes
    ----------
    load : ndarray of float64, shape (layers, experts)
        The loads, windows added up.
    load_bounds : ndarray of float64, shape (layers,)
        What the most loaded device of a layer bears at least, however the experts are placed.

    Raises
    ------
    TypeError, ValueError
        If a load is negative, not finite, or no layer's own, or there are too few slots or too many.

    Notes
    -----
    The bound is the largest of three: the mean load of a device; the least load per replica of the busiest expert; and
    the least T for which there are enough slots, as on G devices of s slots, at most (k - 1) G replicas can exceed
    (T - the s - k lightest) / k. Where groups stay on nodes, the least of all ways to share out up to ten groups to
    nodes that are alike is a bound, too.

    Examples
    --------
    >>> import moe_search as ms
    >>> placement = ms.ExpertPlacement([8, 4, 2, 2], ms.Cluster(num_devices=2, slots_per_device=3))
    >>> result = ms.solve(placement)
    >>> result.value, result.status, result.solution.replica_count.tolist()
    (8.0, 'optimal', [[2, 2, 1, 1]])
    """

    load: npt.NDArray[np.float64]
    cluster: Cluster
    num_groups: int | None = None
    first_copy_only: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.cluster, Cluster):
            raise TypeError(f"cluster must be a Cluster, got {type(self.cluster).__name__}")
        load = checked_loads(self.load)
        object.__setattr__(self, "load", load)
        require_flag("first_copy_only", self.first_copy_only)
        if self.first_copy_only and self.num_groups is None:
            raise ValueError("first_copy_only must be given with num_groups, got it without")
        experts = load.shape[1]
        cluster, slots = self.cluster, self.cluster.num_slots
        if slots < experts:
            raise ValueError(f"the devices must have a slot for each of {experts} experts, got {slots} slots")
        nodes = self.num_regions
        if self.num_groups is not None:
            require_integer("num_groups", self.num_groups)
            if experts % self.num_groups or self.num_groups % nodes:
                raise ValueError(
                    f"num_groups must divide the number of experts, {experts}, and be a multiple of num_nodes, {nodes};"
                    f" got {self.num_groups}"
                )
            room = np.diff(cluster.first_slots[:: cluster.devices_per_node])
            if room.min() < experts // nodes:
                raise ValueError(
                    f"every node must have a slot for each of the {experts // nodes} experts of its groups,"
                    f" got one of {room.min()} slots"
                )
        most = int(cluster.slots.max())
        may_hold = experts if self.anywhere else experts // nodes
        if most > may_hold:
            raise ValueError(
                f"a device must have at most one slot for each of the {may_hold} experts that it may hold, as"
                f" none is held twice; got {most} slots"
            )
        largest = load.max(axis=1)
        faint = np.flatnonzero(largest < LEAST_LOAD)
        if len(faint):
            raise ValueError(
                f"load must be above 0, {LEAST_LOAD:g} or more, for some expert of every layer,"
                f" got {largest[faint[0]]:g} at most in layer {faint[0]}"
            )

    def __repr__(self) -> str:
        layers, experts = self.load.shape
        groups = "" if self.num_groups is None else f", num_groups={self.num_groups}"
        groups += ", first_copy_only=True" if self.first_copy_only else ""
        return f"{type(self).__name__}({layers} layers of {experts} experts, {self.cluster}{groups})"

    @property
    def integral(self) -> bool:
        """Values are floats: replicas share a load."""
        return False

    @property
    def num_regions(self) -> int:
        """How many parts of the cluster have experts of their own: its nodes if experts are grouped, else one."""
        return 1 if self.num_groups is None else self.cluster.num_nodes

    @property
    def anywhere(self) -> bool:
        """Whether further copies of an expert may be outside of its region."""
        return self.first_copy_only and self.num_regions > 1

    @property
    def regions(self) -> npt.NDArray[np.int64]:
        """The first device of every region, and the number of devices."""
        return np.arange(self.num_regions + 1) * (self.cluster.num_devices // self.num_regions)

    @cached_property
    def homes(self) -> npt.NDArray[np.int64]:
        """The region of every group where a search starts, shape (layers, groups); one group if there is one region."""
        return self._groups_on_nodes[0]

    @cached_property
    def load_bounds(self) -> npt.NDArray[np.float64]:
        """What the most loaded device of every layer bears at least."""
        slots = self.cluster.slots
        return read_only(np.maximum(device_bounds(self.load, slots), self._groups_on_nodes[1]))

    @cached_property
    def _groups_on_nodes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        layers, groups = len(self.load), self.num_groups or 1
        if self.num_regions == 1:
            return np.zeros((layers, 1), dtype=np.int64), np.zeros(layers)
        slots = self.cluster.slots
        # Without further copies, the first ones are all.
        further = int(slots.sum()) - self.load.shape[1] if self.anywhere else 0
        return share_out_groups(self.load, slots, self.num_regions, groups, further)

    def value(self, solution: Any) -> float:
        """Return the largest load of a device, summed over the layers."""
        checked = isinstance(solution, Placement)
        experts = solution.physical_to_logical if checked else self.check_map(solution)
        return float(self.largest_loads(experts).sum())

    def largest_loads(self, experts: Experts) -> npt.NDArray[np.float64]:
        """Return the load of the most loaded device of every layer, given the expert in every slot."""
        return self.device_loads(experts).max(axis=1)

    def costs(self, experts: Experts) -> npt.NDArray[np.float64]:
        """Return what every layer costs, given the expert in every slot: its largest load."""
        return self.largest_loads(experts)

    def device_loads(self, experts: Experts, count: Experts | None = None) -> npt.NDArray[np.float64]:
        """Return the load of every device, shape (layers, devices), given the expert in every slot.

        The numbers of replicas are counted unless they are given.
        """
        count = self.replica_count(experts) if count is None else count
        share = (self.load / np.maximum(count, 1)).ravel()
        # All layers in a row: numpy takes several times longer for an axis.
        return np.add.reduceat(share.take(self._numbered(experts)), self._first_slots).reshape(len(experts), -1)

    def replica_count(self, experts: Experts) -> Experts:
        """Return how many slots hold every expert."""
        return np.bincount(self._numbered(experts), minlength=self.load.size).reshape(self.load.shape)

    def _numbered(self, experts: Experts) -> Experts:
        """Return the expert in every slot, all layers in a row, where the experts of all layers have numbers."""
        return (experts + self._first_experts).ravel()

    @cached_property
    def _first_experts(self) -> Experts:
        """The number of the first expert of every layer, shape (layers, 1)."""
        layers, num_experts = self.load.shape
        return num_experts * np.arange(layers)[:, None]

    @cached_property
    def _first_slots(self) -> Experts:
        """The first slot of every device, all layers in a row."""
        first = self.cluster.first_slots
        return (first[:-1] + first[-1] * np.arange(len(self.load))[:, None]).ravel()

    def check_map(self, solution: Any, name: str = "solution") -> Experts:
        """Return the expert in every slot, shape (layers, slots), or raise an error that says why it is no placement.

        Parameters
        ----------
        solution : Placement or array_like of int
            The placement, or the expert in every slot; a single layer needs no axis of its own.
        name : str
            What the error calls it.
        """
        if isinstance(solution, Placement):
            solution = solution.physical_to_logical
        layers, num_experts = self.load.shape
        experts = checked_map(name, solution, layers, self.cluster.num_slots)
        if experts.min() < 0 or experts.max() >= num_experts:
            raise ValueError(f"{name} must hold experts 0 .. {num_experts - 1}, got {experts.min()} .. {experts.max()}")
        count = self.replica_count(experts)
        if not count.all():
            missing = np.argwhere(count == 0)
            raise ValueError(
                f"{name} must hold every expert, expert {missing[0, 1]} is missing in layer {missing[0, 0]}"
            )
        held = self.held(experts)
        if np.count_nonzero(held) < experts.size:
            layer = int(np.argmax(held.sum(axis=(1, 2)) < self.cluster.num_slots))
            raise ValueError(f"{name} must hold no expert twice on a device, one is in layer {layer}")
        if self.num_regions > 1:
            astray = (self.homes_of(experts) < 0).any(axis=1)
            if astray.any():
                asked = "a copy of every expert" if self.anywhere else "all copies of all experts"
                raise ValueError(
                    f"{name} must hold {asked} of a group on one node, equally many groups on each:"
                    f" it does not in layer {int(astray.argmax())}"
                )
        return experts

    def homes_of(self, experts: Experts) -> npt.NDArray[np.int64]:
        """Return the region of every group, shape (layers, groups), given the expert in every slot; -1 where none is.

        Where further copies may be anywhere, one of several ways to see it is returned.
        """
        layers, num_experts = self.load.shape
        groups, regions = self.num_groups or 1, self.num_regions
        if regions == 1:
            return np.zeros((layers, 1), dtype=np.int64)
        here = np.zeros((layers, regions, num_experts), dtype=np.bool_)
        region = self.cluster.device_of_slot * regions // self.cluster.num_devices
        here[np.arange(layers)[:, None], region, experts] = True
        grouped, each = here.reshape(layers, regions, groups, -1), groups // regions
        whole: Any = grouped.all(axis=3)
        if not self.anywhere:
            whole = whole & (grouped.any(axis=3).sum(axis=1, keepdims=True) == 1)
            homes = np.where(whole.any(axis=1), whole.argmax(axis=1), -1)
            return np.where((whole.sum(axis=2) == each).all(axis=1, keepdims=True), homes, -1)
        # Imported here: it takes longer than all else that a placement needs.
        with compile_time():
            from scipy.optimize import linear_sum_assignment

        homes = np.full((layers, groups), -1)
        for layer in range(layers):
            # A region is as many rows as it is to be the home of groups.
            rows, columns = linear_sum_assignment(~np.repeat(whole[layer], each, axis=0))
            homes[layer, columns] = np.where(whole[layer, rows // each, columns], rows // each, -1)
        return homes

    def held(self, experts: Experts) -> npt.NDArray[np.bool_]:
        """Return which device holds which expert, shape (layers, devices, experts); -1 is no expert."""
        layers, num_experts = self.load.shape
        held = np.zeros((layers, self.cluster.num_devices, num_experts + 1), dtype=np.bool_)
        held[np.arange(layers)[:, None], self.cluster.device_of_slot, experts] = True
        return held[:, :, :-1]

    def check_solution(self, solution: Any, name: str = "solution") -> Placement:
        """Return a `Placement` of a placement or of the expert in every slot; errors as `check_map`."""
        return self.placed(self.check_map(solution, name))

    def placed(self, experts: Experts) -> Placement:
        """Return the placement of which the expert in every slot is given, which is one."""
        count = self.replica_count(experts)
        mean = self.load.sum(axis=1) / self.cluster.num_devices
        balancedness = mean / self.device_loads(experts, count).max(axis=1)
        return Placement(read_only(experts.copy()), read_only(count), read_only(balancedness))

    def random_solution(self, rng: np.random.Generator) -> Placement:
        """Return a random placement: experts go, in random order, where most slots are free."""
        layers, num_experts = self.load.shape
        cluster, regions = self.cluster, self.regions
        experts = np.empty((layers, cluster.num_slots), dtype=np.int64)
        per_region = num_experts // self.num_regions
        for layer in range(layers):
            groups = rng.permutation(self.num_groups or 1)
            homes = np.argsort(groups, kind="stable") * self.num_regions // (self.num_groups or 1)
            members = np.repeat(homes, num_experts // len(homes))
            for region in range(self.num_regions):
                own = rng.permutation(np.flatnonzero(members == region))
                further = np.arange(num_experts) if self.anywhere else own
                devices = np.arange(regions[region], regions[region + 1])
                free = cluster.slots[devices]
                # Dealt out to the device with most room, in a circle of experts, none comes twice to a device.
                dealt: list[list[int]] = [[] for _ in devices]
                for turn in range(int(free.sum())):
                    device = int(np.argmax(free))
                    rest: Any = own[turn : turn + 1]
                    if turn >= per_region:
                        rest = [e for e in further if e not in dealt[device]]
                    dealt[device].append(int(rest[rng.integers(len(rest))]))
                    free[device] -= 1
                first, last = cluster.first_slots[devices[0]], cluster.first_slots[devices[-1] + 1]
                experts[layer, first:last] = np.concatenate(dealt)
        return self.placed(experts)

    def ordinary_value(self) -> float:
        """Return the sum of the bounds of the layers."""
        return float(self.load_bounds.sum())

    def value_range(self) -> tuple[float, float]:
        """Return the sum of the bounds of the layers, and all the load on one device."""
        return float(self.load_bounds.sum()), float(self.load.sum())


def checked_loads(load: npt.ArrayLike, name: str = "load") -> npt.NDArray[np.float64]:
    """Return loads as floats of shape (layers, experts), windows added up; errors call them `name`."""
    load = as_array(name, load)
    ndim = load.ndim
    if not 1 <= ndim <= 3:
        raise ValueError(
            f"{name} must have shape (experts,), (layers, experts) or (windows, layers, experts),"
            f" got shape {load.shape}"
        )
    checked = numeric_array(name, load, ndim)
    if checked.min() < 0:
        where = tuple(int(k) for k in np.argwhere(checked < 0)[0])
        raise ValueError(f"{name} must not be negative, got {checked[where]} at index {where}")
    loads = np.atleast_2d(checked).astype(np.float64)
    # Infinite sums are refused in a sentence below.
    with np.errstate(over="ignore"):
        loads = loads.sum(axis=0) if ndim == 3 else loads
        if loads.sum() > MOST_LOAD:
            raise ValueError(f"{name} must have a sum of at most {MOST_LOAD:g}, got {loads.sum():g}")
    return read_only(loads)


def as_array(name: str, given: Any) -> npt.NDArray[Any]:
    """Return what is given as an array, or raise an error that calls it `name` if it is ragged."""
    try:
        return np.asarray(given)
    except ValueError:
        raise ValueError(f"{name} must be an array, got lists of unequal lengths") from None


def checked_map(name: str, given: Any, layers: int, slots: int) -> Experts:
    """Return the expert in every slot as integers of shape (layers, slots)."""
    experts = as_array(name, given)
    if experts.shape == (slots,) and layers == 1:
        experts = experts[None]
    if experts.shape != (layers, slots):
        raise ValueError(f"{name} must have shape {(layers, slots)}, layers and slots, got shape {experts.shape}")
    if experts.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {experts.dtype}")
    return experts.astype(np.int64)
