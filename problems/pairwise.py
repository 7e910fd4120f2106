"""Pairwise assignment: the quadratic assignment problem in Lawler's general form, with capacity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.arrays import largest_magnitude, numeric_array, read_only, require_fits
from moe_search.problems.kernels import kernel
from moe_search.problems.moves import commit_swap, exchange_seats, swap_delta
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.permutation_problem import Permutation, PermutationProblem, inverse


@dataclass(frozen=True, eq=False, repr=False)
class PairwiseAssignment(PermutationProblem):
    """Give every slot one expert where each pair of slots pays for its pair of experts; Lawler (1963).

    ``value(p) = sum_{s, t} cost[s, t, e(s), e(t)]`` over all ordered pairs of slots, s = t included (the linear part),
    with ``e(s) = (p[s] mod block) // c``.

    Parameters
    ----------
    cost : array_like, shape (m, m, n, n)
        Cost of slots s and t under experts e and f. Integers are kept exact.
    block_size : int, optional
        Slots of one selector, a divisor of m and a multiple of n; by default m, a single block.

    Raises
    ------
    ValueError
        If the shape or the block size is wrong, a cost is NaN or infinite, or totals could overflow.

    Notes
    -----
    The class of a gate that sends each sample to two experts, under any loss, and of any gate under squared error. The
    kernels keep the potential of every slot under every expert, so a delta takes O(1) and a commit O(m n).

    Examples
    --------
    >>> import numpy as np
    >>> import moe_search as ms
    >>> cost = np.zeros((2, 2, 2, 2), dtype=int)
    >>> cost[0, 1, 0, 1] = 7  # what slots 0 and 1 pay together where they have experts 0 and 1
    >>> problem = ms.PairwiseAssignment(cost)
    >>> problem.value([0, 1]), problem.value([1, 0])
    (7, 0)
    """

    cost: npt.NDArray[Any]
    block_size: int = 0
    coupling: npt.NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        cost = numeric_array("cost", self.cost, 4)
        m, other, n, expert = cost.shape
        if m != other or n != expert:
            raise ValueError(f"cost must have shape (m, m, n, n), got shape {cost.shape}")
        block_size = require_integer("block_size", self.block_size, 0) or m
        if m % block_size or block_size % n:
            raise ValueError(
                f"block_size must divide the {m} slots and be a multiple of the {n} experts, got {self.block_size}"
            )
        require_fits("the value of a permutation", 8 * m * m * largest_magnitude(cost))
        coupling = cost.transpose(0, 2, 1, 3) + cost.transpose(1, 3, 0, 2)
        coupling[np.arange(m), :, np.arange(m), :] = 0
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "block_size", block_size)
        object.__setattr__(self, "coupling", read_only(np.ascontiguousarray(coupling)))

    @property
    def size(self) -> int:
        """Number of slots m."""
        return self.cost.shape[0]

    @property
    def num_experts(self) -> int:
        """Number of experts n."""
        return self.cost.shape[2]

    @property
    def integral(self) -> bool:
        """Whether the costs are integers."""
        return self.cost.dtype.kind == "i"

    @property
    def unary(self) -> npt.NDArray[Any]:
        """Cost of slot s under expert e by itself, ``cost[s, s, e, e]``, shape (m, n)."""
        slot, expert = np.ix_(np.arange(self.size), np.arange(self.num_experts))
        return self.cost[slot, slot, expert, expert]

    def value(self, permutation: npt.ArrayLike) -> int | float:
        """Return the total cost of a permutation; see `PermutationProblem.value`."""
        e = self.experts(permutation)
        slots = np.arange(self.size)
        return self.cost[slots[:, None], slots[None, :], e[:, None], e[None, :]].sum().item()

    def state(self, permutation: npt.ArrayLike) -> PairwiseState:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        e = self.experts(p)
        potential = self.unary + self.coupling[np.arange(self.size), e].sum(axis=0)
        return PairwiseState(p, inverse(p), e, potential, self.coupling)

    def value_range(self) -> tuple[int | float, int | float]:
        """Return the sums of the least and of the largest costs; see `Problem.value_range`."""
        return self.cost.min(axis=(2, 3)).sum().item(), self.cost.max(axis=(2, 3)).sum().item()

    def pair_costs(self) -> PairCosts:
        """Return the costs, which are those of this problem."""
        shape = self.size, self.num_experts
        return PairCosts(shape, self.block_size, self.integral, make_pairwise=lambda: self)


class PairwiseState(NamedTuple):
    """Arrays of the pairwise kernels."""

    permutation: Permutation
    order: Permutation
    expert: Permutation
    potential: npt.NDArray[Any]
    coupling: npt.NDArray[Any]


# ``coupling[s, e, t, f] = cost[s, t, e, f] + cost[t, s, f, e]``, zero for s = t. Between two moves ``potential[s, e] =
# cost[s, s, e, e] + sum_t coupling[s, e, t, e(t)]``: what slot s would pay under expert e, all others as they are.


@kernel(swap_delta, PairwiseState, allocates=False)
def _swap_delta(state: PairwiseState, a: int, b: int) -> Any:
    potential = state.potential
    coupling = state.coupling
    e = state.expert[a]
    f = state.expert[b]
    delta = potential[a, f] - potential[a, e] + potential[b, e] - potential[b, f]
    # Each potential still sees the other slot under its old expert; the last four terms correct the pair (a, b).
    return delta - coupling[a, f, b, f] - coupling[a, e, b, e] + coupling[a, e, b, f] + coupling[a, f, b, e]


@kernel(commit_swap, PairwiseState, allocates=False)
def _commit_swap(state: PairwiseState, a: int, b: int) -> None:
    expert = state.expert
    e = expert[a]
    f = expert[b]
    exchange_seats(state.permutation, state.order, a, b)
    if e == f:
        return
    coupling = state.coupling
    potential = state.potential
    for s in range(potential.shape[0]):
        for x in range(potential.shape[1]):
            potential[s, x] += (coupling[a, f, s, x] - coupling[a, e, s, x]) + (
                coupling[b, e, s, x] - coupling[b, f, s, x]
            )
    expert[a] = f
    expert[b] = e
