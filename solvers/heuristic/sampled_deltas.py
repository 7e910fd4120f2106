"""The scale of an instance: the mean absolute delta of random swaps."""

from __future__ import annotations

from typing import Any

from moe_search.problems.kernels import compiled, kernel_for
from moe_search.problems.moves import swap_delta
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.solvers.engine.random_state import random_below, random_state
from moe_search.solvers.engine.run import Run

LEAST_SAMPLES, MOST_SAMPLES = 8, 200
MOST_OPERATIONS = 4_000_000


def mean_delta(run: Run, state: Any) -> float:
    """Return the mean absolute delta, zeros left out, of random swaps at the start of a run; 0 if none changes a thing.

    There are 200 of them, fewer where a delta takes long; their number depends on the problem alone.
    """
    problem = run.problem
    assert isinstance(problem, PermutationProblem)
    if problem.block_size == 1:
        return 0.0
    operations = max(2 * problem.sweep_cost // (problem.size * problem.block_size), problem.size)
    samples = min(max(MOST_OPERATIONS // operations, LEAST_SAMPLES), MOST_SAMPLES)
    rng = random_state(run.seed)
    run.clock.compile(kernel_for(state, sum_of_deltas), state, rng, problem.block_size, 0)
    total, nonzero = kernel_for(state, sum_of_deltas)(state, rng, problem.block_size, samples)
    return total / nonzero if nonzero else 0.0


@compiled
def sum_of_deltas(state: Any, rng: Any, block_size: int, samples: int) -> tuple[float, int]:
    """Return the sum of the absolute deltas of some random swaps, and how many are not zero."""
    total = 0.0
    nonzero = 0
    for _ in range(samples):
        slot = random_below(rng, state.permutation.shape[0])
        other = slot // block_size * block_size + random_below(rng, block_size)
        delta = abs(float(swap_delta(state, slot, other)))
        total += delta
        nonzero += 1 if delta > 0 else 0
    return total, nonzero
