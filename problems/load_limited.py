"""A limit on the load of every expert, put on any problem."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import largest_magnitude, numeric_array, read_only, require_fits
from moe_search.problems.kernels import compiled, kernel
from moe_search.problems.load_limits import InfeasibleLimitsError, LoadLimits, find_start, repair
from moe_search.problems.moves import (
    DeltaMatrix,
    commit_swap,
    commit_swap_and_deltas,
    fill_deltas,
    fill_potential,
    find_least,
    largest_of,
    swap_delta,
)
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.permutation_problem import Permutation, PermutationProblem

# Float loads are compared as multiples of this part of their sum, so that the order of a summation decides nothing.
LOAD_UNIT = 2.0**-50


@dataclass(frozen=True, eq=False, repr=False)
class LoadLimited(PermutationProblem):
    """Minimize another problem over the permutations under which no expert bears more than its limit.

    Slot s weighs ``slot_loads[s]``; the load of an expert is the sum over its slots in all blocks. A permutation is
    feasible if every load is within its limit. Then its value is that of the inner problem; else

        value(p) = inner value + barrier + slope * sum_e max(0, load_e - limit_e),

    with a barrier above the range of all inner values, so that any feasible permutation is better than any other, and
    every excess load costs. A search that starts feasible therefore ends feasible, and all of this package do: they
    start at `start_from` or `random_solution`.

    Parameters
    ----------
    problem : PermutationProblem
        A linear, quadratic (an expert is a location then), pairwise or mixture problem, or one's own that knows its
        `value_range`.
    slot_loads : array_like, shape (block_size,) or (size,)
        Load of every slot, not negative; with one number for each slot of a block, all blocks have the same.
    limits : array_like, shape (n,), or a number
        The most that each expert may bear, or all alike; not negative.
    start : array_like, optional
        A permutation, feasible or nearly so, to be tried first in finding a feasible one.

    Attributes
    ----------
    start : ndarray of int64
        A feasible permutation, found by `moe_search.problems.load_limits.find_start`.

    Raises
    ------
    ValueError
        If a shape is wrong, a number is NaN, infinite or negative, or totals could overflow.
    InfeasibleLimitsError
        A ValueError: if the loads sum to more than the limits, a slot weighs more than every limit, no feasible
        permutation exists for another reason, or none was found.
    TypeError
        If the problem does not know its `value_range`.

    Notes
    -----
    Integer loads are compared exactly. Others are rounded to multiples of their sum / 2**50, and limits are taken as
    larger by one such multiple for each slot, for what the rounding may have added. Whether a feasible permutation
    exists is a bin-packing problem: on small instances the answer is exact, on large ones with tight limits a feasible
    permutation may exist that is not found. The inner problem's lower bound stays valid.

    Examples
    --------
    >>> from moe_search.problems.linear import LinearAssignment
    >>> from moe_search.problems.load_limited import LoadLimited
    >>> inner = LinearAssignment([[0, 9], [0, 9], [9, 0], [9, 0]])
    >>> limited = LoadLimited(inner, slot_loads=[3, 3, 1, 1], limits=4)
    >>> inner.value([0, 1, 2, 3]), limited.feasible([0, 1, 2, 3]), limited.feasible(limited.start)
    (0, False, True)
    """

    problem: PermutationProblem
    slot_loads: npt.NDArray[Any]
    limits: npt.NDArray[Any]
    start: Permutation
    barrier: int | float = field(init=False)
    slope: int | float = field(init=False)
    load_limits: LoadLimits = field(init=False)

    def __init__(
        self,
        problem: PermutationProblem,
        slot_loads: npt.ArrayLike,
        limits: npt.ArrayLike,
        start: npt.ArrayLike | None = None,
    ) -> None:
        if not isinstance(problem, PermutationProblem):
            raise TypeError(
                "problem must be one whose solutions are permutations, such as LinearAssignment, "
                f"got {type(problem).__name__}"
            )
        inner_range = problem.value_range()
        if inner_range is None:
            raise TypeError(
                f"problem must know the range of its values, but {type(problem).__name__}.value_range() returns None"
            )
        low, high = inner_range
        object.__setattr__(self, "problem", problem)
        size, block_size, n = self.size, self.block_size, self.num_experts
        loads = numeric_array("slot_loads", slot_loads, 1)
        if loads.shape not in ((size,), (block_size,)):
            one = f"({block_size},)" if block_size == size else f"({block_size},) or ({size},)"
            raise ValueError(f"slot_loads must have shape {one}, got shape {loads.shape}")
        limits = numeric_array("limits", np.full(n, limits) if np.ndim(limits) == 0 else limits, 1)
        if limits.shape != (n,):
            raise ValueError(f"limits must be a number or have shape ({n},), one an expert, got shape {limits.shape}")
        for name, array in (("slot_loads", loads), ("limits", limits)):
            if array.min() < 0:
                raise ValueError(f"{name} must not be negative, got {array.min()}")
        loads = read_only(np.tile(loads, size // loads.size))
        require_fits("a sum of slot_loads", 2 * size * largest_magnitude(loads))
        # These are sums in Python, whose integers do not overflow.
        total, room = sum(loads.tolist()), sum(limits.tolist())
        if total > room * (1 + size * LOAD_UNIT):
            raise InfeasibleLimitsError(f"limits must sum to at least the {total} of slot_loads, got {room}")
        if loads.max() > limits.max() * (1 + size * LOAD_UNIT):
            slot = int(np.argmax(loads))
            raise InfeasibleLimitsError(
                f"limits must hold one of at least {loads.max()}, the load of slot {slot}, got {limits.max()} at most"
            )
        near = None if start is None else self.check_solution(start, "start")
        load_limits = LoadLimits(*_on_grid(loads, limits), block_size, self.capacity)
        barrier, slope = self._penalties(low, high, int(load_limits.slot_load.sum()))
        for name, value in (
            ("slot_loads", loads),
            ("limits", limits),
            ("barrier", barrier),
            ("slope", slope),
            ("load_limits", load_limits),
            ("start", read_only(find_start(load_limits, self.problem.random_solution, near))),
        ):
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        least, most = self.limits.min(), self.limits.max()
        return f"{type(self).__name__}({self.problem!r}, limits={least}{'' if least == most else f' .. {most}'})"

    def _penalties(self, low: int | float, high: int | float, total: int) -> tuple[int | float, int | float]:
        # Excess of the mean load of a slot costs about the whole range, so that a descent lessens it first.
        what = "the value of a permutation beyond the limits"
        if self.integral:
            barrier = int(high) - int(low) + 1
            slope = max(1, barrier * self.size // max(total, 1))
            require_fits(what, 4 * (barrier + slope * total) + abs(int(low)))
            return barrier, slope
        # The range is doubled, since floats may leave it by rounding, though not by half of it.
        range_ = 2.0 * (high - low) + 1e-6 * max(abs(low), abs(high)) or 1.0
        require_fits(what, 4 * (1 + self.size) * Decimal(range_) + abs(Decimal(low)))
        return range_, range_ * self.size / max(total, 1)

    @property
    def size(self) -> int:
        """Number of slots of the inner problem."""
        return self.problem.size

    @property
    def block_size(self) -> int:
        """Slots of a block of the inner problem."""
        return self.problem.block_size

    @property
    def num_experts(self) -> int:
        """Number of experts of the inner problem."""
        return self.problem.num_experts

    @property
    def integral(self) -> bool:
        """Whether the inner values are integers, whatever the loads are."""
        return self.problem.integral

    @property
    def sweep_cost(self) -> int:
        """Operations that bring the deltas of all swaps up to date: one slow pass more than the inner problem."""
        return self.problem.sweep_cost + 5 * self.size * self.block_size

    @property
    def fill_cost(self) -> int:
        """Operations that the deltas of all swaps take when computed afresh: one slow pass more, too."""
        return self.problem.fill_cost + 5 * self.size * self.block_size

    def loads(self, permutation: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the load of every expert, shape (n,)."""
        loads = np.zeros(self.num_experts, dtype=self.slot_loads.dtype)
        np.add.at(loads, self.experts(permutation), self.slot_loads)
        return loads

    def feasible(self, permutation: npt.ArrayLike) -> bool:
        """Return whether every expert is within its limit."""
        return self.load_limits.excess(self.check_solution(permutation)) == 0

    def value(self, permutation: npt.ArrayLike) -> int | float:
        """Return the inner value, and the penalty where the permutation is not feasible."""
        p = self.check_solution(permutation)
        return self.problem.value(p) + penalty(self.load_limits.excess(p), self.barrier, self.slope)

    def start_from(self, permutation: Permutation) -> Permutation:
        """Return a feasible permutation: this one, or near it by swaps, or `start`."""
        repaired = repair(self.load_limits, self.problem.start_from(permutation))
        return repaired if self.feasible(repaired) else self.start.copy()

    def random_solution(self, rng: np.random.Generator) -> Permutation:
        """Return a random feasible permutation: a uniform one, repaired by swaps."""
        return self.start_from(self.problem.random_solution(rng))

    def ordinary_value(self) -> float:
        """Return that of the inner problem; see `Problem.ordinary_value`."""
        return self.problem.ordinary_value()

    def pair_costs(self) -> PairCosts | None:
        """Return the costs of the inner problem, under the limits."""
        costs = self.problem.pair_costs()
        return None if costs is None else replace(costs, limits=self.load_limits)

    def relaxed(self) -> PermutationProblem:
        """Return the inner problem: feasible permutations are some of all, and the others have larger values."""
        return self.problem

    def state(self, permutation: npt.ArrayLike) -> LimitedState:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        inner = self.problem.state(permutation)
        limits = self.load_limits
        experts = limits.experts(inner.permutation)
        return LimitedState(
            permutation=inner.permutation,
            order=inner.order,
            inner=inner,
            expert=experts,
            slot_load=limits.slot_load,
            limit=limits.limit,
            load=limits.loads(experts),
            excess=np.array([limits.excess(inner.permutation)]),
            barrier=self.barrier,
            slope=self.slope,
        )

    def delta_matrix(self) -> Any:
        """Return the arrays for the deltas of all swaps; see `PermutationProblem.delta_matrix`."""
        inner = self.problem.delta_matrix()
        deltas = np.zeros(inner.deltas.shape, dtype=np.int64 if self.integral else np.float64)
        least = np.full(len(deltas), largest_of(deltas.dtype))
        return LimitedDeltaMatrix(deltas, least, inner.potential, inner)


