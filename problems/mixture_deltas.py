"""Kernels that keep all swap deltas of a mixture up to date by the samples that a move touches.

The delta of a swap is a sum over the samples with weight on either slot. A committed swap of a and b moves only the
mixtures of the samples with weight on a or b, and a sample has a part only in the deltas of swaps with one of its own
slots. So each touched sample takes its part out of those deltas before the move and adds it again after; the deltas with
a and b, whose experts have changed, are computed afresh. Where samples have weight on many slots all deltas are.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from moe_search.problems.delta_matrix import DeltaMatrix, commit_swap_and_deltas, fill_deltas
from moe_search.problems.mixture import MixtureState, loss_of_sample
from moe_search.problems.moves import commit_swap, kernel, swap_delta


@kernel(commit_swap_and_deltas, MixtureState)
def _commit_and_correct(state: MixtureState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    if state.expert[a] == state.expert[b]:
        commit_swap(state, a, b)
    elif state.corrects == 0:
        commit_swap(state, a, b)
        fill_deltas(state, matrix, block_size, 0, matrix.deltas.shape[0])
    else:
        add_touched_samples(state, matrix.deltas, block_size, a, b, -1.0)
        commit_swap(state, a, b)
        add_touched_samples(state, matrix.deltas, block_size, a, b, 1.0)
        for slot in (a, b):
            start = slot // block_size * block_size
            for other in range(start, start + block_size):
                matrix.deltas[min(slot, other), max(slot, other)] = swap_delta(state, slot, other)


@njit(cache=True, nogil=True)
def add_touched_samples(state: Any, deltas: Any, block_size: int, a: int, b: int, sign: float) -> None:
    """Add `sign` times the part of every sample that a swap of a and b touches to the deltas without a and b."""
    for i in range(state.start[a], state.start[a + 1]):
        add_sample(state, deltas, block_size, state.sample[i], a, b, sign)
    for i in range(state.start[b], state.start[b + 1]):
        x = state.sample[i]
        if not has_weight(state, x, a):
            add_sample(state, deltas, block_size, x, a, b, sign)


@njit(cache=True, nogil=True)
def has_weight(state: Any, x: int, slot: int) -> bool:
    """Return whether sample x has weight on a slot."""
    found = False
    for k in range(state.sample_start[x], state.sample_start[x + 1]):
        found = found or state.sample_slot[k] == slot
    return found


@njit(cache=True, nogil=True)
def add_sample(state: Any, deltas: Any, block_size: int, x: int, a: int, b: int, sign: float) -> None:
    """Add `sign` times the part of sample x to the deltas of swaps of its slots, those with a or b left out."""
    expert, row, trial, outputs = state.expert, state.row, state.trial, state.outputs
    first, last = state.sample_start[x], state.sample_start[x + 1]
    for k in range(first, last):
        row[state.sample_slot[k]] = state.sample_slot_weight[k]
    for k in range(first, last):
        i = state.sample_slot[k]
        if i in (a, b):
            continue
        start = i // block_size * block_size
        for j in range(start, start + block_size):
            # A pair of two slots of the sample comes up twice and counts once.
            if expert[i] == expert[j] or j in (a, b) or (j < i and row[j] > 0):
                continue
            g = row[i] - row[j]
            for d in range(trial.shape[0]):
                trial[d] = state.prediction[x, d] + g * (outputs[x, expert[j], d] - outputs[x, expert[i], d])
            change = loss_of_sample(trial, state.target, state.label, x, state.loss) - state.sample_loss[x]
            deltas[min(i, j), max(i, j)] += sign * state.sample_weight[x] * change
    for k in range(first, last):
        row[state.sample_slot[k]] = 0.0
