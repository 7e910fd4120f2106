"""Exhaustive enumeration of small problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from moe_search.problems.kernels import compiled
from moe_search.problems.moves import commit_swap, swap_delta
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.compiled_search import CompiledSearch, Kernel, Track, take
from moe_search.solvers.engine.run import Run

MOST_PERMUTATIONS = math.factorial(10)


@dataclass(frozen=True)
class Enumeration(CompiledSearch):
    """Visit every permutation by swaps, each one delta from the last; up to 10! = 3,628,800 permutations.

    An iteration is one permutation. The bound is proved only by the whole enumeration; stopped early, there is none.
    `seed` draws the first permutation if there is no `initial`.

    References
    ----------
    B. R. Heap, "Permutations by interchanges", The Computer Journal 6 (1963), 293-298.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.solve(ms.random_quadratic(5, seed=0), ms.Enumeration())
    >>> result.status, result.iterations
    ('optimal', 120)
    """

    exact: ClassVar[bool] = True

    def refuses(self, problem: Problem) -> str | None:
        """Refuse problems with more than 10! permutations."""
        if not isinstance(problem, PermutationProblem) or number_of_permutations(problem) <= MOST_PERMUTATIONS:
            return super().refuses(problem)
        blocks = problem.size // problem.block_size
        return (
            f"it has {problem.block_size}!{f'**{blocks}' if blocks > 1 else ''} permutations,"
            f" enumeration takes {MOST_PERMUTATIONS:,} (10!) at most"
        )

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel and Heap's counters, one run of them a block; see `CompiledSearch.prepare`."""
        assert isinstance(run.problem, PermutationProblem)
        return enumerate_slice, (np.zeros(run.problem.size, dtype=np.int64), run.problem.block_size)

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of swaps, one for each permutation but the first."""
        moves = int(track.counts[0].moves)
        return {"swaps evaluated": moves, "swaps committed": moves}


def number_of_permutations(problem: PermutationProblem) -> float:
    """Return how many permutations stay inside the blocks; infinity if they are far too many to count."""
    if problem.size > 200:
        return math.inf
    return math.factorial(problem.block_size) ** (problem.size // problem.block_size)


@compiled
def enumerate_slice(state: Any, track: Track, budget: int, target: float, counters: Any, block_size: int) -> int:
    """Visit at most `budget` more permutations; return how many. The first is the one that the state stands at.

    After k visits the state stands at the k-th permutation of Heap's order, and `counters` say which swap leads on.
    """
    totals, counts = track.totals, track.counts[0]
    work = 0
    while work < budget and not counts.done:
        work += 1
        counts.iterations += 1
        if counts.iterations > 1:
            a, b = next_swap(counters, block_size)
            totals[0] += swap_delta(state, a, b)
            commit_swap(state, a, b)
            counts.moves += 1
            if totals[0] < totals[1] - track.tolerance and take(track, state.permutation, target):
                budget = work
        if is_last(counters, block_size):
            counts.done = counts.proved = True
        elif totals[1] <= target:
            counts.done = True
    return work


@compiled
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


@compiled
def is_last(counters: Any, block_size: int) -> bool:
    """Return whether no permutation is left."""
    left = 0
    for slot in range(counters.shape[0]):
        left += slot % block_size - counters[slot]
    return left == 0
