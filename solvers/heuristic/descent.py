"""Kernels of local search: resumable passes over the swap and the insertion neighborhood."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moe_search.problems.moves import commit_swap, copy_permutation, slide, swap_delta
from moe_search.problems.permutation_problem import Permutation
from moe_search.solvers.engine.random_state import random_below

SWAP, INSERTION, BOTH = range(3)
FIRST, BEST = range(2)

LOG_LENGTH = 512
# Rounding errors of floating-point states add up over about this many commits before the state is built afresh.
REFRESH_AFTER = 1 << 17

CURSOR = np.dtype(
    [
        ("phase", np.int64),  # the neighborhood being searched, SWAP or INSERTION
        ("i", np.int64),  # swap: the next pair of slots is (i, j); insertion: origin, as a seat, of the carried slot
        ("j", np.int64),  # insertion: the seat where the carried slot stands
        ("step", np.int64),  # insertion: +1 or -1, the direction away from the origin
        ("returning", np.bool_),  # insertion: on the way back to the origin
        ("unimproved", np.int64),  # pairs (swap) or slots (insertion) since the last improvement
        ("best_i", np.int64),
        ("best_j", np.int64),
        ("iterations", np.int64),
        ("moves", np.int64),
        ("insertions", np.int64),  # those of the iterations that evaluated an insertion
        ("insertion_moves", np.int64),
        ("restarts", np.int64),
        ("shuffles", np.int64),  # since the state was built
        ("logged", np.int64),
        ("done", np.bool_),  # the target, or a local optimum and no restarts
        ("refresh", np.bool_),  # the state is to be built afresh
    ]
)


class Descent(NamedTuple):
    """What a descent carries from slice to slice.

    Parameters
    ----------
    totals : ndarray, shape (4,)
        Value of the current permutation; value of the incumbent; delta of the best neighbor of the pass; delta of the
        carried slot (insertion).
    cursor : ndarray of `CURSOR`, shape (1,)
        Where the search stands.
    incumbent : ndarray of int64, shape (size,)
        The best permutation met.
    log_values, log_iterations : ndarray, shape (LOG_LENGTH,)
        Improvements of the incumbent in this slice.
    rng : ndarray of uint64, shape (4,)
        State of the random numbers.
    tolerance : int or float
        A delta is an improvement if it is below minus this.
    """

    totals: npt.NDArray[Any]
    cursor: npt.NDArray[Any]
    incumbent: Permutation
    log_values: npt.NDArray[Any]
    log_iterations: npt.NDArray[np.int64]
    rng: npt.NDArray[np.uint64]
    tolerance: Any


def move_statistics(cursor: Any) -> dict[str, int]:
    """Return the counts of moves by kind."""
    return {
        "swaps evaluated": int(cursor.iterations - cursor.insertions),
        "swaps committed": int(cursor.moves - cursor.insertion_moves),
        "insertions evaluated": int(cursor.insertions),
        "insertions committed": int(cursor.insertion_moves),
    }


@njit(cache=True, nogil=True)
def search_slice(
    state: Any,
    run: Descent,
    budget: int,
    target: float,
    block_size: int,
    neighborhood: int,
    improvement: int,
    restarts: bool,
) -> int:
    """Do at most `budget` units of work (deltas, and steps of a carried slot back to its origin) from the cursor on.

    Ends early at the target, with a full log, when the state is to be built afresh, or at a local optimum if there are
    no restarts. Returns the work done.
    """
    c = run.cursor[0]
    size = state.permutation.shape[0]
    if block_size == 1:
        c.done = True
    pairs = size // block_size * (block_size * (block_size - 1) // 2)
    left = budget
    while left > 0 and not c.done and not c.refresh and c.logged < run.log_values.shape[0]:
        moves = c.moves
        if c.phase == SWAP:
            left -= scan(state, run, left, block_size, pairs, improvement)
            passed = c.unimproved >= pairs
        else:
            left -= carry(state, run, left, block_size, improvement)
            passed = c.unimproved >= size
        if passed and improvement == BEST:
            passed = not commit_best(state, run)
        if run.totals[1] <= target:
            c.done = True
        elif passed:
            if c.phase == SWAP and neighborhood == BOTH:
                enter(run, INSERTION)
            elif restarts:
                restart(state, run, block_size)
                enter(run, INSERTION if neighborhood == INSERTION else SWAP)
            else:
                c.done = True
        elif c.moves > moves and c.phase == INSERTION and neighborhood == BOTH:
            enter(run, SWAP)
    return budget - left


@njit(cache=True, nogil=True)
def enter(run: Descent, phase: int) -> None:
    """Start a pass over a neighborhood at its first neighbor."""
    c = run.cursor[0]
    c.phase = phase
    c.i = 0
    c.j = 0 if phase == INSERTION else 1
    c.step = 1
    c.returning = False
    c.unimproved = 0
    run.totals[2] = 0
    run.totals[3] = 0


@njit(cache=True, nogil=True)
def scan(state: Any, run: Descent, budget: int, block_size: int, pairs: int, improvement: int) -> int:
    """Evaluate at most `budget` swaps from the pair (i, j) on, to the first improvement if that is to be taken.

    Ends after a whole pass at the latest. Returns the number of swaps evaluated.
    """
    c = run.cursor[0]
    totals = run.totals
    size = state.permutation.shape[0]
    i, j = c.i, c.j
    work = 0
    limit = min(budget, pairs - c.unimproved)
    improved = False
    delta = totals[2]
    while work < limit and not improved:
        first = j
        last = min((i // block_size + 1) * block_size, first + limit - work)
        if improvement == BEST:
            while j < last:
                delta = swap_delta(state, i, j)
                if delta < totals[2]:
                    totals[2] = delta
                    c.best_i = i
                    c.best_j = j
                j += 1
        else:
            while j < last and not improved:
                delta = swap_delta(state, i, j)
                improved = delta < -run.tolerance
                j += 1
        work += j - first
        if improved:
            commit_swap(state, i, j - 1)
        if j % block_size == 0:
            # The last slot of a block has none behind it.
            i = i + 2 if (i + 2) % block_size == 0 else i + 1
            i = 0 if i == size else i
            j = i + 1
    c.i = i
    c.j = j
    c.iterations += work
    c.unimproved += work
    if improved:
        c.unimproved = 0
        improve(state, run, delta)
    return work


@njit(cache=True, nogil=True)
def carry(state: Any, run: Descent, budget: int, block_size: int, improvement: int) -> int:
    """Carry one slot on from where it stands, one way or back at most; return the number of steps."""
    c = run.cursor[0]
    totals = run.totals
    block_start = c.i // block_size * block_size
    work = 0
    if c.returning:
        while c.j != c.i and work < budget:
            commit_swap(state, state.order[c.j], state.order[c.j - c.step])
            c.j -= c.step
            work += 1
        if c.j == c.i:
            c.returning = False
            totals[3] = 0
            if c.step == 1:
                c.step = -1
            else:
                next_carried(run, state.permutation.shape[0])
        return max(work, 1)
    while work < budget:
        seat = c.j + c.step
        if seat < block_start or seat >= block_start + block_size:
            c.returning = True
            break
        carried, neighbour = state.order[c.j], state.order[seat]
        totals[3] += swap_delta(state, carried, neighbour)
        commit_swap(state, carried, neighbour)
        c.j = seat
        c.iterations += 1
        c.insertions += 1
        work += 1
        if improvement == BEST:
            if totals[3] < totals[2]:
                totals[2] = totals[3]
                c.best_i = c.i
                c.best_j = c.j
        elif totals[3] < -run.tolerance:
            improve(state, run, totals[3])
            next_carried(run, state.permutation.shape[0])
            c.unimproved = 0
            break
    return max(work, 1)


@njit(cache=True, nogil=True)
def next_carried(run: Descent, size: int) -> None:
    """Take up the slot at the next seat."""
    c = run.cursor[0]
    c.i = (c.i + 1) % size
    c.j = c.i
    c.step = 1
    c.returning = False
    c.unimproved += 1
    run.totals[3] = 0


@njit(cache=True, nogil=True)
def commit_best(state: Any, run: Descent) -> bool:
    """Commit the best neighbor of a whole pass if it improves, and start the next pass; return whether it did."""
    c = run.cursor[0]
    delta = run.totals[2]
    if not delta < -run.tolerance:
        return False
    if c.phase == SWAP:
        commit_swap(state, c.best_i, c.best_j)
    else:
        slide(state, c.best_i, c.best_j)
    improve(state, run, delta)
    enter(run, c.phase)
    return True


@njit(cache=True, nogil=True)
def improve(state: Any, run: Descent, delta: Any) -> None:
    """Take in the delta of a committed move; log a new incumbent."""
    c = run.cursor[0]
    totals = run.totals
    totals[0] += delta
    c.moves += 1
    if c.phase == INSERTION:
        c.insertion_moves += 1
    log_incumbent(state, run)


@njit(cache=True, nogil=True)
def log_incumbent(state: Any, run: Descent) -> None:
    """Take the current permutation for the incumbent if it is better."""
    c = run.cursor[0]
    totals = run.totals
    if totals[0] < totals[1] - run.tolerance:
        totals[1] = totals[0]
        copy_permutation(run.incumbent, state.permutation)
        run.log_values[c.logged] = totals[0]
        run.log_iterations[c.logged] = c.iterations
        c.logged += 1


@njit(cache=True, nogil=True)
def restart(state: Any, run: Descent, block_size: int) -> None:
    """Shuffle every block uniformly by swaps, so that state and value stay up to date (Fisher and Yates)."""
    c = run.cursor[0]
    for slot in range(state.permutation.shape[0]):
        other = slot - random_below(run.rng, slot % block_size + 1)
        run.totals[0] += swap_delta(state, slot, other)
        commit_swap(state, slot, other)
    c.restarts += 1
    c.shuffles += 1
    c.refresh = c.shuffles * state.permutation.shape[0] > REFRESH_AFTER
