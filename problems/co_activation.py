"""Experts that tokens choose together on few devices, which stay balanced."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_number
from moe_search.problems.arrays import numeric_array, read_only
from moe_search.problems.placement import Cluster, ExpertPlacement, Experts, Placement, as_array, checked_loads
from moe_search.problems.problem import Problem

Floats = npt.NDArray[np.float64]

# A device of this part above the limit costs a token of its layer as much as to go to all devices.
LIMIT_UNIT = 1e-3
# Bounds are found up to this part.
ROUNDING = 2e-9


@dataclass(frozen=True, eq=False, repr=False)
class CoActivation(Problem):
    """Put experts that tokens choose together on the same devices, as long as these are evenly loaded.

    The value is the mean number of devices, or of nodes, that a token of a layer goes to; or where only pairs of
    experts were counted, the part of these that are on two. Every expert is on one device. A device whose load is above
    the limit costs as much as a token that goes everywhere, for every thousandth that it is above.

    Parameters
    ----------
    cluster : Cluster
        The devices, which have as many slots as there are experts.
    tokens : array_like of int, shape (tokens, chosen) or (layers, tokens, chosen), optional
        The experts that every token chose, each once. An expert that none chose has a slot all the same, and no load.
    pairs : array_like, shape (experts, experts) or (layers, experts, experts), optional
        How many tokens chose both of two experts; on the diagonal how many chose one. It is given instead of `tokens`.
    load : array_like, shape (experts,), (layers, experts) or (windows, layers, experts), optional
        What every expert has to do; by default how many tokens chose it.
    tolerance : float, default 0.01
        How far the largest load of a device may be above the bound of `ExpertPlacement`.
    unit : {"device", "node"}
        What a token should go to few of.

    Attributes
    ----------
    placement : ExpertPlacement
        The same experts and devices, to be balanced alone.
    limits : ndarray of float64, shape (layers,)
        What a device may bear.
    together : ndarray of int64, shape (layers, sets, chosen)
        Sets of experts that are chosen together: those of every token, or the pairs.
    weights : ndarray of float64, shape (layers, sets)
        How often they are.
    layer_bounds : ndarray of float64, shape (layers,)
        The least mean number of units that a set of a layer is on, however the experts are placed.

    Raises
    ------
    TypeError, ValueError
        If not one of `tokens` and `pairs` is given, these hold no such experts, or the slots are not one for each.

    Notes
    -----
    An expert shares its device with s - 1 others, so that at most half of what the s - 1 strongest pairs of each add up
    to is together. A set of k experts on d devices has at most (k - d + 1) (k - d) / 2 pairs together. The least d that
    a number of pairs needs falls along a convex line, so that the mean number of pairs bounds the mean d.

    Fewer devices a token balance small batches worse: experts that are busy at the same time are on one device.

    Examples
    --------
    >>> import moe_search as ms
    >>> tokens = [[0, 2], [0, 2], [1, 3], [1, 3], [0, 1]]
    >>> problem = ms.CoActivation(ms.Cluster(num_devices=2, slots_per_device=2), tokens, tolerance=0.2)
    >>> result = ms.solve(problem)
    >>> result.value, problem.units(result.solution).tolist()
    (1.2, [[1, 1, 1, 1, 2]])
    """

    cluster: Cluster
    tokens: Experts | None = None
    pairs: Floats | None = None
    load: Floats | None = None
    tolerance: float = 0.01
    unit: Literal["device", "node"] = "device"

    def __post_init__(self) -> None:
        if not isinstance(self.cluster, Cluster):
            raise TypeError(f"cluster must be a Cluster, got {type(self.cluster).__name__}")
        require_number("tolerance", self.tolerance)
        require_choice("unit", self.unit, ("device", "node"))
        if (self.tokens is None) == (self.pairs is None):
            raise ValueError(f"one of tokens and pairs must be given, got {'none' if self.tokens is None else 'both'}")
        experts = self.cluster.num_slots
        if self.tokens is not None:
            object.__setattr__(self, "tokens", checked_tokens(self.tokens, experts))
        else:
            object.__setattr__(self, "pairs", checked_pairs(self.pairs, experts))
        layers = len(self.together)
        load = self._chosen if self.load is None else checked_loads(self.load)
        if load.shape != (layers, experts):
            raise ValueError(
                f"load must be of {layers} layers and {experts} experts, one for each slot, got shape {load.shape}"
            )
        object.__setattr__(self, "load", load)
        # It refuses loads that are all 0.
        _ = self.placement

    def __repr__(self) -> str:
        layers, sets, chosen = self.together.shape
        return (
            f"{type(self).__name__}({layers} layers of {sets} sets of {chosen} experts, {self.cluster},"
            f" tolerance={self.tolerance:g}, unit={self.unit!r})"
        )

    @cached_property
    def placement(self) -> ExpertPlacement:
        """The same experts and devices, to be balanced alone."""
        assert self.load is not None
        return ExpertPlacement(self.load, self.cluster)

    @property
    def integral(self) -> bool:
        """Values are means."""
        return False

    @cached_property
    def together(self) -> Experts:
        """Sets of experts that are chosen together, shape (layers, sets, chosen)."""
        if self.tokens is not None:
            return self.tokens
        assert self.pairs is not None
        both = np.stack(np.triu_indices(self.pairs.shape[1], 1), axis=1)
        return read_only(np.repeat(both[None], len(self.pairs), axis=0))

    @cached_property
    def weights(self) -> Floats:
        """How often they are, shape (layers, sets)."""
        if self.pairs is None:
            return read_only(np.ones(self.together.shape[:2]))
        return read_only(np.ascontiguousarray(self.pairs[:, *np.triu_indices(self.pairs.shape[1], 1)]))

    @property
    def _chosen(self) -> Floats:
        """How many tokens chose every expert."""
        if self.pairs is not None:
            return read_only(np.ascontiguousarray(np.diagonal(self.pairs, axis1=1, axis2=2)))
        return read_only(
            np.stack([np.bincount(x.ravel(), minlength=self.cluster.num_slots) * 1.0 for x in self.together])
        )

    @property
    def limits(self) -> Floats:
        """What a device of every layer may bear."""
        return (1 + self.tolerance + ROUNDING) * self.placement.load_bounds

    @property
    def unit_of_device(self) -> npt.NDArray[np.int64]:
        """The unit that every device is, or is in."""
        return np.arange(self.cluster.num_devices) // (1 if self.unit == "device" else self.cluster.devices_per_node)

    @property
    def num_units(self) -> int:
        """The number of devices or nodes."""
        return self.cluster.num_devices if self.unit == "device" else self.cluster.num_nodes

    @property
    def slopes(self) -> Floats:
        """What a unit of load above the limit costs in every layer, in units that a token goes to."""
        return self.num_units / (LIMIT_UNIT * self.limits)

    def value(self, solution: Any) -> float:
        """Return the mean number of units that a token goes to, or the part of pairs on two; overload is added."""
        experts = self.placement.check_map(solution)
        units = self._units(experts)
        excess = np.maximum(self.placement.device_loads(experts) - self.limits[:, None], 0.0).sum(axis=1)
        costs = (units * self.weights).sum(axis=1) / self.weights.sum(axis=1) + self.slopes * excess
        return float(costs.mean()) - self.offset

    @property
    def offset(self) -> float:
        """The units that every set is on at least and that the value leaves out: one for pairs."""
        return 0.0 if self.pairs is None else 1.0

    def units(self, solution: Any) -> npt.NDArray[np.int64]:
        """Return how many units every set of experts is on, shape (layers, sets)."""
        return self._units(self.placement.check_map(solution))

    def _units(self, experts: Experts) -> npt.NDArray[np.int64]:
        home = np.empty_like(experts)
        np.put_along_axis(home, experts, self.unit_of_device[self.cluster.device_of_slot][None], axis=1)
        on = np.sort(home[np.arange(len(home))[:, None, None], self.together], axis=2)
        return 1 + (np.diff(on, axis=2) > 0).sum(axis=2)

    def check_solution(self, solution: Any, name: str = "solution") -> Placement:
        """Return a `Placement`; errors as those of `ExpertPlacement`."""
        return self.placement.check_solution(solution, name)

    def placed(self, experts: Experts) -> Placement:
        """Return the placement of which the expert in every slot is given."""
        return self.placement.placed(experts)

    def random_solution(self, rng: np.random.Generator) -> Placement:
        """Return a random placement."""
        return self.placement.random_solution(rng)

    def ordinary_value(self) -> float:
        """Return the magnitude of a value."""
        return 1.0

    @cached_property
    def layer_bounds(self) -> Floats:
        """The least mean number of units that a set of a layer is on."""
        slots = np.bincount(self.unit_of_device, weights=self.cluster.slots)
        layers, _, chosen = self.together.shape
        fewest = 1 + int(np.searchsorted(np.cumsum(np.sort(slots)[::-1]), chosen))
        others = int(slots.max()) - 1
        bounds = np.full(layers, float(fewest))
        units = np.arange(chosen, 0, -1)
        # With one pair less, a set is on one more.
        needed = (chosen - units) * (chosen - units - 1) // 2 + 1
        needed[0] = 0
        for layer in range(layers):
            strong = np.sort(self._pair_weights(layer), axis=1)[:, ::-1][:, :others].sum() / 2
            mean = strong / self.weights[layer].sum()
            bounds[layer] = max(fewest, np.interp(mean, needed, units))
        return read_only(bounds)

    def _pair_weights(self, layer: int) -> Floats:
        """Return how often every two experts of a layer are chosen together."""
        sets, experts = self.together.shape[1], self.cluster.num_slots
        chosen = np.zeros((sets, experts))
        chosen[np.arange(sets)[:, None], self.together[layer]] = 1.0
        pairs: Floats = chosen.T @ (chosen * self.weights[layer][:, None])
        np.fill_diagonal(pairs, 0.0)
        return pairs

    def value_range(self) -> tuple[float, float]:
        """Return the mean of the bounds of the layers, and all experts on units of their own, overloaded."""
        overload = (self.slopes * self.placement.load.sum(axis=1)).mean()
        return float(self.layer_bounds.mean()) - self.offset, self.num_units + float(overload) - self.offset


def checked_tokens(given: Any, experts: int) -> Experts:
    """Return the experts that tokens chose as integers of shape (layers, tokens, chosen)."""
    tokens = as_array("tokens", given)
    if tokens.ndim not in (2, 3) or tokens.size == 0:
        raise ValueError(
            f"tokens must have shape (tokens, chosen) or (layers, tokens, chosen), got shape {tokens.shape}"
        )
    if tokens.dtype.kind not in "iu":
        raise TypeError(f"tokens must hold integers, got dtype {tokens.dtype}")
    tokens = np.array(tokens if tokens.ndim == 3 else tokens[None], dtype=np.int64, order="C")
    if tokens.min() < 0 or tokens.max() >= experts:
        raise ValueError(
            f"tokens must hold experts 0 .. {experts - 1}, as the devices have a slot for each;"
            f" got {tokens.min()} .. {tokens.max()}"
        )
    twice = np.argwhere((np.diff(np.sort(tokens, axis=2), axis=2) == 0).any(axis=2))
    if len(twice):
        raise ValueError(f"a token must choose an expert once, got twice in layer {twice[0, 0]}, token {twice[0, 1]}")
    return read_only(tokens)


def checked_pairs(given: Any, experts: int) -> Floats:
    """Return numbers of pairs as floats of shape (layers, experts, experts)."""
    given = as_array("pairs", given)
    counts = numeric_array("pairs", given, 3 if given.ndim == 3 else 2).astype(np.float64)
    counts = counts if counts.ndim == 3 else counts[None]
    if counts.shape[1:] != (experts, experts):
        raise ValueError(
            f"pairs must be of {experts} experts, as the devices have a slot for each; got shape {np.shape(given)}"
        )
    if counts.min() < 0:
        raise ValueError(f"pairs must not be negative, got {counts.min():g}")
    if (counts != counts.transpose(0, 2, 1)).any():
        layer = int(np.argwhere(counts != counts.transpose(0, 2, 1))[0, 0])
        raise ValueError(f"pairs must be symmetric, they are not in layer {layer}")
    alone = np.flatnonzero((counts * ~np.eye(experts, dtype=np.bool_)).sum(axis=(1, 2)) == 0)
    if len(alone):
        raise ValueError(f"pairs must be above 0 for two experts of every layer, got none in layer {alone[0]}")
    return read_only(counts)
