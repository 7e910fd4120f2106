"""Local search with swaps and insertions, restarted from random permutations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_flag
from moe_search.problems.kernels import compiled
from moe_search.problems.moves import commit_swap, slide, swap_delta
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.solvers.engine.compiled_search import REFRESH_AFTER, CompiledSearch, Kernel, Track, take
from moe_search.solvers.engine.random_state import random_below
from moe_search.solvers.engine.run import Run

Neighborhood = Literal["swap", "insertion", "both"]
Improvement = Literal["first", "best"]
SWAP, INSERTION, BOTH = range(3)


@dataclass(frozen=True)
class LocalSearch(CompiledSearch):
    """Descend to a local optimum, then start again from a random permutation.

    Parameters
    ----------
    neighborhood : {"swap", "insertion", "both"}
        ``swap``: two slots exchange their seats. ``insertion``: a slot leaves its seat for another, those between shift
        by one. ``both``: variable neighborhood descent, insertions wherever no swap improves.
    improvement : {"first", "best"}
        Take the first improving neighbor met, or the best of the whole neighborhood.
    restarts : bool, default True
        Whether to start again at a local optimum; without, the search ends there.

    Notes
    -----
    An iteration is one evaluated neighbor. All of the search is compiled and runs for a few milliseconds between two
    looks at the clock; what it does depends on the seed alone. The first descent starts at `initial`, or at a random
    permutation. A local search proves nothing: `moe_search.solve` adds a bound.

    References
    ----------
    H. H. Hoos, T. Stuetzle, "Stochastic Local Search", Morgan Kaufmann 2004; P. Hansen, N. Mladenovic, "Variable
    neighborhood search", European Journal of Operational Research 130 (2001), 449-467.

    Examples
    --------
    >>> from moe_search.problems import random_quadratic
    >>> from moe_search.solvers import LocalSearch, MaxIterations
    >>> LocalSearch().solve(random_quadratic(8, seed=1), MaxIterations(10_000), seed=1).iterations
    10000
    """

    neighborhood: Neighborhood = "swap"
    improvement: Improvement = "first"
    restarts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("neighborhood", self.neighborhood, get_args(Neighborhood))
        require_choice("improvement", self.improvement, get_args(Improvement))
        require_flag("restarts", self.restarts)

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel and where its descent begins; see `CompiledSearch.prepare`."""
        descent = first_descent(run, self.neighborhood, self.improvement)
        return search_slice, (descent, self.restarts, inserts(descent))

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of moves by kind."""
        return move_statistics(track, arguments[0])


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
        ("insertions", np.int64),  # those of the iterations that evaluated an insertion
        ("insertion_moves", np.int64),
        ("shuffles", np.int64),  # since the state was built
    ]
)


class Descent(NamedTuple):
    """Where a descent stands, and how it goes."""

    deltas: npt.NDArray[Any]  # (2,): delta of the best neighbor of the pass; delta of the carried slot (insertion)
    cursor: npt.NDArray[Any]  # of `CURSOR`, (1,)
    block_size: int
    neighborhood: int  # `SWAP`, `INSERTION` or `BOTH`
    takes_best: bool  # whether the best neighbor of a whole pass is taken, not the first that improves


def first_descent(run: Run, neighborhood: Neighborhood, improvement: Improvement) -> Descent:
    """Return a descent at the first neighbor of its first pass."""
    assert isinstance(run.problem, PermutationProblem)
    cursor = np.zeros(1, dtype=CURSOR).view(np.recarray)
    descent = Descent(
        np.zeros(2, dtype=run.dtype),
        cursor,
        run.problem.block_size,
        get_args(Neighborhood).index(neighborhood),
        improvement == "best",
    )
    enter(descent, INSERTION if neighborhood == "insertion" else SWAP)
    return descent


def inserts(descent: Descent) -> bool | None:
    """Return True for a descent that ever inserts, and None for one that does not.

    Where an argument is None, Numba leaves out what is done only if it is not: here the kernels of insertions.
    """
    return None if descent.neighborhood == SWAP else True


def move_statistics(track: Track, descent: Descent) -> dict[str, int]:
    """Return the counts of moves by kind."""
    counts, cursor = track.counts[0], descent.cursor[0]
    return {
        "swaps evaluated": int(counts.iterations - cursor.insertions),
        "swaps committed": int(counts.moves - cursor.insertion_moves),
        "insertions evaluated": int(cursor.insertions),
        "insertions committed": int(cursor.insertion_moves),
    }


@compiled
def search_slice(
    state: Any, track: Track, budget: int, target: float, descent: Descent, restarts: bool, inserting: bool | None
) -> int:
    """Do at most `budget` units of work (deltas, and steps of a carried slot back to its origin) from the cursor on.

    Ends early at the target, with a full log, when the state is to be built afresh, or at a local optimum if there are
    no restarts. Returns the work done. The cursor says which neighbor is next, `unimproved` how much of a pass found
    nothing: at a whole pass the permutation is a local optimum of that neighborhood.
    """
    c, counts = descent.cursor[0], track.counts[0]
    size, block_size = state.permutation.shape[0], descent.block_size
    if block_size == 1:
        counts.done = True
    pairs = size // block_size * (block_size * (block_size - 1) // 2)
    left = budget
    while left > 0 and not counts.done and not counts.stale and counts.logged < track.log_values.shape[0]:
        moves = counts.moves
        if c.phase == SWAP:
            left -= scan(state, track, descent, left, target, pairs)
            passed = c.unimproved >= pairs
        elif inserting is not None:
            left -= carry(state, track, descent, left, target)
            passed = c.unimproved >= size
        if passed and descent.takes_best:
            passed = not commit_best(state, track, descent, target, inserting)
        if counts.done:
            break
        if passed:
            if c.phase == SWAP and descent.neighborhood == BOTH:
                enter(descent, INSERTION)
            elif restarts:
                restart(state, track, descent)
                enter(descent, INSERTION if descent.neighborhood == INSERTION else SWAP)
            else:
                counts.done = True
        elif counts.moves > moves and c.phase == INSERTION and descent.neighborhood == BOTH:
            enter(descent, SWAP)
    return budget - left


@compiled
def enter(descent: Descent, phase: int) -> None:
    """Start a pass over a neighborhood at its first neighbor."""
    c = descent.cursor[0]
    c.phase = phase
    c.i = 0
    c.j = 0 if phase == INSERTION else 1
    c.step = 1
    c.returning = False
    c.unimproved = 0
    descent.deltas[0] = 0
    descent.deltas[1] = 0


@compiled
def scan(state: Any, track: Track, descent: Descent, budget: int, target: float, pairs: int) -> int:
    """Evaluate at most `budget` swaps from the pair (i, j) on, to the first improvement if that is to be taken.

    Ends after a whole pass at the latest. Returns the number of swaps evaluated.
    """
    c = descent.cursor[0]
    size, block_size, takes_best = state.permutation.shape[0], descent.block_size, descent.takes_best
    least_improvement = -track.tolerance
    i, j = c.i, c.j
    work = 0
    limit = min(budget, pairs - c.unimproved)
    improved = False
    best = descent.deltas[0]
    delta = best
    while work < limit and not improved:
        first = j
        last = min((i // block_size + 1) * block_size, first + limit - work)
        if takes_best:
            while j < last:
                delta = swap_delta(state, i, j)
                if delta < best:
                    best = delta
                    c.best_i = i
                    c.best_j = j
                j += 1
        else:
            while j < last and not improved:
                delta = swap_delta(state, i, j)
                improved = delta < least_improvement
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
    descent.deltas[0] = best
    track.counts[0].iterations += work
    c.unimproved += work
    if improved:
        c.unimproved = 0
        improve(state, track, descent, delta, target)
    return work


@compiled
def carry(state: Any, track: Track, descent: Descent, budget: int, target: float) -> int:
    """Carry one slot on from where it stands, one way or back at most; return the number of steps."""
    c, deltas, block_size = descent.cursor[0], descent.deltas, descent.block_size
    block_start = c.i // block_size * block_size
    work = 0
    if c.returning:
        while c.j != c.i and work < budget:
            commit_swap(state, state.order[c.j], state.order[c.j - c.step])
            c.j -= c.step
            work += 1
        if c.j == c.i:
            c.returning = False
            deltas[1] = 0
            if c.step == 1:
                c.step = -1
            else:
                next_carried(descent, state.permutation.shape[0])
        return max(work, 1)
    while work < budget:
        seat = c.j + c.step
        if seat < block_start or seat >= block_start + block_size:
            c.returning = True
            break
        carried, neighbour = state.order[c.j], state.order[seat]
        deltas[1] += swap_delta(state, carried, neighbour)
        commit_swap(state, carried, neighbour)
        c.j = seat
        track.counts[0].iterations += 1
        c.insertions += 1
        work += 1
        if descent.takes_best:
            if deltas[1] < deltas[0]:
                deltas[0] = deltas[1]
                c.best_i = c.i
                c.best_j = c.j
        elif deltas[1] < -track.tolerance:
            improve(state, track, descent, deltas[1], target)
            next_carried(descent, state.permutation.shape[0])
            c.unimproved = 0
            break
    return max(work, 1)


@compiled
def next_carried(descent: Descent, size: int) -> None:
    """Take up the slot at the next seat."""
    c = descent.cursor[0]
    c.i = (c.i + 1) % size
    c.j = c.i
    c.step = 1
    c.returning = False
    c.unimproved += 1
    descent.deltas[1] = 0


@compiled
def commit_best(state: Any, track: Track, descent: Descent, target: float, inserting: bool | None) -> bool:
    """Commit the best neighbor of a whole pass if it improves, and start the next pass; return whether it did."""
    c = descent.cursor[0]
    delta = descent.deltas[0]
    if not delta < -track.tolerance:
        return False
    if c.phase == SWAP:
        commit_swap(state, c.best_i, c.best_j)
    elif inserting is not None:
        slide(state, c.best_i, c.best_j)
    improve(state, track, descent, delta, target)
    enter(descent, c.phase)
    return True


@compiled
def improve(state: Any, track: Track, descent: Descent, delta: Any, target: float) -> None:
    """Take in the delta of a committed move, and the permutation if it is the best so far."""
    c, totals, counts = descent.cursor[0], track.totals, track.counts[0]
    totals[0] += delta
    counts.moves += 1
    if c.phase == INSERTION:
        c.insertion_moves += 1
    if totals[0] < totals[1] - track.tolerance:
        take(track, state.permutation, target)


@compiled
def restart(state: Any, track: Track, descent: Descent) -> None:
    """Shuffle every block uniformly by swaps, so that state and value stay up to date (Fisher and Yates)."""
    size = state.permutation.shape[0]
    for slot in range(size):
        other = slot - random_below(track.rng, slot % descent.block_size + 1)
        track.totals[0] += swap_delta(state, slot, other)
        commit_swap(state, slot, other)
    track.counts[0].restarts += 1
    count_shuffle(track, descent, size)


@compiled
def count_shuffle(track: Track, descent: Descent, size: int) -> None:
    """Count moves that no delta decided on; after many the state is to be built afresh."""
    c = descent.cursor[0]
    c.shuffles += 1
    if c.shuffles * size > REFRESH_AFTER:
        c.shuffles = 0
        track.counts[0].stale = True
