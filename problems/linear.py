"""Linear assignment of slots to experts with capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import largest_magnitude, numeric_array, require_fits
from moe_search.problems.kernels import kernel
from moe_search.problems.moves import commit_swap, exchange_seats, swap_delta
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.permutation_problem import PermutationProblem, inverse


@dataclass(frozen=True, eq=False, repr=False)
class LinearAssignment(PermutationProblem):
    """Give every slot one expert at the least total cost, each expert holding m / n slots.

    ``value(p) = sum_s cost[s, p[s] // c]`` with the capacity ``c = m / n``.

    Parameters
    ----------
    cost : array_like, shape (m, n)
        Cost of slot s under expert e; m is a multiple of n. Integers are kept exact.

    Raises
    ------
    ValueError
        If the shape is wrong, m is not a multiple of n, a cost is NaN or infinite, or totals could overflow.

    Notes
    -----
    The class of a gate that sends each sample to one expert: ``cost[s, e]`` is the summed loss of expert e on the
    samples of slot s. Solved to optimality at any size by `moe_search.solvers.Hungarian`.

    Examples
    --------
    >>> from moe_search.problems.linear import LinearAssignment
    >>> LinearAssignment([[4, 1], [2, 0]]).value([1, 0])
    3
    """

    cost: npt.NDArray[Any]

    def __init__(self, cost: npt.ArrayLike) -> None:
        array = numeric_array("cost", cost, 2)
        m, n = array.shape
        if m % n:
            raise ValueError(f"cost must have a multiple of n rows (slots) for n columns (experts), got shape {(m, n)}")
        require_fits("a sum of costs", 4 * m * largest_magnitude(array))
        object.__setattr__(self, "cost", array)

    @property
    def size(self) -> int:
        """Number of slots m."""
        return self.cost.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts n."""
        return self.cost.shape[1]

    @property
    def integral(self) -> bool:
        """Whether the costs are integers."""
        return self.cost.dtype.kind == "i"

    def value(self, permutation: npt.ArrayLike) -> int | float:
        """Return the total cost of a permutation; see `PermutationProblem.value`."""
        return self.cost[np.arange(self.size), self.experts(permutation)].sum().item()

    def state(self, permutation: npt.ArrayLike) -> LinearState:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        return LinearState(p, inverse(p), self.experts(p), self.cost)

    def value_range(self) -> tuple[int | float, int | float]:
        """Return the sums of the least and of the largest costs; see `Problem.value_range`."""
        return self.cost.min(axis=1).sum().item(), self.cost.max(axis=1).sum().item()

    def pair_costs(self) -> PairCosts:
        """Return the costs; there are none of pairs."""
        return PairCosts(self.cost.shape, self.block_size, self.integral, self.cost)


class LinearState(NamedTuple):
    """Arrays of the linear kernels."""

    permutation: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    expert: npt.NDArray[np.int64]
    cost: npt.NDArray[Any]


# Between two moves ``expert[s]`` is the expert of the seat of slot s; what a slot pays depends on that alone.


@kernel(swap_delta, LinearState, allocates=False)
def _swap_delta(state: LinearState, a: int, b: int) -> Any:
    cost = state.cost
    e = state.expert[a]
    f = state.expert[b]
    return cost[a, f] - cost[a, e] + cost[b, e] - cost[b, f]


@kernel(commit_swap, LinearState, allocates=False)
def _commit_swap(state: LinearState, a: int, b: int) -> None:
    exchange_seats(state.permutation, state.order, a, b)
    expert = state.expert
    expert[a], expert[b] = expert[b], expert[a]
