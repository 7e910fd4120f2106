"""Kernels of quadratic assignment for dense matrices: a delta is a pass over rows, SIMD code that reads no order."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from moe_search.problems.arrays import largest_magnitude, read_only
from moe_search.problems.kernels import compiled, in_place, kernel, resolved
from moe_search.problems.moves import (
    commit_swap,
    commit_swap_and_deltas,
    empty_delta_matrix,
    exchange_seats,
    fill_deltas,
    fill_potential,
    find_least,
    swap_delta,
)
from moe_search.problems.permutation_problem import Permutation, inverse

# From this size on integers are held in the narrowest type that has room for them, as a delta takes as long as memory
# takes to deliver the rows. In 8 bits, at 512, 1,024 and 2,048 facilities, local search is 1.8, 2.2 and 3.2 times as
# fast and annealing 3 to 7 times. Smaller problems stay with the kernels of one type.
NARROW_FROM = 512
# So many updates of rank one are added to the potential at a time. It is read and written once for them all, which
# decides where it is beyond the cache, and they are added four by four: a multiple of four.
UPDATES = 8


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

    def delta_matrix(self) -> DenseDeltaMatrix:
        """Return the arrays for the deltas of all swaps, with a potential."""
        size, dtype = len(self.flow), self.delta_dtype
        deltas, least, _, scratch = empty_delta_matrix(size, dtype, scratch=5)
        updates = np.zeros((2, UPDATES, size), dtype=dtype)
        pending = np.zeros(1, dtype=np.int64)
        return DenseDeltaMatrix(
            deltas, least, np.zeros((size, size), dtype=dtype), np.zeros_like(least), updates, pending, scratch
        )

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


@kernel(swap_delta, SymmetricQuadraticState, allocates=False)
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


@kernel(commit_swap, SymmetricQuadraticState, allocates=False)
def _symmetric_commit_swap(state: SymmetricQuadraticState, a: int, b: int) -> None:
    swap_rows_and_columns(state.distance, a, b)
    exchange_seats(state.permutation, state.order, a, b)


@kernel(swap_delta, GeneralQuadraticState, allocates=False)
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


@kernel(commit_swap, GeneralQuadraticState, allocates=False)
def _general_commit_swap(state: GeneralQuadraticState, a: int, b: int) -> None:
    swap_rows_and_columns(state.distance, a, b)
    swap_rows_and_columns(state.distance_transposed, a, b)
    exchange_seats(state.permutation, state.order, a, b)


class DenseDeltaMatrix(NamedTuple):
    """The deltas of all swaps (see `DeltaMatrix`) and what brings them up to date."""

    deltas: npt.NDArray[Any]
    least: npt.NDArray[Any]
    potential: npt.NDArray[Any]  # (n, n): by facility and location, without the pending updates
    own: npt.NDArray[Any]  # (n,): the potential of every facility at its own location, with them
    updates: npt.NDArray[Any]  # (2, UPDATES, n): the two vectors of each pending update
    pending: npt.NDArray[np.int64]  # (1,): number of pending updates
    scratch: npt.NDArray[Any]  # (5, n)


# All swap deltas are kept up to date in O(1) each. Facility i would pay the potential ``K[i, l] = sum_k A[i, k] D[l,
# p(k)] + A[k, i] D[p(k), l]``, and its linear cost, at location l. With C the permuted distances, a swap has the delta
# ``K[i, p(j)] + K[j, p(i)] - K[i, p(i)] - K[j, p(j)] + (A[i, j] + A[j, i]) (C[i, j] + C[j, i])``. A committed swap of a
# and b adds a matrix of rank one (symmetric) or two to K, and changes the other deltas by ``-(x_i - x_j) (y_i - y_j)``,
# which is Taillard's update; the deltas with a and b follow from two rows and two columns of K, which take in what is
# pending.


@kernel(fill_potential, SymmetricQuadraticState, allocates=False)
def _symmetric_potential(state: SymmetricQuadraticState, matrix: DenseDeltaMatrix, first: int, last: int) -> None:
    matrix.pending[0] = 0
    begin_rows(matrix.potential, state.linear, first, last)
    add_products(matrix.potential, state.flow, state.distance, state.permutation, state.factor, first, last)
    find_own(matrix.own, matrix.potential, state.permutation, first, last)


@kernel(fill_potential, GeneralQuadraticState, allocates=False)
def _general_potential(state: GeneralQuadraticState, matrix: DenseDeltaMatrix, first: int, last: int) -> None:
    matrix.pending[0] = 0
    begin_rows(matrix.potential, state.linear, first, last)
    add_products(matrix.potential, state.flow, state.distance, state.permutation, 1, first, last)
    add_products(matrix.potential, state.flow_transposed, state.distance_transposed, state.permutation, 1, first, last)
    find_own(matrix.own, matrix.potential, state.permutation, first, last)


@kernel(fill_deltas, SymmetricQuadraticState, allocates=False)
def _symmetric_fill(
    state: SymmetricQuadraticState, matrix: DenseDeltaMatrix, block_size: int, first: int, last: int
) -> None:
    deltas_of_i, row = matrix.scratch[0], matrix.scratch[1]
    for i in range(first, last):
        collect(matrix.potential, matrix.updates, 0, matrix.own, state.permutation, i, row, deltas_of_i)
        add_pairs(deltas_of_i, matrix.own, state.flow, state.distance, state.factor, i)
        set_row(matrix.deltas, matrix.least, deltas_of_i, i)


@kernel(fill_deltas, GeneralQuadraticState, allocates=False)
def _general_fill(
    state: GeneralQuadraticState, matrix: DenseDeltaMatrix, block_size: int, first: int, last: int
) -> None:
    deltas_of_i, row = matrix.scratch[0], matrix.scratch[1]
    for i in range(first, last):
        collect(matrix.potential, matrix.updates, 0, matrix.own, state.permutation, i, row, deltas_of_i)
        add_general_pairs(deltas_of_i, matrix.own, state.flow, state.distance, i)
        set_row(matrix.deltas, matrix.least, deltas_of_i, i)


@kernel(commit_swap_and_deltas, SymmetricQuadraticState, allocates=False)
def _symmetric_commit(
    state: SymmetricQuadraticState, matrix: DenseDeltaMatrix, block_size: int, a: int, b: int
) -> None:
    deltas, least = matrix.deltas, matrix.least
    y, of_a, of_b, row = matrix.scratch[0], matrix.scratch[1], matrix.scratch[2], matrix.scratch[3]
    x = matrix.updates[0, matrix.pending[0]]
    difference(x, state.flow, a, b, state.factor)
    difference(y, state.distance, b, a, 1)
    add_update(matrix.updates, matrix.pending, matrix.own, state.permutation, y)
    commit_swap(state, a, b)
    for i, of_i in ((a, of_a), (b, of_b)):
        collect(matrix.potential, matrix.updates, matrix.pending[0], matrix.own, state.permutation, i, row, of_i)
    add_pairs(of_a, matrix.own, state.flow, state.distance, state.factor, a)
    add_pairs(of_b, matrix.own, state.flow, state.distance, state.factor, b)
    update_rows(deltas, least, x, y, of_a, of_b, a, b)
    add_updates(matrix.potential, matrix.updates, matrix.pending)


@kernel(commit_swap_and_deltas, GeneralQuadraticState, allocates=False)
def _general_commit(state: GeneralQuadraticState, matrix: DenseDeltaMatrix, block_size: int, a: int, b: int) -> None:
    deltas, least = matrix.deltas, matrix.least
    y, of_a, of_b, row = matrix.scratch[0], matrix.scratch[1], matrix.scratch[2], matrix.scratch[3]
    v = matrix.scratch[4]
    x, u = matrix.updates[0, matrix.pending[0]], matrix.updates[0, matrix.pending[0] + 1]
    difference(x, state.flow_transposed, a, b, 1)
    difference(y, state.distance_transposed, b, a, 1)
    difference(u, state.flow, a, b, 1)
    difference(v, state.distance, b, a, 1)
    add_update(matrix.updates, matrix.pending, matrix.own, state.permutation, y)
    add_update(matrix.updates, matrix.pending, matrix.own, state.permutation, v)
    commit_swap(state, a, b)
    for i, of_i in ((a, of_a), (b, of_b)):
        collect(matrix.potential, matrix.updates, matrix.pending[0], matrix.own, state.permutation, i, row, of_i)
    add_general_pairs(of_a, matrix.own, state.flow, state.distance, a)
    add_general_pairs(of_b, matrix.own, state.flow, state.distance, b)
    subtract_differences(deltas, u, v)
    update_rows(deltas, least, x, y, of_a, of_b, a, b)
    add_updates(matrix.potential, matrix.updates, matrix.pending)


def begin_rows(potential: Any, linear: Any, first: int, last: int) -> None:
    """Set rows first .. last - 1 of the potential to the linear costs, to zero for an empty vector."""
    begin = _begin_with_zeros if linear.ndim == 1 else _begin_with_linear
    begin(potential, linear, first, last)


def _begin_with_zeros(potential: Any, linear: Any, first: int, last: int) -> None:
    for i in range(first, last):
        for k in range(potential.shape[0]):
            potential[i, k] = 0


def _begin_with_linear(potential: Any, linear: Any, first: int, last: int) -> None:
    for i in range(first, last):
        for k in range(potential.shape[0]):
            potential[i, k] = linear[i, k]


@resolved(begin_rows)
def _resolve_begin_rows(potential: Any, linear: Any, first: int, last: int) -> Any:
    return _begin_with_zeros if linear.ndim == 1 else _begin_with_linear


@compiled
def add_products(potential: Any, a: Any, c: Any, permutation: Any, factor: int, first: int, last: int) -> None:
    """Add rows first .. last - 1 of ``factor * a @ c.T``, columns in the order of locations."""
    cast = potential.dtype.type
    for i in range(first, last):
        for j in range(a.shape[0]):
            total = cast(0)
            for k in range(a.shape[0]):
                total = cast(total + cast(cast(a[i, k]) * cast(c[j, k])))
            location = permutation[j]
            potential[i, location] = cast(potential[i, location] + cast(total * cast(factor)))


@in_place
def find_own(own: Any, potential: Any, permutation: Any, first: int, last: int) -> None:
    """Take facilities first .. last - 1 out of the potential, each at its own location."""
    for i in range(first, last):
        own[i] = potential[i, permutation[i]]


@in_place
def difference(x: Any, matrix: Any, a: int, b: int, factor: int) -> None:
    """Write ``factor * (matrix[a] - matrix[b])``."""
    cast = x.dtype.type
    for k in range(matrix.shape[0]):
        x[k] = cast(cast(cast(matrix[a, k]) - cast(matrix[b, k])) * cast(factor))


@in_place
def add_update(updates: Any, pending: Any, own: Any, permutation: Any, y: Any) -> None:
    """Make an update pending: the next vector by facility is written, `y` is the other one before the swap."""
    t = pending[0]
    cast = own.dtype.type
    for k in range(y.shape[0]):
        updates[1, t, permutation[k]] = y[k]
        own[k] = cast(own[k] + cast(updates[0, t, k] * y[k]))
    pending[0] = t + 1


@in_place
def add_updates(potential: Any, updates: Any, pending: Any) -> None:
    """Add the pending updates to the potential if there is no room for more."""
    if pending[0] < UPDATES:
        return
    pending[0] = 0
    cast = potential.dtype.type
    for i in range(potential.shape[0]):
        for t in range(0, UPDATES, 4):
            x0, x1 = updates[0, t, i], updates[0, t + 1, i]
            x2, x3 = updates[0, t + 2, i], updates[0, t + 3, i]
            for j in range(potential.shape[0]):
                first = cast(cast(x0 * updates[1, t, j]) + cast(x1 * updates[1, t + 1, j]))
                second = cast(cast(x2 * updates[1, t + 2, j]) + cast(x3 * updates[1, t + 3, j]))
                potential[i, j] = cast(potential[i, j] + cast(first + second))


@in_place
def collect(
    potential: Any, updates: Any, pending: int, own: Any, permutation: Any, i: int, row: Any, target: Any
) -> None:
    """Write ``K[i, p(j)] + K[j, p(i)]`` for every j, what is pending included, and find what slot i pays itself."""
    location = permutation[i]
    cast = potential.dtype.type
    for k in range(row.shape[0]):
        row[k] = potential[i, k]
        target[k] = potential[k, location]
    for t in range(pending):
        x, z = updates[0, t, i], updates[1, t, location]
        for k in range(row.shape[0]):
            row[k] = cast(row[k] + cast(x * updates[1, t, k]))
            target[k] = cast(target[k] + cast(updates[0, t, k] * z))
    own[i] = row[location]
    for k in range(row.shape[0]):
        target[k] = cast(target[k] + row[permutation[k]])


@in_place
def add_pairs(of_i: Any, own: Any, flow: Any, distance: Any, factor: int, i: int) -> None:
    """Turn the potentials collected for slot i of a symmetric problem into the deltas of all swaps with it."""
    cast = own.dtype.type
    for j in range(flow.shape[0]):
        pair = cast(cast(cast(flow[i, j]) * cast(distance[i, j])) * cast(2 * factor))
        of_i[j] = cast(cast(pair + of_i[j]) - cast(own[i] + own[j]))


@in_place
def add_general_pairs(of_i: Any, own: Any, flow: Any, distance: Any, i: int) -> None:
    """Turn the potentials collected for slot i of an asymmetric problem into the deltas of all swaps with it."""
    cast = own.dtype.type
    for j in range(flow.shape[0]):
        flows = cast(cast(flow[i, j]) + cast(flow[j, i]))
        pair = cast(flows * cast(cast(distance[i, j]) + cast(distance[j, i])))
        of_i[j] = cast(cast(pair + of_i[j]) - cast(own[i] + own[j]))


@in_place
def set_row(deltas: Any, least_of_row: Any, of_i: Any, i: int) -> None:
    """Write the deltas of the swaps of slot i with those behind it."""
    for j in range(np.uintp(i + 1), np.uintp(of_i.shape[0])):
        deltas[i, j] = of_i[j]
    find_least(deltas, least_of_row, of_i.shape[0], i)


@in_place
def subtract_differences(deltas: Any, x: Any, y: Any) -> None:
    """Subtract ``(x_i - x_j) (y_i - y_j)`` from all deltas."""
    cast = deltas.dtype.type
    for i in range(deltas.shape[0]):
        # Unsigned, or Numba allows for a negative index and gives up the SIMD code.
        for j in range(np.uintp(i + 1), np.uintp(deltas.shape[0])):
            deltas[i, j] = cast(deltas[i, j] - cast(cast(x[i] - x[j]) * cast(y[i] - y[j])))


@partial(in_place, fastmath={"nnan", "nsz"})
def update_rows(deltas: Any, least_of_row: Any, x: Any, y: Any, of_a: Any, of_b: Any, a: int, b: int) -> None:
    """Subtract ``(x_i - x_j) (y_i - y_j)`` from all deltas but those with slots a < b, which are given.

    All that is to be done with a row is done while it is in the cache, and here: calls for each row would cost more.
    What stands in columns a and b meanwhile may make the least of a row too low, by which it is only looked at once
    more.
    """
    cast = deltas.dtype.type
    size = deltas.shape[0]
    largest = least_of_row[size - 1]
    for i in range(size - 1):
        least = largest
        for j in range(np.uintp(i + 1), np.uintp(size)):
            delta = cast(deltas[i, j] - cast(cast(x[i] - x[j]) * cast(y[i] - y[j])))
            deltas[i, j] = delta
            least = min(least, delta)
        if i < a:
            deltas[i, a] = of_a[i]
            least = min(least, of_a[i])
        if i < b:
            deltas[i, b] = of_b[i]
            least = min(least, of_b[i])
        least_of_row[i] = least
    set_row(deltas, least_of_row, of_a, a)
    set_row(deltas, least_of_row, of_b, b)
