"""Iterated local search: descents with don't-look bits, acceptance, the way home, perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_flag, require_integer, require_number
from moe_search.problems.kernels import compiled
from moe_search.problems.moves import commit_swap, copy_permutation, swap_delta
from moe_search.problems.permutation_problem import Permutation
from moe_search.solvers.engine.compiled_search import CompiledSearch, Kernel, Track, take
from moe_search.solvers.engine.random_state import metropolis, random_below
from moe_search.solvers.engine.run import Run
from moe_search.solvers.heuristic.local_search import (
    BOTH,
    INSERTION,
    SWAP,
    Descent,
    Improvement,
    Neighborhood,
    carry,
    commit_best,
    count_shuffle,
    enter,
    first_descent,
    improve,
    inserts,
    move_statistics,
    restart,
)
from moe_search.solvers.heuristic.simulated_annealing import mean_delta

Acceptance = Literal["better", "better_or_equal", "annealing", "restart"]
BETTER, BETTER_OR_EQUAL, ANNEALING, RESTART = range(4)
# Phases beside the two neighborhoods of a descent.
HOMEWARD, PERTURBATION = 2, 3
# The swaps of a perturbation are no iterations, so that one without end would be a run without end.
MOST_SWAPS = 1_000_000


@dataclass(frozen=True)
class IteratedLocalSearch(CompiledSearch):
    """Descend to a local optimum, perturb it a little, descend again, and decide which of the two to go on from.

    Parameters
    ----------
    neighborhood : {"swap", "insertion", "both"}
        As in `LocalSearch`.
    improvement : {"first", "best"}
        Take the first improving swap of a slot, or the best of that slot; insertions as in `LocalSearch`.
    strength : int, default 5
        Swaps of a perturbation: one slot with random others of its block, hence a random cycle.
    acceptance : {"better", "better_or_equal", "annealing", "restart"}, default "restart"
        Which local optima are gone on from. ``better``: those below the last one accepted. ``better_or_equal``: those
        not above it. ``annealing``: worse ones too, with the probability of Metropolis at a constant temperature.
        ``restart``: as ``better``, but from a random permutation after `patience` local optima without a better one.
    temperature : float, default 0.1
        The temperature of ``annealing``, in multiples of the mean absolute delta of random swaps at the start.
    patience : int, default 100
        How many local optima ``restart`` waits for a better one.
    dont_look : bool, default True
        Whether a slot none of whose swaps improved is left out until it moves; insertions look at every slot.

    Notes
    -----
    An iteration is one evaluated neighbor. The first descent starts at `initial`, or at a random permutation. What the
    search does depends on the seed alone.

    References
    ----------
    T. Stuetzle, "Iterated local search for the quadratic assignment problem", European Journal of Operational Research
    174 (2006), 1519-1539.

    Examples
    --------
    >>> import moe_search as ms
    >>> solver = ms.IteratedLocalSearch(strength=3)
    >>> solver.solve(ms.random_quadratic(8, seed=1), ms.MaxIterations(10_000), seed=1).iterations
    10000
    """

    neighborhood: Neighborhood = "swap"
    improvement: Improvement = "first"
    strength: int = 5
    acceptance: Acceptance = "restart"
    temperature: float = 0.1
    patience: int = 100
    dont_look: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("neighborhood", self.neighborhood, get_args(Neighborhood))
        require_choice("improvement", self.improvement, get_args(Improvement))
        require_choice("acceptance", self.acceptance, get_args(Acceptance))
        require_integer("strength", self.strength)
        if self.strength > MOST_SWAPS:
            raise ValueError(f"strength must be at most {MOST_SWAPS}, got {self.strength}")
        require_integer("patience", self.patience)
        require_number("temperature", self.temperature)
        require_flag("dont_look", self.dont_look)

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel, where its descent begins, and the walk; see `CompiledSearch.prepare`."""
        descent = first_descent(run, self.neighborhood, self.improvement)
        progress = np.zeros(1, dtype=WALK).view(np.recarray)
        progress.fresh = True
        walk = Walk(
            run.incumbent.copy(),
            np.array([run.value], dtype=run.dtype),
            np.ones(len(run.incumbent), dtype=np.bool_),
            progress,
            self.dont_look,
            self.strength,
            get_args(Acceptance).index(self.acceptance),
            self.temperature * mean_delta(run, state) if self.acceptance == "annealing" else 0.0,
            self.patience,
        )
        return iterate_slice, (descent, walk, inserts(descent))

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of moves by kind, of perturbations and of local optima accepted."""
        descent, walk, _ = arguments
        progress = walk.progress[0]
        return move_statistics(track, descent) | {
            "perturbations": int(progress.perturbations),
            "local optima accepted": int(progress.accepted),
        }


WALK = np.dtype(
    [
        ("fresh", np.bool_),  # there is no home yet
        ("failures", np.int64),  # local optima in a row that were no better than home
        ("position", np.int64),  # the next slot to bring home
        ("center", np.int64),  # the slot that a perturbation moves around
        ("swaps_left", np.int64),  # swaps left of a perturbation
        ("perturbations", np.int64),
        ("accepted", np.int64),  # local optima accepted
    ]
)


class Walk(NamedTuple):
    """Where an iterated local search stands beside its descent, and the parameters of the solver."""

    home: Permutation  # the local optimum that perturbations start from
    home_value: npt.NDArray[Any]  # (1,)
    look: npt.NDArray[np.bool_]  # slots whose swaps are still to be looked at; the others carry a don't-look bit
    progress: npt.NDArray[Any]  # of `WALK`, (1,)
    dont_look: bool
    strength: int
    acceptance: int
    temperature: float  # in units of the value
    patience: int


@compiled
def iterate_slice(
    state: Any, track: Track, budget: int, target: float, descent: Descent, walk: Walk, inserting: bool | None
) -> int:
    """Do at most `budget` units of work (deltas, and committed swaps that no delta led to); return how many.

    Ends early at the target, with a full log, or when the state is to be built afresh. The phase of the cursor says
    what comes next: a descent by swaps or insertions, the way home from a local optimum that was not accepted, or the
    swaps of a perturbation. Only a descent evaluates neighbors, and only a finished one is decided on.
    """
    c, counts, progress = descent.cursor[0], track.counts[0], walk.progress[0]
    size, neighborhood = state.permutation.shape[0], descent.neighborhood
    first_phase = INSERTION if neighborhood == INSERTION else SWAP
    if descent.block_size == 1:
        counts.done = True
    left = budget
    while left > 0 and not counts.done and not counts.stale and counts.logged < track.log_values.shape[0]:
        ended = False
        if c.phase == SWAP:
            left -= look_at_slots(state, track, descent, walk, left, target)
            if c.unimproved > 0:
                ended = neighborhood != BOTH
                if not ended:
                    enter(descent, INSERTION)
        elif c.phase == HOMEWARD:
            left -= 1
            step_homeward(state, track, descent, walk)
        elif c.phase == PERTURBATION:
            left -= 1
            perturb(state, track, descent, walk)
            if progress.swaps_left == 0:
                enter(descent, first_phase)
        elif inserting is not None:
            moves = counts.moves
            left -= carry(state, track, descent, left, target)
            ended = c.unimproved >= size
            if ended and descent.takes_best:
                ended = not commit_best(state, track, descent, target, inserting)
            if counts.moves > moves and neighborhood == BOTH:
                walk.look[:] = True
                enter(descent, SWAP)
        if ended and not counts.done:
            if track.totals[0] < track.totals[1] - track.tolerance:
                take(track, state.permutation, target)
            decide(state, track, descent, walk)
            if walk.acceptance == RESTART and progress.failures > walk.patience:
                restart(state, track, descent)
                walk.look[:] = True
                progress.fresh = True
                progress.failures = 0
                enter(descent, first_phase)
    return budget - left


@compiled
def look_at_slots(state: Any, track: Track, descent: Descent, walk: Walk, budget: int, target: float) -> int:
    """Evaluate at most `budget` swaps of the slots to be looked at; return how many. At the end `unimproved` is 1.

    A slot gets its don't-look bit when none of its swaps improves, and loses it when it moves; without such bits every
    move makes all slots be looked at again. Only insertions need `best_i`: here it is 1 once the slot has moved.
    """
    c, counts = descent.cursor[0], track.counts[0]
    deltas, look, block_size, tolerance = descent.deltas, walk.look, descent.block_size, track.tolerance
    size = look.shape[0]
    work = 0
    i = c.i
    while work < budget and c.unimproved == 0 and counts.logged < track.log_values.shape[0]:
        if not look[i]:
            passed = 0
            while passed < size and not look[i]:
                i = i + 1 if i + 1 < size else 0
                passed += 1
            if passed == size:
                c.unimproved = 1
                break
            c.j = i // block_size * block_size
            c.best_i = 0
            deltas[0] = 0
        end = (i // block_size + 1) * block_size
        chosen = -1
        while c.j < end and work < budget and chosen < 0:
            if c.j != i:
                delta = swap_delta(state, i, c.j)
                work += 1
                counts.iterations += 1
                if delta < deltas[0]:
                    deltas[0] = delta
                    c.best_j = c.j
                    if not descent.takes_best and delta < -tolerance:
                        chosen = c.j
            c.j += 1
        if chosen < 0 and c.j == end and deltas[0] < -tolerance:
            chosen = c.best_j
        if chosen >= 0:
            commit_swap(state, i, chosen)
            improve(state, track, descent, deltas[0], target)
            look[chosen] = True
            if not walk.dont_look:
                look[:] = True
            c.best_i = 1
            deltas[0] = 0
        if c.j == end:
            # The slot is looked at once more if it has moved.
            look[i] = c.best_i == 1
            c.best_i = 0
            c.j = i // block_size * block_size
            deltas[0] = 0
    c.i = i
    return max(work, 1)


@compiled
def decide(state: Any, track: Track, descent: Descent, walk: Walk) -> None:
    """Take a local optimum for the new home, or turn back; then perturb."""
    progress = walk.progress[0]
    loss = track.totals[0] - walk.home_value[0]
    better = progress.fresh or loss < -track.tolerance
    accepted = better
    if walk.acceptance == BETTER_OR_EQUAL:
        accepted = better or loss <= track.tolerance
    elif walk.acceptance == ANNEALING:
        accepted = better or metropolis(track.rng, loss, walk.temperature)
    progress.failures = 0 if better else progress.failures + 1
    progress.fresh = False
    progress.position = 0
    if accepted:
        progress.accepted += 1
        copy_permutation(walk.home, state.permutation)
        walk.home_value[0] = track.totals[0]
    descent.cursor[0].phase = PERTURBATION if accepted else HOMEWARD


@compiled
def step_homeward(state: Any, track: Track, descent: Descent, walk: Walk) -> None:
    """Bring the next slot to its seat at home, by one swap; the last one turns to the perturbation."""
    home, permutation = walk.home, state.permutation
    slot = walk.progress[0].position
    while slot < home.shape[0] and permutation[slot] == home[slot]:
        slot += 1
    walk.progress[0].position = slot
    if slot < home.shape[0]:
        commit_swap(state, slot, state.order[home[slot]])
    else:
        track.totals[0] = walk.home_value[0]
        descent.cursor[0].phase = PERTURBATION


@compiled
def perturb(state: Any, track: Track, descent: Descent, walk: Walk) -> None:
    """Make one of the swaps of a slot with random others of its block that make up a perturbation."""
    progress, block_size, size = walk.progress[0], descent.block_size, walk.look.shape[0]
    if progress.swaps_left == 0:
        progress.swaps_left = walk.strength
        progress.center = random_below(track.rng, size)
        progress.perturbations += 1
    slot = progress.center
    other = slot // block_size * block_size + random_below(track.rng, block_size - 1)
    other = other + 1 if other >= slot else other
    track.totals[0] += swap_delta(state, slot, other)
    commit_swap(state, slot, other)
    walk.look[slot] = True
    walk.look[other] = True
    progress.swaps_left -= 1
    if progress.swaps_left == 0:
        count_shuffle(track, descent, size)
