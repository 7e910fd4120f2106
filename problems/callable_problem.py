"""Any Python function of a permutation as a problem, for teaching, trying and testing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.moves import commit_swap, swap_delta
from moe_search.problems.permutation_problem import Permutation, PermutationProblem, inverse

# What an evaluation is taken to cost: a tenth of a millisecond.
EVALUATION = 100_000


class CallableProblem(PermutationProblem):
    """Minimize a plain Python function over permutations, without kernels.

    `Enumeration`, `LocalSearch`, `IteratedLocalSearch`, `SimulatedAnnealing`, `TabuSearch` and `MultiStart` take it.
    Their own loops run as plain Python too, so nothing is compiled, a look at a neighbor is one call of the function,
    and what it raises reaches the caller.

    Parameters
    ----------
    value : callable
        Called with a permutation, an int64 array of its own; returns a finite number, always the same for the same,
        or a ValueError says what it returned.
    size : int
        Number of slots, and of seats.
    block_size : int, optional
        Slots of a block, in which moves stay; a divisor of `size`, by default all of it.

    Notes
    -----
    Kernels are far faster: see `docs/new_problem.md` for a class of one's own.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.CallableProblem(lambda p: sum(abs(p[i + 1] - p[i]) for i in range(4)), size=5)
    >>> ms.solve(problem, ms.Enumeration()).value
    4.0
    """

    integral: ClassVar[bool] = False

    def __init__(self, value: Callable[[Permutation], float], size: int, block_size: int | None = None) -> None:
        if not callable(value):
            raise TypeError(f"value must be a function of a permutation, got {type(value).__name__}")
        self._function = value
        self._size = require_integer("size", size)
        self._block_size = self._size if block_size is None else require_integer("block_size", block_size)
        if self._size % self._block_size:
            raise ValueError(f"block_size must divide the {size} slots, got {block_size}")

    def traits(self) -> list[str]:
        """Return the name of the function; see `repr`."""
        return [getattr(self._function, "__qualname__", type(self._function).__name__)]

    @property
    def size(self) -> int:
        """Number of slots in all blocks."""
        return self._size

    @property
    def block_size(self) -> int:
        """Number of slots in a block."""
        return self._block_size

    @property
    def sweep_cost(self) -> int:
        """Operations to bring the deltas of all swaps up to date: an evaluation each."""
        return EVALUATION * self.num_swaps

    def value(self, permutation: npt.ArrayLike) -> float:
        """Return what the function returns, as a float."""
        return self.evaluate(self.check_solution(permutation))

    def evaluate(self, permutation: Permutation) -> float:
        """Return what the function returns for a permutation."""
        given = self._function(permutation.copy())
        try:
            value = float(given)
        except (TypeError, ValueError):
            raise TypeError(f"value must return a number, got {given!r}") from None
        if not math.isfinite(value):
            raise ValueError(f"value must return a finite number, got {value} for {permutation.tolist()}")
        return value

    def state(self, permutation: npt.ArrayLike) -> CallableState:
        """Return where a search stands; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        return CallableState(p, inverse(p), self.evaluate, self.evaluate(p))


@dataclass(eq=False)
class CallableState:
    """Where a search stands: the permutation, its value, and the swap that was evaluated last with its value."""

    permutation: Permutation
    order: Permutation
    evaluate: Callable[[Permutation], float]
    value: float
    trial: tuple[int, int, float] = (0, 0, 0.0)


@swap_delta.register
def _swap_delta(state: CallableState, a: int, b: int) -> float:
    return _value_after(state, a, b) - state.value


@commit_swap.register
def _commit_swap(state: CallableState, a: int, b: int) -> None:
    state.value = _value_after(state, a, b)
    p, order = state.permutation, state.order
    p[a], p[b] = p[b], p[a]
    order[p[a]], order[p[b]] = a, b
    state.trial = (a, a, state.value)


def _value_after(state: CallableState, a: int, b: int) -> float:
    """Return the value after a swap; a swap that is committed has mostly been evaluated just before."""
    if a == b:
        return state.value
    if state.trial[:2] != (a, b):
        swapped = state.permutation.copy()
        swapped[a], swapped[b] = swapped[b], swapped[a]
        state.trial = (a, b, state.evaluate(swapped))
    return state.trial[2]
