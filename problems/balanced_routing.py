"""Rows to experts, several each, no expert beyond its capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.arrays import largest_magnitude, numeric_array, require_fits
from moe_search.problems.problem import Problem

Experts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class BalancedRouting(Problem):
    """Send every row to k different experts at the least total cost, no expert taking more rows than its capacity.

    A solution is an array of shape (rows, k), the experts of every row, and ``value(s) = sum_t,j cost[t, s[t, j]]``.

    Parameters
    ----------
    cost : array_like, shape (rows, experts)
        Cost of a row, such as a token, under an expert; the negative of a score. Integers are kept exact.
    k : int, default 1
        How many experts a row takes.
    capacity : int, optional
        How many rows an expert takes at most; by default the least that suffices for all, rows k / experts rounded up.

    Raises
    ------
    ValueError
        If the shape is wrong, k exceeds the number of experts, the experts have no room for all rows, a cost is NaN or
        infinite, or totals could overflow.

    Notes
    -----
    With k = 1 and equal sizes, it is the assignment of BASE layers (Lewis et al. 2021). `moe_search.solvers.Transport`
    solves it to optimality at any size, and `moe_search.BalancedTopK` is the gate of it.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.BalancedRouting([[0, 1, 5], [0, 2, 6], [0, 3, 4]], k=2)  # each expert takes two rows
    >>> problem.value([[0, 1], [1, 2], [0, 2]]), problem.value([[0, 2], [0, 1], [1, 2]])
    (13, 14)
    """

    cost: npt.NDArray[Any]
    k: int
    capacity: int

    def __init__(self, cost: npt.ArrayLike, k: int = 1, capacity: int | None = None) -> None:
        array = numeric_array("cost", cost, 2)
        m, n = array.shape
        k = require_integer("k", k)
        if k > n:
            raise ValueError(f"k must be at most the number of experts, {n}, got {k}")
        least = -(-m * k // n)
        capacity = least if capacity is None else require_integer("capacity", capacity)
        if capacity < least:
            raise ValueError(
                f"capacity must be at least {least}, for {n} experts to take {m} rows {k} times, got {capacity}"
            )
        require_fits("a sum of costs", 4 * (m * k + n) * largest_magnitude(array))
        object.__setattr__(self, "cost", array)
        object.__setattr__(self, "k", k)
        # An expert takes a row once at most.
        object.__setattr__(self, "capacity", min(capacity, m))

    def __repr__(self) -> str:
        kind = "integral" if self.integral else "float"
        return (
            f"BalancedRouting({self.num_rows} rows to {self.k} of {self.num_experts} experts, "
            f"capacity={self.capacity}, {kind})"
        )

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.cost.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts n."""
        return self.cost.shape[1]

    @property
    def integral(self) -> bool:
        """Whether the costs are integers."""
        return self.cost.dtype.kind == "i"

    def value(self, solution: npt.ArrayLike) -> int | float:
        """Return the total cost of the experts of all rows; see `Problem.value`."""
        entries = np.arange(0, self.cost.size, self.num_experts)[:, None] + self.check_solution(solution)
        return self.cost.ravel()[entries].sum().item()

    def check_solution(self, solution: npt.ArrayLike, name: str = "solution") -> Experts:
        """Return the experts of all rows as a new int64 array, rising in every row, or raise an error.

        Raises
        ------
        ValueError
            If the shape is wrong, an expert does not exist or is twice in a row, or one takes too many rows.
        """
        experts = np.asarray(solution)
        if experts.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integers, got dtype {experts.dtype}")
        if experts.shape != (self.num_rows, self.k):
            raise ValueError(f"{name} must have shape {(self.num_rows, self.k)}, got shape {experts.shape}")
        if experts.min() < 0 or experts.max() >= self.num_experts:
            raise ValueError(
                f"{name} must hold experts 0 .. {self.num_experts - 1}, got {experts.min()} .. {experts.max()}"
            )
        experts = _rising(experts.astype(np.int64))
        twice = (experts[:, 1:] == experts[:, :-1]).any(axis=1)
        if twice.any():
            row = int(np.argmax(twice))
            raise ValueError(
                f"{name} must hold different experts in every row, got {experts[row].tolist()} in row {row}"
            )
        loads = np.bincount(experts.ravel(), minlength=self.num_experts)
        if loads.max() > self.capacity:
            raise ValueError(
                f"{name} must give an expert {self.capacity} rows at most, got {loads.max()} for expert "
                f"{np.argmax(loads)}"
            )
        return experts

    def even_solution(self) -> Experts:
        """Return a solution that deals the experts out in turn, whatever they cost."""
        dealt = np.arange(self.num_rows * self.k) % self.num_experts
        return _rising(dealt.reshape(self.num_rows, self.k))

    def random_solution(self, rng: np.random.Generator) -> Experts:
        """Return a random solution, which deals the experts out in turn, to rows in random order."""
        names = rng.permutation(self.num_experts)
        return _rising(names[rng.permutation(self.even_solution())])

    def value_range(self) -> tuple[int | float, int | float]:
        """Return the sums of the k least and of the k largest costs of every row; see `Problem.value_range`."""
        rising = np.sort(self.cost, axis=1)
        return rising[:, : self.k].sum().item(), rising[:, -self.k :].sum().item()


def _rising(experts: Experts) -> Experts:
    """Return the experts of every row in rising order."""
    # Most rows are in order, and numpy sorts short ones slowly.
    unordered = (experts[:, 1:] < experts[:, :-1]).any(axis=1)
    experts[unordered] = np.sort(experts[unordered], axis=1)
    return experts
