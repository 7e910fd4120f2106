"""Exhaustive enumeration of small problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moe_search.problems.kernels import kernel_for
from moe_search.problems.moves import commit_swap, copy_permutation, swap_delta
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import SearchRun, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion

MOST_PERMUTATIONS = math.factorial(10)
LOG_LENGTH = 256


@dataclass(frozen=True)
class Enumeration(Solver):
    """Visit every permutation by swaps, each one delta from the last; up to 10! = 3,628,800 permutations.

    An iteration is one permutation. The bound is proved only by the whole enumeration; stopped early, there is none.
    `seed` draws the first permutation if there is no `initial`.

    References
    ----------
    B. R. Heap, "Permutations by interchanges", The Computer Journal 6 (1963), 293-298.
    """

    exact: ClassVar[bool] = True

    def refuses(self, problem: Problem) -> str | None:
        """Refuse problems with more than 10! permutations."""
        if number_of_permutations(problem) <= MOST_PERMUTATIONS:
            return None
        blocks = problem.size // problem.block_size
        return (
            f"it has {problem.block_size}!{f'**{blocks}' if blocks > 1 else ''} permutations,"
            f" enumeration takes {MOST_PERMUTATIONS:,} (10!) at most"
        )

    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Enumerate; see `Solver.solve`."""
        run = SearchRun(problem, stop, seed, initial, on_improvement)
        state = problem.state(run.initial)
        walk = Walk(
            np.array([run.value, run.value], dtype=run.dtype),
            np.zeros(problem.size, dtype=np.int64),
            np.zeros(3, dtype=np.int64),
            run.incumbent,
            np.zeros(LOG_LENGTH, dtype=run.dtype),
            np.zeros(LOG_LENGTH, dtype=np.int64),
            run.tolerance,
        )

        def advance(budget: int, target: float) -> Slice:
            before = int(walk.position[0])
            walk.position[1] = 0
            kernel_for(state, enumerate_slice)(state, walk, budget, target, problem.block_size)
            visited, logged, done = (int(x) for x in walk.position)
            improvements = zip(walk.log_iterations[:logged], walk.log_values[:logged], strict=True)
            return Slice(visited - before, visited, improvements, done > 0)

        run.clock.compile(kernel_for(state, enumerate_slice), state, walk, 0, -np.inf, problem.block_size)
        run.loop(advance)
        moves = max(int(walk.position[0]) - 1, 0)
        statistics = {"swaps evaluated": moves, "swaps committed": moves}
        return run.result(repr(self), moves=moves, proved=int(walk.position[2]) == 1, statistics=statistics)


class Walk(NamedTuple):
    """What an enumeration carries from slice to slice.

    Parameters
    ----------
    totals : ndarray, shape (2,)
        Value of the current permutation and of the incumbent.
    counters : ndarray of int64, shape (size,)
        Heap's counters, one run of them a block.
    position : ndarray of int64, shape (3,)
        Permutations visited; improvements logged; 0 while under way, 1 when all are visited, 2 at the target.
    incumbent : ndarray of int64, shape (size,)
        The best permutation met.
    log_values, log_iterations : ndarray
        Improvements of the incumbent in this slice.
    tolerance : int or float
        The least difference that counts.
    """

    totals: npt.NDArray[Any]
    counters: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    incumbent: Permutation
    log_values: npt.NDArray[Any]
    log_iterations: npt.NDArray[np.int64]
    tolerance: Any


def number_of_permutations(problem: Problem) -> float:
    """Return how many permutations stay inside the blocks; infinity if they are far too many to count."""
    if problem.size > 200:
        return math.inf
    return math.factorial(problem.block_size) ** (problem.size // problem.block_size)


@njit(cache=True, nogil=True)
def enumerate_slice(state: Any, walk: Walk, budget: int, target: float, block_size: int) -> None:
    """Visit at most `budget` more permutations."""
    totals = walk.totals
    position = walk.position
    while budget > 0 and position[2] == 0 and position[1] < walk.log_values.shape[0]:
        budget -= 1
        position[0] += 1
        # The first permutation visited is the one the state stands at.
        if position[0] > 1:
            a, b = next_swap(walk.counters, block_size)
            totals[0] += swap_delta(state, a, b)
            commit_swap(state, a, b)
            if totals[0] < totals[1] - walk.tolerance:
                totals[1] = totals[0]
                copy_permutation(walk.incumbent, state.permutation)
                walk.log_values[position[1]] = totals[0]
                walk.log_iterations[position[1]] = position[0]
                position[1] += 1
        if is_last(walk.counters, block_size):
            position[2] = 1
        elif totals[1] <= target:
            position[2] = 2


@njit(cache=True, nogil=True)
def next_swap(counters: Any, block_size: int) -> tuple[int, int]:
    """Advance Heap's counters, blocks as digits of an odometer; return the two slots to swap."""
    for start in range(0, counters.shape[0], block_size):
        for i in range(1, block_size):
            done = counters[start + i]
            if done < i:
                counters[start + i] += 1
                for k in range(1, i):
                    counters[start + k] = 0
                # Heap's permutations start from any arrangement, so a block that starts over goes on from where it is.
                for k in range(start):
                    counters[k] = 0
                return start + (done if i % 2 else 0), start + i
    return 0, 0


@njit(cache=True, nogil=True)
def is_last(counters: Any, block_size: int) -> bool:
    """Return whether no permutation is left."""
    left = 0
    for slot in range(counters.shape[0]):
        left += slot % block_size - counters[slot]
    return left == 0
