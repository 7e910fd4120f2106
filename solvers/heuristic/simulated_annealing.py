"""Simulated annealing with reheating."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moe_search.problems.kernels import kernel_for
from moe_search.problems.moves import commit_swap, copy_permutation, swap_delta
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.parameters import require_count, require_number, store_plain
from moe_search.solvers.engine.random_state import metropolis, random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import SearchRun, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion
from moe_search.solvers.heuristic.sampled_deltas import mean_delta

LOG_LENGTH = 512
# A float state is built afresh after this many moves, before rounding errors add up.
REFRESH_AFTER = 1 << 17
LONGEST_COOLING = 1 << 50
ITERATIONS, MOVES, LOGGED, DONE, FIRST, SECOND, LEFT, COOLINGS, SINCE_BUILT = range(9)


@dataclass(frozen=True)
class SimulatedAnnealing(Solver):
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

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of range.

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
    """

    hot: float = 0.5
    cold: float = 0.02
    sweeps: int = 50
    growth: float = 2.0
    reheat: float = 0.7

    def __post_init__(self) -> None:
        store_plain(self)
        require_number("hot", self.hot, least=0.0, strict=True)
        require_number("cold", self.cold, least=0.0, strict=True)
        require_count("sweeps", self.sweeps)
        require_number("growth", self.growth, least=1.0)
        require_number("reheat", self.reheat, least=0.0, strict=True)
        if not self.cold <= self.hot:
            raise ValueError(f"cold must be at most hot, got cold {self.cold} and hot {self.hot}")

    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Search; see `Solver.solve`."""
        run = SearchRun(problem, stop, seed, initial, on_improvement)
        state = problem.state(run.initial)
        annealing = Annealing(
            np.array([run.value, run.value], dtype=run.dtype),
            np.zeros(9, dtype=np.int64),
            np.zeros(2),
            run.incumbent,
            np.zeros(LOG_LENGTH, dtype=run.dtype),
            np.zeros(LOG_LENGTH, dtype=np.int64),
            random_state(seed),
            run.tolerance,
        )
        scale = mean_delta(run, state)
        swaps = problem.size // problem.block_size * (problem.block_size * (problem.block_size - 1) // 2)
        counters = annealing.counters
        counters[SECOND] = 1

        def begin_cooling() -> None:
            cooling = int(counters[COOLINGS])
            growth = min(cooling * math.log(self.growth), math.log(LONGEST_COOLING))
            proposals = int(min(self.sweeps, LONGEST_COOLING) * swaps * math.exp(growth))
            counters[LEFT] = min(max(proposals, 1), LONGEST_COOLING)
            start = self.hot if cooling == 0 else max(self.hot * self.reheat, self.cold)
            annealing.temperature[:] = start * scale, (self.cold / start) ** (1.0 / counters[LEFT])
            counters[COOLINGS] += 1

        def advance(budget: int, target: float) -> Slice:
            nonlocal state
            counters[LOGGED] = 0
            if counters[LEFT] == 0:
                begin_cooling()
            work = kernel_for(state, anneal_slice)(state, annealing, budget, target, problem.block_size)
            if counters[SINCE_BUILT] >= REFRESH_AFTER:
                state = problem.state(state.permutation)
                annealing.totals[0] = problem.value(state.permutation)
                counters[SINCE_BUILT] = 0
            logged = int(counters[LOGGED])
            improvements = zip(annealing.log_iterations[:logged], annealing.log_values[:logged], strict=True)
            return Slice(work, int(counters[ITERATIONS]), improvements, bool(counters[DONE]))

        run.clock.compile(kernel_for(state, anneal_slice), state, annealing, 0, -math.inf, problem.block_size)
        run.loop(advance)
        moves = int(counters[MOVES])
        statistics = {"swaps evaluated": run.iterations, "swaps committed": moves, "coolings": int(counters[COOLINGS])}
        return run.result(repr(self), moves=moves, statistics=statistics)


class Annealing(NamedTuple):
    """What an annealing carries from slice to slice.

    Parameters
    ----------
    totals : ndarray, shape (2,)
        Value of the current permutation and of the incumbent.
    counters : ndarray of int64, shape (9,)
        Iterations; moves; improvements logged in this slice; whether the search has ended; the next pair of slots;
        iterations left of this cooling; coolings begun; moves since the state was built.
    temperature : ndarray of float64, shape (2,)
        The temperature, in units of the value, and its factor from iteration to iteration.
    incumbent : ndarray of int64, shape (size,)
        The best permutation met.
    log_values, log_iterations : ndarray
        Improvements of the incumbent in this slice.
    rng : ndarray of uint64, shape (4,)
        State of the random numbers.
    tolerance : int or float
        The least difference that counts.
    """

    totals: npt.NDArray[Any]
    counters: npt.NDArray[np.int64]
    temperature: npt.NDArray[np.float64]
    incumbent: Permutation
    log_values: npt.NDArray[Any]
    log_iterations: npt.NDArray[np.int64]
    rng: npt.NDArray[np.uint64]
    tolerance: Any


@njit(cache=True, nogil=True)
def anneal_slice(state: Any, annealing: Annealing, budget: int, target: float, block_size: int) -> int:
    """Try at most `budget` swaps; return how many. Ends early at the end of a cooling, the target or a full log."""
    totals, counters = annealing.totals, annealing.counters
    size = state.permutation.shape[0]
    i, j = counters[FIRST], counters[SECOND]
    temperature, factor = annealing.temperature
    work = 0
    if block_size == 1:
        counters[DONE] = 1
    limit = min(budget, counters[LEFT])
    while work < limit and counters[DONE] == 0 and counters[LOGGED] < annealing.log_values.shape[0]:
        work += 1
        delta = swap_delta(state, i, j)
        if metropolis(annealing.rng, delta, temperature):
            commit_swap(state, i, j)
            totals[0] += delta
            counters[MOVES] += 1
            counters[SINCE_BUILT] += 1
            if totals[0] < totals[1] - annealing.tolerance:
                totals[1] = totals[0]
                copy_permutation(annealing.incumbent, state.permutation)
                annealing.log_values[counters[LOGGED]] = totals[0]
                annealing.log_iterations[counters[LOGGED]] = counters[ITERATIONS] + work
                counters[LOGGED] += 1
                if totals[1] <= target:
                    counters[DONE] = 1
        temperature *= factor
        j += 1
        if j % block_size == 0:
            # The last slot of a block has none behind it.
            i = i + 2 if (i + 2) % block_size == 0 else i + 1
            i = 0 if i == size else i
            j = i + 1
        if counters[SINCE_BUILT] >= REFRESH_AFTER:
            break
    counters[FIRST], counters[SECOND] = i, j
    counters[ITERATIONS] += work
    counters[LEFT] -= work
    annealing.temperature[0] = temperature
    return work
