"""Robust tabu search."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_number
from moe_search.problems.kernels import compiled, in_place, kernel_for
from moe_search.problems.moves import (
    DeltaMatrix,
    commit_swap,
    commit_swap_and_deltas,
    fill_deltas,
    fill_potential,
    largest_of,
    swap_delta,
)
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.compiled_search import CompiledSearch, Kernel, Track, take
from moe_search.solvers.engine.random_state import random_unit
from moe_search.solvers.engine.run import Run

MOVE_OPERATIONS = 20_000_000
# A float state and its deltas are built afresh after this many moves, before rounding errors add up.
REFILL_AFTER = 1 << 14
# Stamps are 32-bit numbers, since the deltas that they mask mostly are; before they run out they are set back.
LAST_STAMP = 1 << 30
NEVER = 2**31 - 1
LONGEST_TENURE = float(1 << 29)


@dataclass(frozen=True)
class TabuSearch(CompiledSearch):
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

    Notes
    -----
    An iteration is one move. The deltas of all swaps are kept up to date from move to move, for quadratic problems in
    O(1) each (see `moe_search.problems.quadratic`). What the search does depends on the seed alone.
    To compute them all at the start takes seconds on large quadratic problems (2,000 slots: one). Where it would take
    more than a fiftieth of one, every swap is tried once before and committed if it improves, so that a limit that is
    too short for the search itself gives a descent; that pass is no iteration.
    The article draws tenures uniformly from 0.9 to 1.1 and has an aspiration of 2 or more; the cubed draw ended nearer
    to the best known values of tai50a and tai100a after equal numbers of iterations.

    References
    ----------
    E. D. Taillard, "Robust taboo search for the quadratic assignment problem", Parallel Computing 17 (1991), 443-455.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.TabuSearch().solve(ms.random_quadratic(8, seed=1), ms.MaxIterations(1_000), seed=1).moves
    1000
    """

    tenure: tuple[float, float] = (0.0, 8.0)
    aspiration: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.tenure, tuple) or len(self.tenure) != 2:
            raise TypeError(f"tenure must be two numbers, got {self.tenure!r}")
        low, high = (require_number("tenure", number) for number in self.tenure)
        if not low <= high:
            raise ValueError(f"tenure must be 0 <= low <= high, got {self.tenure!r}")
        require_number("aspiration", self.aspiration, strict=True, finite=False)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse problems on which a single move takes so long that no limit of time could be kept."""
        if not isinstance(problem, PermutationProblem) or problem.sweep_cost <= MOVE_OPERATIONS:
            return super().refuses(problem)
        return (
            f"a move would take {problem.sweep_cost:,} operations to update the deltas of all swaps,"
            f" {MOVE_OPERATIONS:,} at most; LocalSearch takes any size"
        )

    def iteration_work(self, problem: PermutationProblem) -> int:
        """Return the number of deltas that a move brings up to date."""
        return problem.size * problem.block_size

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel, the deltas of all swaps and the tabu list; see `CompiledSearch.prepare`."""
        problem = run.problem
        assert isinstance(problem, PermutationProblem)
        matrix = problem.delta_matrix()
        shortest, longest = (min(float(factor) * problem.block_size, LONGEST_TENURE) for factor in self.tenure)
        tenure = Tenure(shortest, longest, int(min(self.aspiration * problem.block_size**2, LAST_STAMP)))
        return descent_first(problem, state, tabu_slice, (matrix, first_tabu(problem, matrix), tenure))

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of swaps: of all swaps at every move."""
        size, block_size = arguments[1].masks.shape[0], arguments[1].block_size
        evaluated = int(track.counts[0].iterations) * (size * (block_size - 1) // 2)
        return super().statistics(track, arguments) | {"swaps evaluated": evaluated}


# The next swap of the pass that comes first; i is the number of slots at its end.
CURSOR = np.dtype([("i", np.int64), ("j", np.int64)])


class Tabu(NamedTuple):
    """Which swaps are tabu, and how much of the deltas and masks is filled: what a search keeps beside all deltas.

    ``stamps[i, e]`` is the iteration until which slot i is kept from expert e. ``masks[i, j]``, with i < j, is the
    lesser stamp of slot i and the expert of j, and of slot j and the expert of i, the one that decides; never over for
    two slots of one expert. No mask of row i is less than ``oldest[i]``.
    """

    filled: npt.NDArray[np.int64]  # (2,): rows of the potential, and of deltas and masks, that are up to date
    base: npt.NDArray[np.int64]  # (1,): the iteration that stamps count from
    stamps: npt.NDArray[np.int32]  # (size, experts)
    masks: npt.NDArray[np.int32]  # (size, size)
    oldest: npt.NDArray[np.int32]  # (size,)
    expert: npt.NDArray[np.int64]  # (size,): of every slot
    nothing: Any  # larger than any delta, and of their type
    block_size: int
    capacity: int  # slots of an expert in a block
    last_stamp: int  # iterations after which stamps are set back
    inexact: bool  # whether values are floats, whose rounding errors add up


class Tenure(NamedTuple):
    """The parameters of a tabu search."""

    shortest: float  # the fewest iterations that a slot is kept from going back
    longest: float  # the most
    aspiration: int  # iterations after which a swap is forced


def first_tabu(problem: PermutationProblem, matrix: DeltaMatrix) -> Tabu:
    """Return where a search stands before its first move, nothing filled."""
    size, block_size = problem.size, problem.block_size
    return Tabu(
        filled=np.zeros(2, dtype=np.int64),
        base=np.zeros(1, dtype=np.int64),
        stamps=first_stamps(size, block_size, block_size // problem.capacity),
        masks=np.zeros((size, size), dtype=np.int32),
        oldest=np.full(size, NEVER, dtype=np.int32),
        expert=np.zeros(size, dtype=np.int64),
        nothing=largest_of(matrix.deltas.dtype),
        block_size=block_size,
        capacity=problem.capacity,
        last_stamp=LAST_STAMP,
        inexact=not problem.integral,
    )


def first_stamps(size: int, block_size: int, experts: int) -> npt.NDArray[np.int32]:
    """Return the stamps before the first move: all past, none equal, so that forced swaps come one at a time."""
    # In 32 bits from the start: of thousands of slots, wider numbers on the way take a fraction of a second.
    slot = np.arange(size, dtype=np.int32) % block_size
    return (-1 - slot * block_size)[:, None] - slot[:experts]


def descent_first(
    problem: PermutationProblem, state: Any, kernel: Kernel, arguments: tuple[Any, ...]
) -> tuple[Kernel, tuple[Any, ...]]:
    """Return a kernel that fills the deltas of all swaps, and its arguments; where that takes long, after a descent."""
    if problem.fill_cost <= MOVE_OPERATIONS:
        return kernel, arguments
    cursor = np.zeros(1, dtype=CURSOR).view(np.recarray)
    cursor.j = 1
    return descend_and_search, (*arguments, cursor, problem.block_size, kernel_for(state, kernel))


def descend_and_search(state: Any, track: Track, budget: int, target: float, *arguments: Any) -> int:
    """Do at most `budget` units of work of the pass over all swaps, or after it of the search.

    It is plain Python, so that those who need no such pass wait for no kernel of it.
    """
    *others, cursor, block_size, kernel = arguments
    if cursor[0].i < track.incumbent.shape[0]:
        return descend_slice(state, track, budget, target, cursor, block_size)
    return kernel(state, track, budget, target, *others)


@compiled
def descend_slice(state: Any, track: Track, budget: int, target: float, cursor: Any, block_size: int) -> int:
    """Try at most `budget` swaps, from the cursor on, and commit those that improve; return how many were tried."""
    totals, counts, tolerance = track.totals, track.counts[0], track.tolerance
    size = state.permutation.shape[0]
    i, j = cursor[0].i, cursor[0].j
    limit, work = budget, 0
    while work < limit and i < size:
        if j % block_size == 0:
            # The last slot of a block has none behind it.
            i += 1
            j = i + 1
            continue
        work += 1
        delta = swap_delta(state, i, j)
        if delta < -tolerance:
            commit_swap(state, i, j)
            totals[0] += delta
            counts.moves += 1
            if totals[0] < totals[1] - tolerance and take(track, state.permutation, target):
                limit = work
        j += 1
    cursor[0].i = i
    cursor[0].j = j
    return max(work, 1)


@compiled
def tabu_slice(
    state: Any, track: Track, budget: int, target: float, matrix: DeltaMatrix, tabu: Tabu, tenure: Tenure
) -> int:
    """Fill rows of deltas while any is missing, else move; return the work done in pairs of slots.

    Between two moves the deltas are those of the current permutation, and the masks those of its stamps. Slices end at
    fixed iterations to build floats afresh and to set stamps back, whatever the clock says; all is then filled anew.
    They end early at the target or with a full log.
    """
    totals, counts, tolerance = track.totals, track.counts[0], track.tolerance
    masks, oldest, stamps, expert = tabu.masks, tabu.oldest, tabu.stamps, tabu.expert
    permutation, block_size = state.permutation, tabu.block_size
    if budget == 0:
        return 0
    if tabu.filled[1] < permutation.shape[0]:
        return fill_rows(state, matrix, tabu, budget)
    pairs = permutation.shape[0] * block_size
    moves = min(max(budget // pairs, 1), REFILL_AFTER - counts.iterations % REFILL_AFTER)
    work = 0
    if tabu.capacity == block_size:
        # All permutations are one: every slot of a block has the same expert.
        counts.done = True
    while work < moves and not counts.done:
        work += 1
        counts.iterations += 1
        now = counts.iterations - tabu.base[0]
        # Rounding may take the current value below the incumbent's, by less than counts; two slots of one expert, with
        # their delta of 0, would then pass for an improvement.
        needed = min(totals[1] - totals[0] - tolerance, totals.dtype.type(0))
        a, b = best_swap(
            matrix.deltas, matrix.least, masks, oldest, tabu.nothing, now, now - tenure.aspiration, needed, block_size
        )
        # Where everything is tabu only time passes.
        if a >= 0:
            totals[0] += matrix.deltas[a, b]
            commit_swap_and_deltas(state, matrix, block_size, a, b)
            until_a = now + random_tenure(track.rng, tenure.shortest, tenure.longest)
            until_b = now + random_tenure(track.rng, tenure.shortest, tenure.longest)
            stamp(stamps, masks, oldest, expert, block_size, a, b, until_a, until_b)
            counts.moves += 1
            if totals[0] < totals[1] - tolerance and take(track, permutation, target):
                moves = work
    if work > 0 and counts.iterations % REFILL_AFTER == 0:
        refill(track, tabu)
    return work * pairs


@compiled
def fill_rows(state: Any, matrix: DeltaMatrix, tabu: Tabu, budget: int) -> int:
    """Fill some rows of the potential while any is missing, then of deltas and masks; return the pairs of slots."""
    permutation, filled, block_size = state.permutation, tabu.filled, tabu.block_size
    size = permutation.shape[0]
    # Rows of a potential that is not kept would take no time, and all of the deltas come at once after that.
    part = 0 if filled[0] < matrix.potential.shape[0] else 1
    first = filled[part]
    last = min(first + max(budget // size, 1), size)
    if part == 0:
        fill_potential(state, matrix, first, last)
    else:
        fill_deltas(state, matrix, block_size, first, last)
        for i in range(size):
            tabu.expert[i] = permutation[i] % block_size // tabu.capacity
        for i in range(first, last):
            fill_mask_row(tabu.stamps, tabu.masks, tabu.oldest, tabu.expert, block_size, i)
    filled[part] = last
    return (last - first) * size


@compiled
def refill(track: Track, tabu: Tabu) -> None:
    """Have floats built afresh, and stamps that run out count from a later iteration: all is then to be filled anew."""
    counts, stamps, filled = track.counts[0], tabu.stamps, tabu.filled
    if tabu.inexact:
        counts.stale = True
        filled[0] = filled[1] = 0
    if counts.iterations - tabu.base[0] > tabu.last_stamp:
        tabu.base[0] += tabu.last_stamp
        for i in range(stamps.shape[0]):
            for j in range(stamps.shape[1]):
                # Those that are over are set to the least there is.
                stamps[i, j] = max(stamps[i, j], 0) - tabu.last_stamp
        filled[0] = filled[1] = 0


@in_place
def fill_mask_row(stamps: Any, masks: Any, oldest: Any, expert: Any, block_size: int, i: int) -> None:
    """Compute the masks of all swaps with slot i."""
    start, of_i, never = i // block_size * block_size, expert[i], masks.dtype.type(NEVER)
    for j in range(start, i):
        mask = never if expert[j] == of_i else min(stamps[i, expert[j]], stamps[j, of_i])
        masks[j, i] = mask
        oldest[j] = min(oldest[j], mask)
    least = oldest[i]
    for j in range(i + 1, start + block_size):
        mask = never if expert[j] == of_i else min(stamps[i, expert[j]], stamps[j, of_i])
        masks[i, j] = mask
        least = min(least, mask)
    oldest[i] = least


@partial(in_place, fastmath={"nnan", "nsz"})
def best_swap(
    deltas: Any,
    least_of_row: Any,
    masks: Any,
    oldest: Any,
    nothing: Any,
    now: int,
    forced: int,
    needed: Any,
    block_size: int,
) -> tuple[int, int]:
    """Return the best swap that may be made, (-1, -1) if there is none.

    One to a value below the incumbent's (a delta below `needed`) first, else the best of those whose stamps are before
    `forced`, else the best that is not tabu.
    """
    size = deltas.shape[0]
    stamp_now = masks.dtype.type(now)
    best, best_row = nothing, -1
    least, least_row = nothing, -1
    for i in range(size):
        # Most rows have nothing better than what is already found, tabu or not.
        if least_of_row[i] >= best:
            continue
        allowed_in_row = nothing
        least_in_row = nothing
        # Unsigned, or Numba allows for a negative index and gives up the SIMD code.
        for j in range(np.uintp(i + 1), np.uintp((i // block_size + 1) * block_size)):
            delta = deltas[i, j]
            least_in_row = min(least_in_row, delta)
            allowed_in_row = min(allowed_in_row, delta if masks[i, j] < stamp_now else nothing)
        least_of_row[i] = least_in_row
        if allowed_in_row < best:
            best, best_row = allowed_in_row, i
        if least_in_row < least:
            least, least_row = least_in_row, i
    if least < needed:
        return least_row, find(deltas, masks, masks.dtype.type(NEVER), least, least_row)
    if oldest_mask(masks, oldest, forced, block_size) < forced:
        return best_forced(deltas, masks, forced, block_size)
    if best_row < 0:
        return -1, -1
    return best_row, find(deltas, masks, stamp_now, best, best_row)


@in_place
def oldest_mask(masks: Any, oldest: Any, forced: int, block_size: int) -> int:
    """Return the least mask, or one that is not before `forced` if none is."""
    least = NEVER
    for i in range(masks.shape[0]):
        if oldest[i] < forced:
            oldest[i] = NEVER
            for j in range(np.uintp(i + 1), np.uintp((i // block_size + 1) * block_size)):
                oldest[i] = min(oldest[i], masks[i, j])
        least = min(least, oldest[i])
    return least


@in_place
def find(deltas: Any, masks: Any, before: Any, delta: Any, i: int) -> int:
    """Return the first slot j of row i whose swap has a delta and a mask below `before`."""
    j = i + 1
    while deltas[i, j] != delta or masks[i, j] >= before:
        j += 1
    return j


@in_place
def best_forced(deltas: Any, masks: Any, forced: int, block_size: int) -> tuple[int, int]:
    """Return the best of the swaps whose stamps are before `forced`."""
    a, b = -1, -1
    for i in range(deltas.shape[0]):
        for j in range(i + 1, (i // block_size + 1) * block_size):
            if masks[i, j] < forced and (a < 0 or deltas[i, j] < deltas[a, b]):
                a, b = i, j
    return a, b


@in_place
def stamp(
    stamps: Any,
    masks: Any,
    oldest: Any,
    expert: Any,
    block_size: int,
    a: int,
    b: int,
    until_a: int,
    until_b: int,
) -> None:
    """Keep slots a and b, just swapped, from going back until their iterations."""
    stamps[a, expert[a]] = until_a
    stamps[b, expert[b]] = until_b
    expert[a], expert[b] = expert[b], expert[a]
    fill_mask_row(stamps, masks, oldest, expert, block_size, a)
    fill_mask_row(stamps, masks, oldest, expert, block_size, b)


@in_place
def random_tenure(rng: Any, shortest: float, longest: float) -> int:
    """Return a number of iterations; the cube of a uniform number makes most short and a few long."""
    unit = random_unit(rng)
    return int(shortest + unit * unit * unit * (longest - shortest))
