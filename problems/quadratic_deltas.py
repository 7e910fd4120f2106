"""Kernels that keep all swap deltas of a quadratic assignment up to date in O(1) each.

With C the permuted distance matrix, the potential ``K[i, j] = sum_k A[i, k] C[j, k] + A[k, i] C[k, j]`` (plus the
linear cost of i at the location of j) is what facility i would pay at the location of j. The delta of a swap is
``K[i, j] + K[j, i] - K[i, i] - K[j, j] + (A[i, j] + A[j, i]) (C[i, j] + C[j, i])``. A committed swap of a and b adds a
matrix of rank one (symmetric) or two to K, exchanges its columns a and b up to a correction, and changes the other
deltas by ``-(x_i - x_j) (y_i - y_j)``, which is Taillard's update; the deltas with a and b follow from K, so no delta
costs O(n).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from moe_search.problems.delta_matrix import DeltaMatrix, commit_swap_and_deltas, fill_deltas, fill_potential
from moe_search.problems.moves import commit_swap, kernel
from moe_search.problems.quadratic import GeneralQuadraticState, SymmetricQuadraticState


@kernel(fill_potential, SymmetricQuadraticState)
def _symmetric_potential(state: SymmetricQuadraticState, matrix: DeltaMatrix, first: int, last: int) -> None:
    matrix.potential[first:last] = 0
    add_products(matrix.potential, state.flow, state.distance, state.factor, first, last)
    add_linear(matrix.potential, state.linear, state.permutation, first, last)


@kernel(fill_potential, GeneralQuadraticState)
def _general_potential(state: GeneralQuadraticState, matrix: DeltaMatrix, first: int, last: int) -> None:
    matrix.potential[first:last] = 0
    add_products(matrix.potential, state.flow, state.distance, 1, first, last)
    add_products(matrix.potential, state.flow_transposed, state.distance_transposed, 1, first, last)
    add_linear(matrix.potential, state.linear, state.permutation, first, last)


@kernel(fill_deltas, SymmetricQuadraticState)
def _symmetric_fill(
    state: SymmetricQuadraticState, matrix: DeltaMatrix, block_size: int, first: int, last: int
) -> None:
    for i in range(first, last):
        row_of_deltas(matrix, state.flow, state.distance, state.factor, i)


@kernel(fill_deltas, GeneralQuadraticState)
def _general_fill(state: GeneralQuadraticState, matrix: DeltaMatrix, block_size: int, first: int, last: int) -> None:
    for i in range(first, last):
        general_row_of_deltas(matrix, state, i)


@kernel(commit_swap_and_deltas, SymmetricQuadraticState)
def _symmetric_commit(state: SymmetricQuadraticState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    difference(matrix.scratch, 0, state.flow, a, b, state.factor)
    difference(matrix.scratch, 1, state.distance, b, a, 1)
    # What the exchange of the columns leaves to correct; the columns themselves take no part in the update.
    pair = matrix.scratch.dtype.type(state.distance[a, b])
    matrix.scratch[1, a] = 0
    matrix.scratch[1, b] = 0
    add_rank_one(matrix.potential, matrix.scratch[0], matrix.scratch[1])
    exchange_columns(matrix.potential, matrix.scratch[0], a, b, pair, pair)
    subtract_differences(matrix.deltas, matrix.scratch[0], matrix.scratch[1])
    commit_swap(state, a, b)
    row_of_deltas(matrix, state.flow, state.distance, state.factor, a)
    row_of_deltas(matrix, state.flow, state.distance, state.factor, b)


@kernel(commit_swap_and_deltas, GeneralQuadraticState)
def _general_commit(state: GeneralQuadraticState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    scratch = matrix.scratch
    difference(scratch, 0, state.flow_transposed, a, b, 1)
    difference(scratch, 1, state.distance_transposed, b, a, 1)
    difference(scratch, 2, state.flow, a, b, 1)
    difference(scratch, 3, state.distance, b, a, 1)
    forth = scratch.dtype.type(state.distance[a, b])
    back = scratch.dtype.type(state.distance[b, a])
    for row in (1, 3):
        scratch[row, a] = 0
        scratch[row, b] = 0
    add_rank_one(matrix.potential, scratch[0], scratch[1])
    add_rank_one(matrix.potential, scratch[2], scratch[3])
    exchange_columns(matrix.potential, scratch[0], a, b, back, forth)
    correct_columns(matrix.potential, scratch[2], a, b, forth, back)
    subtract_differences(matrix.deltas, scratch[0], scratch[1])
    subtract_differences(matrix.deltas, scratch[2], scratch[3])
    commit_swap(state, a, b)
    general_row_of_deltas(matrix, state, a)
    general_row_of_deltas(matrix, state, b)


@njit(cache=True, nogil=True)
def add_products(potential: Any, a: Any, c: Any, factor: int, first: int, last: int) -> None:
    """Add rows first .. last - 1 of ``factor * a @ c.T``."""
    cast = potential.dtype.type
    for i in range(first, last):
        for j in range(a.shape[0]):
            total = cast(0)
            for k in range(a.shape[0]):
                total = cast(total + cast(cast(a[i, k]) * cast(c[j, k])))
            potential[i, j] = cast(potential[i, j] + cast(total * cast(factor)))


@njit(cache=True, nogil=True)
def add_linear(potential: Any, linear: Any, permutation: Any, first: int, last: int) -> None:
    """Add the linear cost of every facility at the location of every other."""
    # One row for each facility, none where there is no linear term; a vector has no second index.
    matrix = linear.reshape((-1, permutation.shape[0]))
    for i in range(first, min(last, matrix.shape[0])):
        for j in range(matrix.shape[1]):
            potential[i, j] = potential.dtype.type(potential[i, j] + matrix[i, permutation[j]])


@njit(cache=True, nogil=True)
def difference(scratch: Any, row: int, matrix: Any, a: int, b: int, factor: int) -> None:
    """Write ``factor * (matrix[a] - matrix[b])`` to a row of the scratch space."""
    cast = scratch.dtype.type
    for k in range(matrix.shape[0]):
        scratch[row, k] = cast(cast(cast(matrix[a, k]) - cast(matrix[b, k])) * cast(factor))


@njit(cache=True, nogil=True)
def add_rank_one(potential: Any, x: Any, y: Any) -> None:
    """Add ``x_i y_j``."""
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        for j in range(potential.shape[0]):
            potential[i, j] = cast(potential[i, j] + cast(x[i] * y[j]))


@njit(cache=True, nogil=True)
def exchange_columns(potential: Any, x: Any, a: int, b: int, back: Any, forth: Any) -> None:
    """Exchange columns a and b, corrected by what the two facilities pay each other."""
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        potential[i, a], potential[i, b] = (
            cast(potential[i, b] - cast(x[i] * back)),
            cast(potential[i, a] + cast(x[i] * forth)),
        )


@njit(cache=True, nogil=True)
def correct_columns(potential: Any, u: Any, a: int, b: int, forth: Any, back: Any) -> None:
    """Correct columns a and b by the second half of an asymmetric problem."""
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        potential[i, a] = cast(potential[i, a] - cast(u[i] * forth))
        potential[i, b] = cast(potential[i, b] + cast(u[i] * back))


@njit(cache=True, nogil=True)
def subtract_differences(deltas: Any, x: Any, y: Any) -> None:
    """Subtract ``(x_i - x_j) (y_i - y_j)`` from the upper triangle."""
    cast = deltas.dtype.type
    for i in range(deltas.shape[0]):
        # Unsigned, or Numba allows for a negative index and gives up the SIMD code.
        for j in range(np.uintp(i + 1), np.uintp(deltas.shape[0])):
            deltas[i, j] = cast(deltas[i, j] - cast(cast(x[i] - x[j]) * cast(y[i] - y[j])))


@njit(cache=True, nogil=True)
def row_of_deltas(matrix: DeltaMatrix, flow: Any, distance: Any, factor: int, i: int) -> None:
    """Compute the deltas of all swaps with slot i of a symmetric problem."""
    potential = matrix.potential
    cast = potential.dtype.type
    for j in range(flow.shape[0]):
        pair = cast(cast(cast(flow[i, j]) * cast(distance[i, j])) * cast(2 * factor))
        delta = cast(pair + cast(potential[i, j] + potential[j, i]) - cast(potential[i, i] + potential[j, j]))
        if j < i:
            matrix.deltas[j, i] = delta
        else:
            matrix.deltas[i, j] = delta


@njit(cache=True, nogil=True)
def general_row_of_deltas(matrix: DeltaMatrix, state: GeneralQuadraticState, i: int) -> None:
    """Compute the deltas of all swaps with slot i of an asymmetric problem."""
    flow, distance, potential = state.flow, state.distance, matrix.potential
    cast = potential.dtype.type
    for j in range(flow.shape[0]):
        flows = cast(cast(flow[i, j]) + cast(flow[j, i]))
        pair = cast(flows * cast(cast(distance[i, j]) + cast(distance[j, i])))
        delta = cast(pair + cast(potential[i, j] + potential[j, i]) - cast(potential[i, i] + potential[j, j]))
        if j < i:
            matrix.deltas[j, i] = delta
        else:
            matrix.deltas[i, j] = delta
