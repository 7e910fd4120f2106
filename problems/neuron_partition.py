"""Which neurons of a dense layer form an expert: groups of equal size, of which every row keeps the best few."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.arrays import numeric_array, read_only
from moe_search.problems.problem import Problem

Labels = npt.NDArray[np.int64]
"""The expert of every neuron; -1 is a neuron that all share."""

Floats = npt.NDArray[np.float64]

SHARED = -1
# Searches compute in single precision, which ends at 3.4e38.
MOST = 1e36


@dataclass(frozen=True, eq=False, repr=False)
class NeuronPartition(Problem):
    """Divide neurons into experts of equal size, so that little is lost where every row runs its best few experts.

    A row runs the `active` experts of most mass, the mass of an expert being that of its neurons. The value is the part
    of all mass that is in the other experts; or, with `activations` and `output_weights`, the squared error of the
    layer's outputs without the neurons of the other experts, as a part of their squared size.

    A solution is the expert of every neuron, shape (neurons,), -1 for the shared ones.

    Parameters
    ----------
    mass : array_like, shape (rows, neurons)
        What a row loses without a neuron, not negative: ``((a[t, j] - mean_j) * norm_j) ** 2`` where a are the
        activations of a calibration batch, norm the lengths of the neurons' output weights, and skipped neurons give
        their mean.
    num_experts : int
        Number of experts; it divides the number of neurons that are not shared.
    active : int
        How many experts a row runs; fewer than there are.
    shared : int, default 0
        So many neurons run on every row, and are in no expert: those of the greatest mass in all rows.
    activations : array_like, shape (rows, neurons), optional
        What the neurons give, their means subtracted where skipped neurons give these.
    output_weights : array_like, shape (outputs, neurons), optional
        What the outputs are made of: ``activations @ output_weights.T``.

    Attributes
    ----------
    routed : ndarray of int64
        The neurons that are not shared, in order.
    size : int
        Neurons of an expert.

    Raises
    ------
    TypeError, ValueError
        If an array is not finite or of another shape, a mass is negative or all are 0, or neurons cannot be divided.

    Notes
    -----
    The bound on lost mass: a row keeps at most its ``active * size`` greatest masses beside those of shared neurons. No
    bound above 0 is known on the error, since what is left out may cancel. Groups of neurons are those of Zhang et al.
    (2022), MoEfication, and Pei et al. (2025), CMoE.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.NeuronPartition([[4, 0, 3, 1], [0, 5, 1, 2]], num_experts=2, active=1)
    >>> problem.value([0, 1, 0, 1]), problem.value([0, 0, 1, 1])  # 1 + 1 of 16 are lost, and 4 + 3
    (0.125, 0.4375)
    """

    mass: Floats
    num_experts: int
    active: int
    shared: int = 0
    activations: Floats | None = None
    output_weights: Floats | None = None

    def __post_init__(self) -> None:
        mass = _floats("mass", self.mass)
        neurons = mass.shape[1]
        if mass.min() < 0:
            raise ValueError(f"mass must not be negative, got {mass.min():g}")
        if mass.max() == 0:
            raise ValueError("mass must be above 0 for some row and neuron, got zeros only")
        _require_fits("the sum of mass", mass.size * (mass.max() / MOST))
        require_integer("num_experts", self.num_experts, 2)
        require_integer("active", self.active)
        require_integer("shared", self.shared, 0)
        if self.active >= self.num_experts:
            raise ValueError(f"active must be below num_experts, {self.num_experts}, got {self.active}")
        routed = neurons - self.shared
        if routed <= 0 or routed % self.num_experts:
            raise ValueError(
                f"num_experts must divide the neurons that are not shared, {neurons} - {self.shared},"
                f" got {self.num_experts}"
            )
        object.__setattr__(self, "mass", mass)
        if (self.activations is None) != (self.output_weights is None):
            raise ValueError("activations and output_weights must be given together, got one of them")
        if self.activations is not None:
            activations = _floats("activations", self.activations)
            weights = _floats("output_weights", self.output_weights)
            if activations.shape != mass.shape:
                raise ValueError(f"activations must have the shape of mass, {mass.shape}, got {activations.shape}")
            if weights.shape[1] != neurons:
                raise ValueError(f"output_weights must have shape (outputs, {neurons}), got {weights.shape}")
            # Numbers of Python overflow to infinity without a warning.
            product = float(np.abs(activations).max()) / MOST**0.5 * float(np.abs(weights).max())
            _require_fits("the squared size of all outputs", mass.size * neurons * len(weights) * product * product)
            object.__setattr__(self, "activations", activations)
            object.__setattr__(self, "output_weights", weights)
            if self.whole == 0:
                raise ValueError("activations @ output_weights.T must be other than 0, got zeros only")

    def __repr__(self) -> str:
        rows, neurons = self.mass.shape
        told = "lost mass" if self.activations is None else "error"
        return (
            f"NeuronPartition({neurons} neurons to {self.num_experts} experts, {self.active} active,"
            f" {self.shared} shared, {told} of {rows} rows)"
        )

    @property
    def integral(self) -> bool:
        """Values are parts of a whole."""
        return False

    @cached_property
    def shared_neurons(self) -> Labels:
        """The neurons that run on every row, in order: those of the greatest mass."""
        ranked = np.argsort(-self.mass.sum(axis=0), kind="stable")
        return read_only(np.sort(ranked[: self.shared]))

    @cached_property
    def routed(self) -> Labels:
        """The neurons that are not shared, in order."""
        return read_only(np.setdiff1d(np.arange(self.mass.shape[1]), self.shared_neurons))

    @property
    def size(self) -> int:
        """Neurons of an expert."""
        return (self.mass.shape[1] - self.shared) // self.num_experts

    @cached_property
    def whole(self) -> float:
        """What the value is a part of: all mass, or the squared size of all outputs."""
        if self.activations is None or self.output_weights is None:
            return float(self.mass.sum())
        return float(np.square(self.activations @ self.output_weights.T).sum())

    def expert_mass(self, labels: Labels) -> Floats:
        """Return the mass of every expert in every row, shape (rows, experts)."""
        members = labels[:, None] == np.arange(self.num_experts)
        return self.mass @ members.astype(np.float64)

    def active_experts(self, labels: Labels) -> npt.NDArray[np.bool_]:
        """Return which experts every row runs, shape (rows, experts): those of most mass, the first of equal ones."""
        return best_experts(self.expert_mass(labels), self.active)

    def value(self, solution: Any) -> float:
        """Return the part of the mass, or of the outputs' squared size, that is lost."""
        return self.value_of(self.check_solution(solution))

    def value_of(self, labels: Labels, active: npt.NDArray[np.bool_] | None = None) -> float:
        """Return the value of a solution that is known to be one; the experts of all rows may be given."""
        mass = self.expert_mass(labels)
        active = best_experts(mass, self.active) if active is None else active
        if self.activations is None or self.output_weights is None:
            return float(mass[~active].sum()) / self.whole
        skipped = ~np.concatenate([active, np.ones((len(active), 1), dtype=np.bool_)], axis=1)[:, labels]
        return float(np.square((self.activations * skipped) @ self.output_weights.T).sum()) / self.whole

    def check_solution(self, solution: Any, name: str = "solution") -> Labels:
        """Return a copy of the expert of every neuron, or raise an error that says why it is no division."""
        labels = np.array(solution)
        neurons = self.mass.shape[1]
        if labels.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integers, got dtype {labels.dtype}")
        if labels.shape != (neurons,):
            raise ValueError(f"{name} must have shape ({neurons},), the expert of every neuron, got {labels.shape}")
        labels = labels.astype(np.int64)
        if labels.min() < SHARED or labels.max() >= self.num_experts:
            raise ValueError(
                f"{name} must hold experts 0 .. {self.num_experts - 1}, or -1 for shared, got {labels.min()} .."
                f" {labels.max()}"
            )
        if not np.array_equal(np.flatnonzero(labels == SHARED), self.shared_neurons):
            raise ValueError(
                f"{name} must have -1 at the {self.shared} neurons of the greatest mass, which are shared, and nowhere"
                f" else; got it at {np.flatnonzero(labels == SHARED).tolist()}"
            )
        counts = np.bincount(labels[self.routed], minlength=self.num_experts)
        if counts.min() != counts.max():
            raise ValueError(f"{name} must give every expert {self.size} neurons, got {counts.tolist()}")
        return labels

    def labels_of(self, routed: npt.NDArray[Any]) -> Labels:
        """Return a solution from the experts of the routed neurons alone."""
        labels = np.full(self.mass.shape[1], SHARED, dtype=np.int64)
        labels[self.routed] = routed
        return labels

    def random_solution(self, rng: np.random.Generator) -> Labels:
        """Return a random division."""
        return self.labels_of(rng.permutation(np.arange(len(self.routed)) // self.size))

    def ordinary_value(self) -> float:
        """Return what is lost if all experts matter alike."""
        return 1 - self.active / self.num_experts

    def value_range(self) -> tuple[float, float] | None:
        """Return the bound of the class, and 1; on the error 0, and no end."""
        if self.activations is not None:
            return 0.0, np.inf
        lost = len(self.routed) - self.active * self.size
        least = np.partition(self.mass[:, self.routed], lost - 1, axis=1)[:, :lost]
        return float(least.sum()) / self.whole, 1.0


def best_experts(scores: npt.NDArray[Any], active: int) -> npt.NDArray[np.bool_]:
    """Return the experts of the highest scores of every row, shape (rows, experts); the first of equal ones."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :active]
    chosen = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def _require_fits(what: str, part: float) -> None:
    """Raise ValueError if a sum may reach more than `MOST`, of which it is so large a part."""
    if part > 1:
        raise ValueError(f"{what} may exceed {MOST:g}, which single precision holds with room; scale the data down")


def _floats(name: str, values: npt.ArrayLike | None) -> Floats:
    array = np.asarray(values)
    return read_only(numeric_array(name, array, 2).astype(np.float64))