class LimitedState(NamedTuple):
    """Arrays of the kernels of a limited problem: those of the inner one, whose permutation is shared, and the loads.

    Loads and limits are integers on a grid; `excess` has one entry, the sum of what is over.
    """

    permutation: Permutation
    order: Permutation
    inner: Any
    expert: Permutation
    slot_load: npt.NDArray[np.int64]
    limit: npt.NDArray[np.int64]
    load: npt.NDArray[np.int64]
    excess: npt.NDArray[np.int64]
    barrier: int | float
    slope: int | float


class LimitedDeltaMatrix(NamedTuple):
    """The deltas of all swaps, and the delta matrix of the inner problem; see `DeltaMatrix`."""

    deltas: npt.NDArray[Any]
    least: npt.NDArray[Any]
    potential: npt.NDArray[Any]  # that of the inner one
    inner: DeltaMatrix


def _on_grid(loads: npt.NDArray[Any], limits: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return loads and limits in integers of one unit; limits no larger than all loads, which nothing exceeds."""
    if loads.dtype.kind == "i":
        slot_load = loads.astype(np.int64)
        limit = np.floor(np.minimum(limits, slot_load.sum())).astype(np.int64)
    else:
        unit = LOAD_UNIT * loads.sum() or 1.0
        slot_load = np.rint(loads / unit).astype(np.int64)
        limit = np.minimum(np.floor(limits / unit) + loads.size, slot_load.sum()).astype(np.int64)
    return read_only(slot_load), read_only(limit)


# Between two moves ``load[e]`` sums ``slot_load`` over the slots of expert e, ``excess[0]`` sums what is over the
# limits, and the inner state stands at the same permutation, whose arrays it shares. A delta is the inner one plus the
# change in penalty, which two loads decide.


@compiled
def penalty(excess: int, barrier: Any, slope: Any) -> Any:
    """Return what an excess load costs."""
    if excess == 0:
        return barrier * 0
    return barrier + slope * excess


@compiled
def excess_after(expert: Any, slot_load: Any, limit: Any, load: Any, excess: int, a: int, b: int) -> int:
    """Return the excess load after slots a and b exchange their experts."""
    # Arrays are passed one by one: to hand over the whole state costs more than the rest.
    e = expert[a]
    f = expert[b]
    # What leaves expert e for f.
    moved = slot_load[a] - slot_load[b]
    if e == f or moved == 0:
        return excess
    over_e = load[e] - limit[e]
    over_f = load[f] - limit[f]
    excess += max(over_e - moved, 0) - max(over_e, 0)
    return excess + max(over_f + moved, 0) - max(over_f, 0)


@compiled
def penalty_delta(state: LimitedState, a: int, b: int) -> Any:
    """Return the change in penalty when slots a and b exchange their experts."""
    excess = state.excess[0]
    after = excess_after(state.expert, state.slot_load, state.limit, state.load, excess, a, b)
    return penalty(after, state.barrier, state.slope) - penalty(excess, state.barrier, state.slope)


@compiled
def exchange_loads(state: LimitedState, a: int, b: int) -> None:
    """Exchange the experts of slots a and b, and move their loads."""
    expert = state.expert
    state.excess[0] = excess_after(expert, state.slot_load, state.limit, state.load, state.excess[0], a, b)
    moved = state.slot_load[a] - state.slot_load[b]
    state.load[expert[a]] -= moved
    state.load[expert[b]] += moved
    expert[a], expert[b] = expert[b], expert[a]


@kernel(swap_delta, LimitedState, allocates=False)
def _swap_delta(state: LimitedState, a: int, b: int) -> Any:
    return swap_delta(state.inner, a, b) + penalty_delta(state, a, b)


@kernel(commit_swap, LimitedState, allocates=False)
def _commit_swap(state: LimitedState, a: int, b: int) -> None:
    exchange_loads(state, a, b)
    commit_swap(state.inner, a, b)


@kernel(fill_potential, LimitedState, allocates=False)
def _fill_potential(state: LimitedState, matrix: LimitedDeltaMatrix, first: int, last: int) -> None:
    fill_potential(state.inner, matrix.inner, first, last)


@kernel(fill_deltas, LimitedState, allocates=False)
def _fill_deltas(state: LimitedState, matrix: LimitedDeltaMatrix, block_size: int, first: int, last: int) -> None:
    fill_deltas(state.inner, matrix.inner, block_size, first, last)
    add_penalties(state, matrix, block_size, first, last)


@kernel(commit_swap_and_deltas, LimitedState, allocates=False)
def _commit_swap_and_deltas(state: LimitedState, matrix: LimitedDeltaMatrix, block_size: int, a: int, b: int) -> None:
    exchange_loads(state, a, b)
    commit_swap_and_deltas(state.inner, matrix.inner, block_size, a, b)
    add_penalties(state, matrix, block_size, 0, matrix.deltas.shape[0])


@compiled
def add_penalties(state: LimitedState, matrix: LimitedDeltaMatrix, block_size: int, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the deltas from those of the inner problem."""
    deltas, inner = matrix.deltas, matrix.inner.deltas
    expert, slot_load, limit, load = state.expert, state.slot_load, state.limit, state.load
    barrier, slope, excess = state.barrier, state.slope, state.excess[0]
    before = penalty(excess, barrier, slope)
    for i in range(first, last):
        for j in range(i + 1, (i // block_size + 1) * block_size):
            after = excess_after(expert, slot_load, limit, load, excess, i, j)
            deltas[i, j] = inner[i, j] + (penalty(after, barrier, slope) - before)
        find_least(deltas, matrix.least, block_size, i)
