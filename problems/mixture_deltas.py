"""Kernels that keep all swap deltas of a mixture up to date by the samples that a move touches.

The delta of a swap is a sum over the samples with weight on either slot. A committed swap of a and b moves only the
mixtures of the samples with weight on a or b, and a sample has a part only in the deltas of swaps with one of its own
slots. So each touched sample takes its part out of those deltas before the move and adds it again after; the deltas
with a and b, whose experts have changed, are computed afresh. Where samples have weight on many slots all deltas are.
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
    start, sample, row = state.start, state.sample, state.row
    sample_start, sample_slot, sample_slot_weight = state.sample_start, state.sample_slot, state.sample_slot_weight
    for slot in (a, b):
        for i in range(start[slot], start[slot + 1]):
            x = sample[i]
            for k in range(sample_start[x], sample_start[x + 1]):
                row[sample_slot[k]] = sample_slot_weight[k]
            # A sample of both slots comes up twice and counts once.
            if slot == a or row[a] == 0.0:
                add_sample(
                    deltas, state.expert, row, state.outputs, state.target, state.label, state.sample_weight,
                    state.prediction, state.sample_loss, state.trial, state.loss, sample_start, sample_slot,
                    block_size, x, a, b, sign,
                )  # fmt: skip
            for k in range(sample_start[x], sample_start[x + 1]):
                row[sample_slot[k]] = 0.0


@njit(cache=True, nogil=True)
def add_sample(
    deltas: Any,
    expert: Any,
    row: Any,
    outputs: Any,
    target: Any,
    label: Any,
    sample_weight: Any,
    prediction: Any,
    sample_loss: Any,
    trial: Any,
    loss: int,
    sample_start: Any,
    sample_slot: Any,
    block_size: int,
    x: int,
    a: int,
    b: int,
    sign: float,
) -> None:
    """Add `sign` times the part of sample x to the deltas of swaps of its slots, those with a or b left out.

    `row` holds the weights of the sample. Arrays are passed one by one, as in `move_mixtures`.
    """
    for k in range(sample_start[x], sample_start[x + 1]):
        i = sample_slot[k]
        if i in (a, b):
            continue
        e = expert[i]
        start = i // block_size * block_size
        for j in range(start, start + block_size):
            f = expert[j]
            # A pair of two slots of the sample comes up twice and counts once.
            if e == f or j in (a, b) or (j < i and row[j] > 0):
                continue
            g = row[i] - row[j]
            for d in range(trial.shape[0]):
                trial[d] = prediction[x, d] + g * (outputs[x, f, d] - outputs[x, e, d])
            change = loss_of_sample(trial, target, label, x, loss) - sample_loss[x]
            deltas[min(i, j), max(i, j)] += sign * sample_weight[x] * change
