"""Robust tabu search."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moe_search.problems.kernels import kernel_for
from moe_search.problems.moves import DeltaMatrix, commit_swap_and_deltas, copy_permutation, fill_deltas, fill_potential
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.parameters import store_plain
from moe_search.solvers.engine.random_state import random_state, random_unit
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import SearchRun, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion

LOG_LENGTH = 512
MOST_OPERATIONS = 20_000_000
# A float state and its deltas are built afresh after this many moves, before rounding errors add up.
REFRESH_AFTER = 1 << 14
# Stamps are 32-bit numbers, since the deltas that they mask mostly are; before they run out they are set back.
LAST_STAMP = 1 << 30
NEVER = 2**31 - 1
LONGEST_TENURE = float(1 << 29)


@dataclass(frozen=True)
class TabuSearch(Solver):
    """Commit the best swap that is not tabu, improving or not; Taillard's robust tabu search.

    A slot that leaves an expert (or a seat, where each holds one slot) is kept from going back for a random number of
    iterations; a swap is tabu if it would bring both of its slots back. A swap to a new incumbent is always allowed,
    and one that would take a slot where it has not been for `aspiration` iterations is forced.

    Parameters
    ----------
    tenure : (float, float), default (0.0, 8.0)
        Range of the number of iterations that a slot is kept from going back, in multiples of the block size, drawn at
        every move: low + u**3 (high - low) with u uniform, hence mostly short and at times long.
    aspiration : float, default 5.0
        Iterations after which a swap is forced, in multiples of the block size squared.

    Raises
    ------
    ValueError, TypeError
        If a parameter is out of range.

    Notes
    -----
    An iteration is one move. The deltas of all swaps are kept up to date from move to move, for quadratic problems in
    O(1) each (see `moe_search.problems.quadratic`). What the search does depends on the seed alone.
    The article draws tenures uniformly from 0.9 to 1.1 and has an aspiration of 2 or more; the cubed draw ended nearer
    to the best known values of tai50a and tai100a after equal numbers of iterations.

    References
    ----------
    E. D. Taillard, "Robust taboo search for the quadratic assignment problem", Parallel Computing 17 (1991), 443-455.
    """

    tenure: tuple[float, float] = (0.0, 8.0)
    aspiration: float = 5.0

    def __post_init__(self) -> None:
        store_plain(self)
        numbers = [*self.tenure, self.aspiration] if isinstance(self.tenure, tuple) else []
        if len(numbers) != 3 or any(isinstance(x, bool) or not isinstance(x, int | float) for x in numbers):
            raise TypeError(
                f"tenure must be two numbers and aspiration one, got {self.tenure!r} and {self.aspiration!r}"
            )
        if not 0 <= numbers[0] <= numbers[1] < math.inf:
            raise ValueError(f"tenure must be 0 <= low <= high, got {self.tenure!r}")
        if not numbers[2] > 0:
            raise ValueError(f"aspiration must be positive, got {self.aspiration!r}")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse problems on which a single move takes so long that no limit of time could be kept."""
        if problem.sweep_cost <= MOST_OPERATIONS:
            return None
        return (
            f"a move would take {problem.sweep_cost:,} operations to update the deltas of all swaps,"
            f" {MOST_OPERATIONS:,} at most; LocalSearch takes any size"
        )

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
        matrix = problem.delta_matrix()
        tabu = Tabu(
            totals=np.array([run.value, run.value], dtype=run.dtype),
            counters=np.zeros(5, dtype=np.int64),
            incumbent=run.incumbent,
            stamps=first_stamps(problem.size, problem.block_size),
            masks=np.zeros((problem.size, problem.size), dtype=np.int32),
            log_values=np.zeros(LOG_LENGTH, dtype=run.dtype),
            log_iterations=np.zeros(LOG_LENGTH, dtype=np.int64),
            rng=random_state(seed),
            tolerance=run.tolerance,
            nothing=largest_of(matrix.deltas.dtype),
        )
        shape = problem.block_size, problem.capacity
        pairs = problem.size * problem.block_size
        tenure = tuple(min(float(factor) * problem.block_size, LONGEST_TENURE) for factor in self.tenure)
        aspiration = int(min(self.aspiration * problem.block_size**2, LAST_STAMP))

        rows = np.zeros(2, dtype=np.int64)

        def advance(budget: int, target: float) -> Slice:
            nonlocal state
            if rows[1] < problem.size:
                return Slice(kernel_for(state, fill_slice)(state, matrix, tabu, rows, budget, *shape), 0, (), False)
            before = int(tabu.counters[ITERATIONS])
            tabu.counters[LOGGED] = 0
            # Slices end at fixed iterations to build floats afresh and to set stamps back, whatever the clock says.
            moves = min(max(budget // pairs, 1), REFRESH_AFTER - before % REFRESH_AFTER)
            work = kernel_for(state, tabu_slice)(state, matrix, tabu, moves, target, *shape, *tenure, aspiration)
            iterations, logged = int(tabu.counters[ITERATIONS]), int(tabu.counters[LOGGED])
            if iterations % REFRESH_AFTER == 0 and work:
                if not problem.integral:
                    state = problem.state(state.permutation)
                    tabu.totals[0] = problem.value(state.permutation)
                    rows[:] = 0
                if iterations - tabu.counters[BASE] > LAST_STAMP:
                    tabu.counters[BASE] += LAST_STAMP
                    tabu.stamps[:] = np.maximum(tabu.stamps, 0) - LAST_STAMP
                    rows[:] = 0
            improvements = zip(tabu.log_iterations[:logged], tabu.log_values[:logged], strict=True)
            return Slice(work * pairs, iterations, improvements, bool(tabu.counters[DONE]))

        run.clock.compile(kernel_for(state, fill_slice), state, matrix, tabu, rows, 0, *shape)
        run.clock.compile(kernel_for(state, tabu_slice), state, matrix, tabu, 0, -math.inf, *shape, *tenure, aspiration)
        run.loop(advance, pairs)
        moves = int(tabu.counters[MOVES])
        swaps = pairs_of_slots(problem.size, problem.block_size)
        statistics = {"swaps evaluated": run.iterations * swaps, "swaps committed": moves}
        return run.result(repr(self), moves=moves, statistics=statistics)


ITERATIONS, MOVES, LOGGED, DONE, BASE = range(5)


class Tabu(NamedTuple):
    """What a tabu search carries from slice to slice.

    Parameters
    ----------
    totals : ndarray, shape (2,)
        Value of the current permutation and of the incumbent.
    counters : ndarray of int64, shape (5,)
        Iterations, moves, improvements logged in this slice, whether the search has ended, and the iteration that
        stamps count from.
    incumbent : ndarray of int64, shape (size,)
        The best permutation met.
    stamps : ndarray of int32, shape (size, size)
        Entry (i, j): the iteration until which slot i is kept from the expert of slot j. Its columns move with the
        permutation, so that the stamps of a row of swaps lie in a row.
    masks : ndarray of int32, shape (size, size)
        The lesser stamp of (i, j) and (j, i), the one that decides; never over for two slots of one expert.
    log_values, log_iterations : ndarray
        Improvements of the incumbent in this slice.
    rng : ndarray of uint64, shape (4,)
        State of the random numbers.
    tolerance : int or float
        The least difference that counts.
    nothing : int or float
        Larger than any delta, and of their type.
    """

    totals: npt.NDArray[Any]
    counters: npt.NDArray[np.int64]
    incumbent: Permutation
    stamps: npt.NDArray[np.int32]
    masks: npt.NDArray[np.int32]
    log_values: npt.NDArray[Any]
    log_iterations: npt.NDArray[np.int64]
    rng: npt.NDArray[np.uint64]
    tolerance: Any
    nothing: Any


def largest_of(dtype: np.dtype[Any]) -> np.generic:
    """Return the largest number of a type, as a scalar of it."""
    return dtype.type(np.inf if dtype.kind == "f" else np.iinfo(dtype).max)


def pairs_of_slots(size: int, block_size: int) -> int:
    """Return the number of swaps inside the blocks."""
    return size // block_size * (block_size * (block_size - 1) // 2)


def first_stamps(size: int, block_size: int) -> npt.NDArray[np.int32]:
    """Return the stamps before the first move: all past, none equal, so that forced swaps come one at a time."""
    slot = np.arange(size) % block_size
    return (-1 - slot[:, None] * block_size - slot[None, :]).astype(np.int32)


@njit(cache=True, nogil=True)
def fill_slice(
    state: Any,
    matrix: DeltaMatrix,
    tabu: Tabu,
    rows: npt.NDArray[np.int64],
    budget: int,
    block_size: int,
    capacity: int,
) -> int:
    """Fill some rows of the potential, then of deltas and masks; `rows` counts both. Returns the work in pairs."""
    size = state.permutation.shape[0]
    count = min(budget // size, size - rows[0]) if rows[0] < size else min(budget // size, size - rows[1])
    count = max(count, 1 if budget > 0 else 0)
    if rows[0] < size:
        fill_potential(state, matrix, rows[0], rows[0] + count)
        rows[0] += count
    else:
        fill_deltas(state, matrix, block_size, rows[1], rows[1] + count)
        for i in range(rows[1], rows[1] + count):
            fill_mask_row(state, tabu, block_size, capacity, i)
        rows[1] += count
    return count * size


@njit(cache=True, nogil=True)
def fill_mask_row(state: Any, tabu: Tabu, block_size: int, capacity: int, i: int) -> None:
    """Compute the masks of all swaps with slot i."""
    stamps, masks, permutation = tabu.stamps, tabu.masks, state.permutation
    start = i // block_size * block_size
    for j in range(start, i):
        masks[j, i] = min(stamps[i, j], stamps[j, i])
    for j in range(i, start + block_size):
        masks[i, j] = min(stamps[i, j], stamps[j, i])
    if capacity > 1:
        for j in range(start, start + block_size):
            if permutation[i] // capacity == permutation[j] // capacity:
                masks[min(i, j), max(i, j)] = NEVER


@njit(cache=True, nogil=True)
def tabu_slice(
    state: Any,
    matrix: DeltaMatrix,
    tabu: Tabu,
    budget: int,
    target: float,
    block_size: int,
    capacity: int,
    shortest: float,
    longest: float,
    aspiration: int,
) -> int:
    """Make at most `budget` iterations; return how many. Ends early at the target or with a full log."""
    totals, counters = tabu.totals, tabu.counters
    work = 0
    if capacity == block_size:
        # All permutations are one: every slot of a block has the same expert.
        counters[DONE] = 1
    while work < budget and counters[DONE] == 0 and counters[LOGGED] < tabu.log_values.shape[0]:
        work += 1
        counters[ITERATIONS] += 1
        now = counters[ITERATIONS] - counters[BASE]
        # Rounding may take the current value below the incumbent's, by less than counts; two slots of one expert, with
        # their delta of 0, would then pass for an improvement.
        needed = min(totals[1] - totals[0] - tabu.tolerance, totals.dtype.type(0))
        a, b = best_swap(matrix.deltas, tabu.masks, tabu.nothing, now, now - aspiration, needed, block_size)
        # Where everything is tabu only time passes.
        if a >= 0:
            totals[0] += matrix.deltas[a, b]
            commit_swap_and_deltas(state, matrix, block_size, a, b)
            stamp(state, tabu, now, block_size, capacity, shortest, longest, a, b)
            counters[MOVES] += 1
            if totals[0] < totals[1] - tabu.tolerance:
                totals[1] = totals[0]
                copy_permutation(tabu.incumbent, state.permutation)
                tabu.log_values[counters[LOGGED]] = totals[0]
                tabu.log_iterations[counters[LOGGED]] = counters[ITERATIONS]
                counters[LOGGED] += 1
                if totals[1] <= target:
                    counters[DONE] = 1
    return work


@njit(cache=True, nogil=True)
def best_swap(
    deltas: Any, masks: Any, nothing: Any, now: int, forced: int, needed: Any, block_size: int
) -> tuple[int, int]:
    """Return the best swap that may be made, (-1, -1) if there is none.

    One to a value below the incumbent's (a delta below `needed`) first, else the best of those whose stamps are before
    `forced`, else the best that is not tabu.
    """
    size = deltas.shape[0]
    stamp_now = masks.dtype.type(now)
    best, best_row = nothing, -1
    least, least_row = nothing, -1
    oldest = masks.dtype.type(NEVER)
    for i in range(size):
        allowed_in_row = nothing
        least_in_row = nothing
        # Unsigned, or Numba allows for a negative index and gives up the SIMD code.
        for j in range(np.uintp(i + 1), np.uintp((i // block_size + 1) * block_size)):
            delta = deltas[i, j]
            mask = masks[i, j]
            least_in_row = min(least_in_row, delta)
            oldest = min(oldest, mask)
            allowed_in_row = min(allowed_in_row, delta if mask < stamp_now else nothing)
        if allowed_in_row < best:
            best, best_row = allowed_in_row, i
        if least_in_row < least:
            least, least_row = least_in_row, i
    if least < needed:
        return least_row, find(deltas, masks, masks.dtype.type(NEVER), least, least_row)
    if oldest < forced:
        return best_forced(deltas, masks, forced, block_size)
    if best_row < 0:
        return -1, -1
    return best_row, find(deltas, masks, stamp_now, best, best_row)


@njit(cache=True, nogil=True)
def find(deltas: Any, masks: Any, before: Any, delta: Any, i: int) -> int:
    """Return the first slot j of row i whose swap has a delta and a mask below `before`."""
    j = i + 1
    while deltas[i, j] != delta or masks[i, j] >= before:
        j += 1
    return j


@njit(cache=True, nogil=True)
def best_forced(deltas: Any, masks: Any, forced: int, block_size: int) -> tuple[int, int]:
    """Return the best of the swaps whose stamps are before `forced`."""
    a, b = -1, -1
    for i in range(deltas.shape[0]):
        for j in range(i + 1, (i // block_size + 1) * block_size):
            if masks[i, j] < forced and (a < 0 or deltas[i, j] < deltas[a, b]):
                a, b = i, j
    return a, b


@njit(cache=True, nogil=True)
def stamp(
    state: Any,
    tabu: Tabu,
    now: int,
    block_size: int,
    capacity: int,
    shortest: float,
    longest: float,
    a: int,
    b: int,
) -> None:
    """Keep slots a and b, just swapped, from going back for a random time."""
    stamps, permutation = tabu.stamps, state.permutation
    start = a // block_size * block_size
    for i in range(start, start + block_size):
        stamps[i, a], stamps[i, b] = stamps[i, b], stamps[i, a]
    until_a = now + random_tenure(tabu.rng, shortest, longest)
    until_b = now + random_tenure(tabu.rng, shortest, longest)
    stamps[a, b] = until_a
    stamps[b, a] = until_b
    if capacity > 1:
        for j in range(start, start + block_size):
            if permutation[j] // capacity == permutation[b] // capacity:
                stamps[a, j] = until_a
            elif permutation[j] // capacity == permutation[a] // capacity:
                stamps[b, j] = until_b
    fill_mask_row(state, tabu, block_size, capacity, a)
    fill_mask_row(state, tabu, block_size, capacity, b)


@njit(cache=True, nogil=True)
def random_tenure(rng: Any, shortest: float, longest: float) -> int:
    """Return a number of iterations; the cube of a uniform number makes most short and a few long."""
    unit = random_unit(rng)
    return int(shortest + unit * unit * unit * (longest - shortest))
