"""Kernels of iterated local search: descents with don't-look bits, acceptance, the way home, perturbation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from moe_search.problems.moves import commit_swap, copy_permutation, swap_delta
from moe_search.problems.permutation_problem import Permutation
from moe_search.solvers.engine.random_state import metropolis, random_below
from moe_search.solvers.heuristic.descent import (
    BOTH,
    FIRST,
    INSERTION,
    REFRESH_AFTER,
    SWAP,
    Descent,
    carry,
    commit_best,
    enter,
    improve,
    log_incumbent,
    restart,
)

# Phases beside the two neighborhoods of a descent.
HOMEWARD, PERTURBATION = 2, 3
BETTER, BETTER_OR_EQUAL, ANNEALING, RESTART = range(4)
FRESH, FAILURES, POSITION, CENTER, SWAPS_LEFT, PERTURBATIONS, ACCEPTED = range(7)


class Iterated(NamedTuple):
    """What an iterated local search carries from slice to slice beside its descent.

    Parameters
    ----------
    home : ndarray of int64, shape (size,)
        The local optimum that perturbations start from.
    home_value : ndarray, shape (1,)
        Its value.
    look : ndarray of bool, shape (size,)
        The slots whose swaps are still to be looked at; the others carry a don't-look bit.
    counters : ndarray of int64, shape (7,)
        Whether there is no home yet; local optima in a row that were no better than home; the next slot to bring home;
        the slot that a perturbation moves around and its swaps left; perturbations; local optima accepted.
    """

    home: Permutation
    home_value: npt.NDArray[Any]
    look: npt.NDArray[np.bool_]
    counters: npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def iterate_slice(
    state: Any,
    run: Descent,
    walk: Iterated,
    budget: int,
    target: float,
    block_size: int,
    neighborhood: int,
    improvement: int,
    dont_look: bool,
    strength: int,
    acceptance: int,
    temperature: float,
    patience: int,
) -> int:
    """Do at most `budget` units of work (deltas, and committed swaps that no delta led to); return how many.

    Ends early at the target, with a full log, or when the state is to be built afresh.
    """
    c = run.cursor[0]
    size = state.permutation.shape[0]
    first_phase = INSERTION if neighborhood == INSERTION else SWAP
    if block_size == 1:
        c.done = True
    left = budget
    while left > 0 and not c.done and not c.refresh and c.logged < run.log_values.shape[0]:
        ended = False
        if c.phase == SWAP:
            left -= look_at_slots(state, run, walk, left, block_size, improvement, dont_look)
            if c.unimproved > 0:
                ended = neighborhood != BOTH
                if not ended:
                    enter(run, INSERTION)
        elif c.phase == INSERTION:
            moves = c.moves
            left -= carry(state, run, left, block_size, improvement)
            ended = c.unimproved >= size
            if ended and improvement != FIRST:
                ended = not commit_best(state, run)
            if c.moves > moves and neighborhood == BOTH:
                walk.look[:] = True
                enter(run, SWAP)
        elif c.phase == HOMEWARD:
            left -= 1
            step_homeward(state, run, walk)
        else:
            left -= 1
            perturb(state, run, walk, block_size, strength)
            if walk.counters[SWAPS_LEFT] == 0:
                enter(run, first_phase)
        if run.totals[1] <= target:
            c.done = True
        elif ended:
            log_incumbent(state, run)
            decide(state, run, walk, acceptance, temperature)
            if acceptance == RESTART and walk.counters[FAILURES] > patience:
                restart(state, run, block_size)
                walk.look[:] = True
                walk.counters[FRESH] = 1
                walk.counters[FAILURES] = 0
                enter(run, first_phase)
    return budget - left


@njit(cache=True, nogil=True)
def look_at_slots(
    state: Any, run: Descent, walk: Iterated, budget: int, block_size: int, improvement: int, dont_look: bool
) -> int:
    """Evaluate at most `budget` swaps of the slots to be looked at; return how many. At the end `unimproved` is 1.

    A slot gets its don't-look bit when none of its swaps improves, and loses it when it moves; without such bits every
    move makes all slots be looked at again.
    """
    c = run.cursor[0]
    totals, look = run.totals, walk.look
    size = look.shape[0]
    work = 0
    i = c.i
    while work < budget and c.unimproved == 0 and c.logged < run.log_values.shape[0]:
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
            totals[2] = 0
        end = (i // block_size + 1) * block_size
        chosen = -1
        while c.j < end and work < budget and chosen < 0:
            if c.j != i:
                delta = swap_delta(state, i, c.j)
                work += 1
                c.iterations += 1
                if delta < totals[2]:
                    totals[2] = delta
                    c.best_j = c.j
                    if improvement == FIRST and delta < -run.tolerance:
                        chosen = c.j
            c.j += 1
        if chosen < 0 and c.j == end and totals[2] < -run.tolerance:
            chosen = c.best_j
        if chosen >= 0:
            commit_swap(state, i, chosen)
            improve(state, run, totals[2])
            look[chosen] = True
            if not dont_look:
                look[:] = True
            c.best_i = 1
            totals[2] = 0
        if c.j == end:
            # Once more if the slot has moved.
            look[i] = c.best_i == 1
            c.best_i = 0
            c.j = i // block_size * block_size
            totals[2] = 0
    c.i = i
    return max(work, 1)


@njit(cache=True, nogil=True)
def decide(state: Any, run: Descent, walk: Iterated, acceptance: int, temperature: float) -> None:
    """Take a local optimum for the new home, or turn back; then perturb."""
    c = run.cursor[0]
    counters = walk.counters
    loss = run.totals[0] - walk.home_value[0]
    better = counters[FRESH] == 1 or loss < -run.tolerance
    accepted = better
    if acceptance == BETTER_OR_EQUAL:
        accepted = better or loss <= run.tolerance
    elif acceptance == ANNEALING:
        accepted = better or metropolis(run.rng, loss, temperature)
    counters[FAILURES] = 0 if better else counters[FAILURES] + 1
    counters[FRESH] = 0
    counters[POSITION] = 0
    if accepted:
        counters[ACCEPTED] += 1
        copy_permutation(walk.home, state.permutation)
        walk.home_value[0] = run.totals[0]
    c.phase = PERTURBATION if accepted else HOMEWARD


@njit(cache=True, nogil=True)
def step_homeward(state: Any, run: Descent, walk: Iterated) -> None:
    """Bring the next slot to its seat at home, by one swap; the last one turns to the perturbation."""
    c = run.cursor[0]
    home, permutation = walk.home, state.permutation
    slot = walk.counters[POSITION]
    while slot < home.shape[0] and permutation[slot] == home[slot]:
        slot += 1
    walk.counters[POSITION] = slot
    if slot < home.shape[0]:
        commit_swap(state, slot, state.order[home[slot]])
    else:
        run.totals[0] = walk.home_value[0]
        c.phase = PERTURBATION


@njit(cache=True, nogil=True)
def perturb(state: Any, run: Descent, walk: Iterated, block_size: int, strength: int) -> None:
    """Make one of the swaps of a slot with random others of its block that make up a perturbation."""
    c = run.cursor[0]
    counters = walk.counters
    if counters[SWAPS_LEFT] == 0:
        counters[SWAPS_LEFT] = strength
        counters[CENTER] = random_below(run.rng, walk.look.shape[0])
        counters[PERTURBATIONS] += 1
        c.shuffles += 1
    slot = counters[CENTER]
    start = slot // block_size * block_size
    other = start + random_below(run.rng, block_size - 1)
    other = other + 1 if other >= slot else other
    run.totals[0] += swap_delta(state, slot, other)
    commit_swap(state, slot, other)
    walk.look[slot] = True
    walk.look[other] = True
    counters[SWAPS_LEFT] -= 1
    c.refresh = counters[SWAPS_LEFT] == 0 and c.shuffles * walk.look.shape[0] > REFRESH_AFTER
