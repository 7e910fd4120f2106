"""Simulated annealing with reheating, its temperatures on the scale of random deltas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer, require_number
from moe_search.problems.kernels import compiled, kernel_for
from moe_search.problems.moves import commit_swap, swap_delta
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.solvers.engine.compiled_search import REFRESH_AFTER, CompiledSearch, Kernel, Track, take
from moe_search.solvers.engine.random_state import metropolis, random_below, random_state
from moe_search.solvers.engine.run import Run

LONGEST_COOLING = 1 << 50
LEAST_SAMPLES, MOST_SAMPLES = 8, 200
SAMPLE_OPERATIONS = 4_000_000


@dataclass(frozen=True)
class SimulatedAnnealing(CompiledSearch):
    """Commit each swap with the probability of Metropolis at a falling temperature; heat up again when it is cold.

    Parameters
    ----------
    hot, cold : float, default 0.5 and 0.02
        Temperatures between which every cooling falls geometrically, in multiples of the mean absolute delta of random
        swaps at the start.
    sweeps : int, default 50
        Passes over all swaps in the first cooling.
    growth : float, default 2.0
        How much longer each cooling is than the last, so that the search uses whatever time it is given.
    reheat : float, default 0.7
        Where a cooling after the first one begins, in multiples of the first temperature.

    Notes
    -----
    An iteration is one evaluated swap. Swaps are tried in a fixed order, which needs fewer trials than a random one
    (Connolly). Each cooling goes on from where the last one ended; the result is the best permutation met. What the
    search does depends on the seed alone.

    References
    ----------
    S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, "Optimization by simulated annealing", Science 220 (1983), 671-680;
    D. T. Connolly, "An improved annealing scheme for the QAP", European Journal of Operational Research 46 (1990),
    93-100.

    Examples
    --------
    >>> import moe_search as ms
    >>> solver = ms.SimulatedAnnealing(sweeps=20)
    >>> solver.solve(ms.random_quadratic(8, seed=1), ms.MaxIterations(10_000), seed=1).iterations
    10000
    """

    hot: float = 0.5
    cold: float = 0.02
    sweeps: int = 50
    growth: float = 2.0
    reheat: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("hot", self.hot, strict=True)
        require_number("cold", self.cold, strict=True)
        require_integer("sweeps", self.sweeps)
        require_number("growth", self.growth, 1.0)
        require_number("reheat", self.reheat, strict=True)
        if not self.cold <= self.hot:
            raise ValueError(f"cold must be at most hot, got cold {self.cold} and hot {self.hot}")

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel and its cooling; see `CompiledSearch.prepare`."""
        problem = run.problem
        assert isinstance(problem, PermutationProblem)
        progress = np.zeros(1, dtype=COOLING).view(np.recarray)
        progress.j = 1
        cooling = Cooling(
            progress,
            self.hot,
            self.cold,
            self.reheat,
            math.log(self.growth),
            mean_delta(run, state),
            float(min(self.sweeps, LONGEST_COOLING) * problem.num_swaps),
            REFRESH_AFTER,
        )
        return anneal_slice, (cooling, problem.block_size)

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of swaps and of coolings."""
        return super().statistics(track, arguments) | {"coolings": int(arguments[0].progress[0].coolings)}


COOLING = np.dtype(
    [
        ("i", np.int64),  # the next pair of slots is (i, j)
        ("j", np.int64),
        ("left", np.int64),  # iterations left of this cooling
        ("coolings", np.int64),  # coolings begun
        ("since_built", np.int64),  # moves since the state was built
        ("temperature", np.float64),  # in units of the value
        ("factor", np.float64),  # what the temperature is multiplied by at every iteration
    ]
)


class Cooling(NamedTuple):
    """Where an annealing stands, and how its coolings go."""

    progress: npt.NDArray[Any]  # of `COOLING`, (1,)
    hot: float
    cold: float
    reheat: float
    log_growth: float  # logarithm of how much longer each cooling is than the last
    scale: float  # the value of a temperature of one
    proposals: float  # iterations of the first cooling
    refresh_after: int  # moves after which a state is built afresh


def mean_delta(run: Run, state: Any) -> float:
    """Return the mean absolute delta, zeros left out, of random swaps at the start of a run; 0 if none changes a thing.

    There are 200 of them, fewer where a delta takes long; their number depends on the problem alone.
    """
    problem = run.problem
    assert isinstance(problem, PermutationProblem)
    if problem.block_size == 1:
        return 0.0
    operations = max(2 * problem.sweep_cost // (problem.size * problem.block_size), problem.size)
    samples = min(max(SAMPLE_OPERATIONS // operations, LEAST_SAMPLES), MOST_SAMPLES)
    rng = random_state(run.seed)
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


@compiled
def begin_cooling(cooling: Cooling) -> None:
    """Heat up, for longer each time."""
    c = cooling.progress[0]
    growth = min(c.coolings * cooling.log_growth, math.log(LONGEST_COOLING))
    proposals = min(max(cooling.proposals * math.exp(growth), 1.0), float(LONGEST_COOLING))
    c.left = int(proposals)
    start = cooling.hot if c.coolings == 0 else max(cooling.hot * cooling.reheat, cooling.cold)
    c.temperature = start * cooling.scale
    c.factor = (cooling.cold / start) ** (1.0 / c.left)
    c.coolings += 1


@compiled
def anneal_slice(state: Any, track: Track, budget: int, target: float, cooling: Cooling, block_size: int) -> int:
    """Try at most `budget` swaps; return how many. Ends early at the end of a cooling, the target or a full log.

    Between two slices the next pair to try is (i, j) and the temperature is that of the next trial: the sequence of
    trials is the same however it is cut into slices.
    """
    c, counts = cooling.progress[0], track.counts[0]
    if budget > 0 and c.left == 0:
        begin_cooling(cooling)
    totals, rng, tolerance = track.totals, track.rng, track.tolerance
    size = state.permutation.shape[0]
    i, j = c.i, c.j
    temperature, factor = c.temperature, c.factor
    moves, since_built = 0, c.since_built
    counts.done |= block_size == 1
    limit = 0 if counts.done else min(budget, c.left)
    before, work = counts.iterations, 0
    while work < limit:
        work += 1
        delta = swap_delta(state, i, j)
        if metropolis(rng, delta, temperature):
            commit_swap(state, i, j)
            totals[0] += delta
            moves += 1
            since_built += 1
            if totals[0] < totals[1] - tolerance:
                counts.iterations = before + work
                limit = work if take(track, state.permutation, target) else limit
            if since_built >= cooling.refresh_after:
                since_built = 0
                counts.stale = True
                limit = work
        temperature *= factor
        j += 1
        if j % block_size == 0:
            # The last slot of a block has none behind it.
            i = i + 2 if (i + 2) % block_size == 0 else i + 1
            i = 0 if i == size else i
            j = i + 1
    counts.iterations = before + work
    counts.moves += moves
    c.i, c.j = i, j
    c.left -= work
    c.since_built = since_built
    c.temperature = temperature
    return work
