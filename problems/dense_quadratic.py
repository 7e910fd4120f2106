"""Kernels of quadratic assignment for dense matrices: a delta is a pass over rows, SIMD code that reads no order."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from moe_search.problems.arrays import largest_magnitude, read_only
from moe_search.problems.kernels import compiled, kernel, resolved
from moe_search.problems.moves import (
    DeltaMatrix,
    commit_swap,
    commit_swap_and_deltas,
    empty_delta_matrix,
    exchange_seats,
    fill_deltas,
    fill_potential,
    swap_delta,
)
from moe_search.problems.permutation_problem import Permutation, inverse

# From this size on integers are held in the narrowest type that has room for them, as a delta takes as long as memory
# takes to deliver the rows. In 8 bits, at 512, 1,024 and 2,048 facilities, local search is 1.8, 2.2 and 3.2 times as
# fast and annealing 3 to 7 times. Smaller problems stay with the kernels of one type.
NARROW_FROM = 512


class DenseArrays(NamedTuple):
    """The same problem with zero diagonals.

    `factor` is 1 or 2 if both matrices are symmetric now, 0 in the general case; `linear` is an empty vector where
    there is no linear term. `delta_dtype` holds any delta and any sum of four potentials.
    """

    flow: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    linear: npt.NDArray[Any]
    factor: int
    delta_dtype: npt.DTypeLike

    def state(self, p: Permutation) -> SymmetricQuadraticState | GeneralQuadraticState:
        """Return the arrays of the kernels at a permutation, which becomes part of them."""
        permuted = np.ascontiguousarray(self.distance[np.ix_(p, p)])
        if self.factor:
            return SymmetricQuadraticState(p, inverse(p), self.flow, permuted, self.linear, self.factor)
        flow_transposed = np.ascontiguousarray(self.flow.T)
        permuted_transposed = np.ascontiguousarray(permuted.T)
        return GeneralQuadraticState(
            p, inverse(p), self.flow, flow_transposed, permuted, permuted_transposed, self.linear
        )

    def delta_matrix(self) -> DeltaMatrix:
        """Return the arrays for the deltas of all swaps, with a potential."""
        return empty_delta_matrix(len(self.flow), self.delta_dtype, with_potential=True)

    @property
    def fill_cost(self) -> int:
        """Operations of about a nanosecond, each of which fills with some multiplications at a time."""
        return len(self.flow) ** 3 // 10


def dense_arrays(flow: npt.NDArray[Any], distance: npt.NDArray[Any], linear: npt.NDArray[Any] | None) -> DenseArrays:
    """Return the arrays of a problem."""
    folded = np.zeros_like(flow, shape=0) if linear is None else linear
    diagonals = np.diagonal(flow), np.diagonal(distance)
    if all(d.any() for d in diagonals):
        folded = np.outer(*diagonals) + (0 if linear is None else linear)
    a, b = flow.copy(), distance.copy()
    np.fill_diagonal(a, 0)
    np.fill_diagonal(b, 0)
    a_symmetric, b_symmetric = np.array_equal(a, a.T), np.array_equal(b, b.T)
    factor = 0
    if a_symmetric and b_symmetric:
        factor = 2
    elif a_symmetric:
        b, factor = b + b.T, 1
    elif b_symmetric:
        a, factor = a + a.T, 1
    delta_dtype = a.dtype
    if a.dtype.kind == "i":
        passes = 2 if factor == 0 else factor
        spread = int(np.ptp(a)) * int(np.ptp(b))
        largest = largest_magnitude(a) * largest_magnitude(b)
        if 2 * (a.shape[0] * spread + 4 * largest) < 2**31 and max(largest_magnitude(a), largest_magnitude(b)) < 2**31:
            narrow = _storage(a.shape[0], max(largest_magnitude(a), largest_magnitude(b)))
            a, b = a.astype(narrow), b.astype(narrow)
            once = largest_magnitude(folded) if folded.size else 0
            if 8 * passes * (a.shape[0] * spread + 4 * largest) + 4 * once < 2**31:
                delta_dtype = np.dtype(np.int32)
    return DenseArrays(read_only(a), read_only(b), read_only(folded), factor, delta_dtype)


def _storage(size: int, largest: Any) -> type[np.signedinteger[Any]]:
    """Return the type that holds integers of at most 32 bits; differences of narrower ones fit into 16."""
    if size < NARROW_FROM:
        return np.int32
    return np.int8 if largest < 2**7 else np.int16 if largest < 2**14 else np.int32


class SymmetricQuadraticState(NamedTuple):
    """Arrays of the kernels where both matrices are symmetric; `distance` is permuted."""

    permutation: Permutation
    order: Permutation
    flow: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    linear: npt.NDArray[Any]
    factor: int


class GeneralQuadraticState(NamedTuple):
    """Arrays of the kernels where both matrices are asymmetric; the distances are permuted."""

    permutation: Permutation
    order: Permutation
    flow: npt.NDArray[Any]
    flow_transposed: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    distance_transposed: npt.NDArray[Any]
    linear: npt.NDArray[Any]


# Between two moves ``distance`` of a state is D[p][:, p], so that a delta is one contiguous pass over two rows of each
# matrix. Diagonals are zero, folded into the linear term. If one matrix is asymmetric it is replaced by M + M^T and the
# factor 2 of the symmetric delta by 1; only if both are asymmetric are the general kernels used, which keep transposed
# matrices too, for contiguous columns.


def types_of_sums(matrix: Any) -> Any:
    """Return the types of differences of two numbers of a matrix, and of sums of products of these."""
    return _types_of_narrow_sums(matrix) if matrix.dtype in (np.int8, np.int16) else _types_of_own_sums(matrix)


def _types_of_narrow_sums(matrix: Any) -> Any:
    return np.int16, np.int32


def _types_of_own_sums(matrix: Any) -> Any:
    return matrix.dtype.type, matrix.dtype.type


@resolved(types_of_sums)
def _resolve_types_of_sums(matrix: Any) -> Any:
    return _types_of_narrow_sums if matrix.dtype in (types.int8, types.int16) else _types_of_own_sums


def linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    """Return the change of the linear term when facilities a and b exchange locations; zero for an empty vector."""
    return _no_linear_delta(linear, permutation, a, b) if linear.ndim == 1 else _linear_delta(linear, permutation, a, b)


def _no_linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    return linear.dtype.type(0)


def _linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    i = permutation[a]
    j = permutation[b]
    return linear[a, j] - linear[a, i] + linear[b, i] - linear[b, j]


@resolved(linear_delta)
def _resolve_linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    # Resolved by type, not by a branch at run time; see the symmetric swap delta.
    return _no_linear_delta if linear.ndim == 1 else _linear_delta


@compiled
def swap_rows_and_columns(matrix: Any, a: int, b: int) -> None:
    """Exchange rows a and b, then columns a and b, of a square matrix in place."""
    if a == b:
        return
    n = matrix.shape[0]
    for k in range(n):
        matrix[a, k], matrix[b, k] = matrix[b, k], matrix[a, k]
    for k in range(n):
        matrix[k, a], matrix[k, b] = matrix[k, b], matrix[k, a]


@kernel(swap_delta, SymmetricQuadraticState)
def _symmetric_swap_delta(state: SymmetricQuadraticState, a: int, b: int) -> Any:
    flow_a = state.flow[a]
    flow_b = state.flow[b]
    distance_a = state.distance[a]
    distance_b = state.distance[b]
    # int32 * int32 is int64 to Numba, which halves the SIMD width: cast back at every step.
    less, cast = types_of_sums(state.flow)
    total = cast(0)
    for k in range(flow_a.shape[0]):
        flows, distances = less(less(flow_a[k]) - less(flow_b[k])), less(less(distance_b[k]) - less(distance_a[k]))
        total = cast(total + cast(cast(flows) * cast(distances)))
    # The pass took in k = a and k = b, each of which contributes -flow[a, b] * distance[a, b]. There is no branch for
    # a = b, where this is zero: with a second basic block Numba keeps its reference counts, at three times the cost.
    total = cast(total + cast(cast(2) * cast(cast(flow_a[b]) * cast(distance_a[b]))))
    return total * state.factor + linear_delta(state.linear, state.permutation, a, b)


@kernel(commit_swap, SymmetricQuadraticState)
def _symmetric_commit_swap(state: SymmetricQuadraticState, a: int, b: int) -> None:
    swap_rows_and_columns(state.distance, a, b)
    exchange_seats(state.permutation, state.order, a, b)


@kernel(swap_delta, GeneralQuadraticState)
def _general_swap_delta(state: GeneralQuadraticState, a: int, b: int) -> Any:
    row_a, row_b = state.flow[a], state.flow[b]
    column_a, column_b = state.flow_transposed[a], state.flow_transposed[b]
    distance_row_a, distance_row_b = state.distance[a], state.distance[b]
    distance_column_a, distance_column_b = state.distance_transposed[a], state.distance_transposed[b]
    less, cast = types_of_sums(state.flow)
    total = cast(0)
    for k in range(row_a.shape[0]):
        flows = less(less(row_a[k]) - less(row_b[k]))
        distances = less(less(distance_row_b[k]) - less(distance_row_a[k]))
        total = cast(total + cast(cast(flows) * cast(distances)))
        flows = less(less(column_a[k]) - less(column_b[k]))
        distances = less(less(distance_column_b[k]) - less(distance_column_a[k]))
        total = cast(total + cast(cast(flows) * cast(distances)))
    # What k = a and k = b put into the pass, and what the two entries between a and b change, in one product.
    flows = less(less(row_a[b]) + less(column_a[b]))
    distances = less(less(distance_row_a[b]) + less(distance_column_a[b]))
    total = cast(total + cast(cast(flows) * cast(distances)))
    # The linear part is a 64-bit number even where there is none, which makes the sum one too.
    return total + linear_delta(state.linear, state.permutation, a, b)


@kernel(commit_swap, GeneralQuadraticState)
def _general_commit_swap(state: GeneralQuadraticState, a: int, b: int) -> None:
    swap_rows_and_columns(state.distance, a, b)
    swap_rows_and_columns(state.distance_transposed, a, b)
    exchange_seats(state.permutation, state.order, a, b)


# All swap deltas are kept up to date in O(1) each. With C the permuted distances, facility i would pay the potential
# ``K[i, j] = sum_k A[i, k] C[j, k] + A[k, i] C[k, j]``, and its linear cost, at the location of j. A swap has the delta
# ``K[i, j] + K[j, i] - K[i, i] - K[j, j] + (A[i, j] + A[j, i]) (C[i, j] + C[j, i])``. A committed swap of a and b adds
# a matrix of rank one (symmetric) or two to K, exchanges its columns a and b up to a correction, and changes the other
# deltas by ``-(x_i - x_j) (y_i - y_j)``, which is Taillard's update; the deltas with a and b follow from K.


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
        row_of_deltas(matrix.deltas, matrix.potential, state.flow, state.distance, state.factor, i)


@kernel(fill_deltas, GeneralQuadraticState)
def _general_fill(state: GeneralQuadraticState, matrix: DeltaMatrix, block_size: int, first: int, last: int) -> None:
    for i in range(first, last):
        general_row_of_deltas(matrix.deltas, matrix.potential, state.flow, state.distance, i)


@kernel(commit_swap_and_deltas, SymmetricQuadraticState)
def _symmetric_commit(state: SymmetricQuadraticState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    deltas, potential, flow, distance = matrix.deltas, matrix.potential, state.flow, state.distance
    x, y = matrix.scratch[0], matrix.scratch[1]
    difference(x, flow, a, b, state.factor)
    difference(y, distance, b, a, 1)
    # What the exchange of the columns leaves to correct; the columns themselves take no part in the update.
    pair = x.dtype.type(distance[a, b])
    y[a] = 0
    y[b] = 0
    add_rank_one(potential, x, y)
    exchange_columns(potential, x, a, b, pair, pair)
    subtract_differences(deltas, x, y)
    commit_swap(state, a, b)
    row_of_deltas(deltas, potential, flow, distance, state.factor, a)
    row_of_deltas(deltas, potential, flow, distance, state.factor, b)


@kernel(commit_swap_and_deltas, GeneralQuadraticState)
def _general_commit(state: GeneralQuadraticState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    deltas, potential, flow, distance = matrix.deltas, matrix.potential, state.flow, state.distance
    x, y, u, v = matrix.scratch[0], matrix.scratch[1], matrix.scratch[2], matrix.scratch[3]
    difference(x, state.flow_transposed, a, b, 1)
    difference(y, state.distance_transposed, b, a, 1)
    difference(u, flow, a, b, 1)
    difference(v, distance, b, a, 1)
    forth = x.dtype.type(distance[a, b])
    back = x.dtype.type(distance[b, a])
    for each in (y, v):
        each[a] = 0
        each[b] = 0
    add_rank_one(potential, x, y)
    add_rank_one(potential, u, v)
    exchange_columns(potential, x, a, b, back, forth)
    correct_columns(potential, u, a, b, forth, back)
    subtract_differences(deltas, x, y)
    subtract_differences(deltas, u, v)
    commit_swap(state, a, b)
    general_row_of_deltas(deltas, potential, flow, distance, a)
    general_row_of_deltas(deltas, potential, flow, distance, b)


@compiled
def add_products(potential: Any, a: Any, c: Any, factor: int, first: int, last: int) -> None:
    """Add rows first .. last - 1 of ``factor * a @ c.T``."""
    cast = potential.dtype.type
    for i in range(first, last):
        for j in range(a.shape[0]):
            total = cast(0)
            for k in range(a.shape[0]):
                total = cast(total + cast(cast(a[i, k]) * cast(c[j, k])))
            potential[i, j] = cast(potential[i, j] + cast(total * cast(factor)))


def add_linear(potential: Any, linear: Any, permutation: Any, first: int, last: int) -> None:
    """Add the linear cost of every facility at the location of every other; nothing for an empty vector."""
    if linear.ndim == 2:
        _add_linear(potential, linear, permutation, first, last)


def _add_no_linear(potential: Any, linear: Any, permutation: Any, first: int, last: int) -> None:
    pass


def _add_linear(potential: Any, linear: Any, permutation: Any, first: int, last: int) -> None:
    for i in range(first, last):
        for j in range(permutation.shape[0]):
            potential[i, j] = potential.dtype.type(potential[i, j] + linear[i, permutation[j]])


@resolved(add_linear)
def _resolve_add_linear(potential: Any, linear: Any, permutation: Any, first: int, last: int) -> Any:
    return _add_no_linear if linear.ndim == 1 else _add_linear


@compiled
def difference(x: Any, matrix: Any, a: int, b: int, factor: int) -> None:
    """Write ``factor * (matrix[a] - matrix[b])``."""
    cast = x.dtype.type
    for k in range(matrix.shape[0]):
        x[k] = cast(cast(cast(matrix[a, k]) - cast(matrix[b, k])) * cast(factor))


@compiled
def add_rank_one(potential: Any, x: Any, y: Any) -> None:
    """Add ``x_i y_j``."""
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        for j in range(potential.shape[0]):
            potential[i, j] = cast(potential[i, j] + cast(x[i] * y[j]))


@compiled
def exchange_columns(potential: Any, x: Any, a: int, b: int, back: Any, forth: Any) -> None:
    """Exchange columns a and b, corrected by what the two facilities pay each other."""
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        potential[i, a], potential[i, b] = (
            cast(potential[i, b] - cast(x[i] * back)),
            cast(potential[i, a] + cast(x[i] * forth)),
        )


@compiled
def correct_columns(potential: Any, u: Any, a: int, b: int, forth: Any, back: Any) -> None:
    """Correct columns a and b by the second half of an asymmetric problem."""
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        potential[i, a] = cast(potential[i, a] - cast(u[i] * forth))
        potential[i, b] = cast(potential[i, b] + cast(u[i] * back))


@compiled
def subtract_differences(deltas: Any, x: Any, y: Any) -> None:
    """Subtract ``(x_i - x_j) (y_i - y_j)`` from the upper triangle."""
    cast = deltas.dtype.type
    for i in range(deltas.shape[0]):
        # Unsigned, or Numba allows for a negative index and gives up the SIMD code.
        for j in range(np.uintp(i + 1), np.uintp(deltas.shape[0])):
            deltas[i, j] = cast(deltas[i, j] - cast(cast(x[i] - x[j]) * cast(y[i] - y[j])))


@compiled
def row_of_deltas(deltas: Any, potential: Any, flow: Any, distance: Any, factor: int, i: int) -> None:
    """Compute the deltas of all swaps with slot i of a symmetric problem."""
    cast = potential.dtype.type
    for j in range(flow.shape[0]):
        pair = cast(cast(cast(flow[i, j]) * cast(distance[i, j])) * cast(2 * factor))
        delta = cast(pair + cast(potential[i, j] + potential[j, i]) - cast(potential[i, i] + potential[j, j]))
        if j < i:
            deltas[j, i] = delta
        else:
            deltas[i, j] = delta


@compiled
def general_row_of_deltas(deltas: Any, potential: Any, flow: Any, distance: Any, i: int) -> None:
    """Compute the deltas of all swaps with slot i of an asymmetric problem."""
    cast = potential.dtype.type
    for j in range(flow.shape[0]):
        flows = cast(cast(flow[i, j]) + cast(flow[j, i]))
        pair = cast(flows * cast(cast(distance[i, j]) + cast(distance[j, i])))
        delta = cast(pair + cast(potential[i, j] + potential[j, i]) - cast(potential[i, i] + potential[j, j]))
        if j < i:
            deltas[j, i] = delta
        else:
            deltas[i, j] = delta
