"""Kernels of quadratic assignment where one matrix is sparse: a delta is a pass over neighbors, whatever the size."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import dense, is_sparse, largest_magnitude, read_only
from moe_search.problems.dense_quadratic import linear_delta
from moe_search.problems.kernels import compiled, kernel
from moe_search.problems.moves import (
    DeltaMatrix,
    commit_swap,
    commit_swap_and_deltas,
    empty_delta_matrix,
    exchange_seats,
    find_least,
    swap_delta,
)
from moe_search.problems.permutation_problem import Permutation, inverse

# A matrix is sparse from this size on, where neighbors are at most this share of a row: beyond, a pass over neighbors,
# one after the other, takes as long as the SIMD pass over all. Measured by `moe_search.bench.speed.sparse_speed`. Where
# dense matrices are held in fewer than 32 bits their deltas are as fast from half of it on; annealing, which commits
# more, still gains by neighbors (1.3 times at 1,000 facilities).
SPARSE_FROM = 256
SPARSE_SHARE = 1 / 50


class SparseArrays(NamedTuple):
    """The same problem as neighbors of nodes, which a value goes with, and a dense matrix.

    Nodes are the facilities where the flow is sparse, and the locations where the distance is. The neighbors of node x
    are ``neighbors[starts[x] : starts[x + 1]]``, never x itself. `back`, and `other_transposed`, are empty where both
    matrices are symmetric or made so, by `factor` 1 or 2; else `factor` is 0, and they are the values from the
    neighbors to x. `linear` is an empty vector where there is no linear term.
    """

    of_flow: bool
    starts: npt.NDArray[np.uint32]
    neighbors: npt.NDArray[np.uint32]
    values: npt.NDArray[Any]
    back: npt.NDArray[Any]
    other: npt.NDArray[Any]
    other_transposed: npt.NDArray[Any]
    linear: npt.NDArray[Any]
    factor: int
    delta_dtype: npt.DTypeLike

    def state(self, p: Permutation) -> SparseQuadraticState | GeneralSparseQuadraticState:
        """Return the arrays of the kernels at a permutation, which becomes part of them."""
        order = inverse(p)
        facility = np.arange(len(p))
        nodes = (facility, facility, p) if self.of_flow else (p, order, order)
        place = nodes[2]
        graph = (self.starts, self.neighbors, self.values)
        source = np.repeat(np.arange(len(p)), np.diff(self.starts))
        ends = place[source], place[self.neighbors]
        paid = np.zeros(len(p), dtype=self.values.dtype)
        np.add.at(paid, source, self.values * self.other[ends])
        if self.factor:
            return SparseQuadraticState(p, order, *nodes, *graph, self.other, paid, self.linear, self.factor)
        np.add.at(paid, source, self.back * self.other_transposed[ends])
        return GeneralSparseQuadraticState(
            p, order, *nodes, *graph, self.back, self.other, self.other_transposed, paid, self.linear
        )

    def delta_matrix(self) -> DeltaMatrix:
        """Return the arrays for the deltas of all swaps, without a potential."""
        return empty_delta_matrix(len(self.other), self.delta_dtype, scratch=3)

    @property
    def fill_cost(self) -> int:
        """Operations of about a nanosecond, of which a neighbor takes some."""
        return 8 * len(self.other) * (len(self.other) + len(self.neighbors))


def sparse_arrays(flow: Any, distance: npt.NDArray[Any], linear: npt.NDArray[Any] | None) -> SparseArrays | None:
    """Return the arrays of a problem one of whose matrices is sparse enough; None if neither is."""
    size = distance.shape[0]
    if size < SPARSE_FROM:
        return None
    graphs = [(_edges(matrix), k) for k, matrix in enumerate((flow, distance)) if _is_sparse(matrix)]
    graphs = [(edges, k) for edges, k in graphs if len(edges[0]) <= SPARSE_SHARE * size**2]
    if not graphs:
        return None
    (x, y, values, back), which = min(graphs, key=lambda each: len(each[0][0]))
    other = distance if which == 0 else dense(flow)
    folded = np.zeros_like(distance, shape=0) if linear is None else linear
    diagonals = flow.diagonal(), distance.diagonal()
    if all(d.any() for d in diagonals):
        folded = np.outer(*diagonals) + (0 if linear is None else linear)
    factor = 0
    symmetric, other_symmetric = np.array_equal(values, back), np.array_equal(other, other.T)
    if symmetric and other_symmetric:
        factor = 2
    elif symmetric:
        other, factor = other + other.T, 1
    elif other_symmetric:
        values, factor = values + back, 1
    if other.diagonal().any():
        other = other.copy()
        np.fill_diagonal(other, 0)
    delta_dtype = other.dtype
    if other.dtype.kind == "i":
        largest = int(largest_magnitude(other))
        if largest < 2**31:
            other = other.astype(np.int32)
        sums = np.bincount(x, np.abs(values) + (0 if factor else np.abs(back)), minlength=size)
        once = int(largest_magnitude(folded)) if folded.size else 0
        if 8 * max(factor, 1) * int(sums.max()) * largest + 4 * once < 2**31:
            delta_dtype = np.dtype(np.int32)
    empty = np.zeros_like(other, shape=(0, 0))
    return SparseArrays(
        which == 0,
        read_only(np.searchsorted(x, np.arange(size + 1)).astype(np.uint32)),
        read_only(y.astype(np.uint32)),
        read_only(values),
        read_only(back if factor == 0 else back[:0]),
        read_only(np.ascontiguousarray(other)),
        read_only(np.ascontiguousarray(other.T) if factor == 0 else empty),
        read_only(folded),
        factor,
        delta_dtype,
    )


def _is_sparse(matrix: Any) -> bool:
    stored = matrix.nnz if is_sparse(matrix) else np.count_nonzero(matrix)
    return stored <= SPARSE_SHARE * matrix.shape[0] ** 2 + matrix.shape[0]


def _edges(matrix: Any) -> tuple[npt.NDArray[Any], ...]:
    """Return pairs (x, y) sorted, x not y, with what x gives to y and y to x; either of these is not zero."""
    size = matrix.shape[0]
    rows, columns = matrix.nonzero()
    given = np.asarray(matrix[rows, columns]).ravel()
    apart = rows != columns
    rows, columns, given = rows[apart].astype(np.int64), columns[apart].astype(np.int64), given[apart]
    keys = np.concatenate([rows * size + columns, columns * size + rows])
    keys, where = np.unique(keys, return_inverse=True)
    values, back = np.zeros((2, len(keys)), dtype=given.dtype)
    values[where[: len(rows)]] = given
    back[where[len(rows) :]] = given
    return keys // size, keys % size, values, back


class SparseQuadraticState(NamedTuple):
    """Arrays of the kernels where both matrices are symmetric."""

    permutation: Permutation
    order: Permutation
    node: Permutation  # of a slot: the slot itself, or its seat
    slot: Permutation  # of a node
    place: Permutation  # of a node, in `other`: its seat, or its slot
    starts: npt.NDArray[np.uint32]
    neighbors: npt.NDArray[np.uint32]
    values: npt.NDArray[Any]
    other: npt.NDArray[Any]
    paid: npt.NDArray[Any]  # what a node pays its neighbors
    linear: npt.NDArray[Any]
    factor: int


class GeneralSparseQuadraticState(NamedTuple):
    """Arrays of the kernels where both matrices are asymmetric."""

    permutation: Permutation
    order: Permutation
    node: Permutation
    slot: Permutation
    place: Permutation
    starts: npt.NDArray[np.uint32]
    neighbors: npt.NDArray[np.uint32]
    values: npt.NDArray[Any]
    back: npt.NDArray[Any]
    other: npt.NDArray[Any]
    other_transposed: npt.NDArray[Any]
    paid: npt.NDArray[Any]
    linear: npt.NDArray[Any]


# To swap two slots is to exchange the places of their two nodes. What the two would pay then is summed over their
# neighbors; what they pay now is kept in `paid`. The sums read rows of `other` at the place of the first slot and at
# those of its neighbors alone, which stay in the cache while a search tries one slot with all others.


@kernel(swap_delta, SparseQuadraticState, allocates=False)
def _sparse_swap_delta(state: SparseQuadraticState, a: int, b: int) -> Any:
    # Unsigned, or Numba allows for negative indices, and keeps its reference counts, at three times the cost.
    x, y, one = np.uintp(state.node[a]), np.uintp(state.node[b]), np.uintp(1)
    place_x, place_y = np.uintp(state.place[x]), np.uintp(state.place[y])
    start_x, start_y = np.uintp(state.starts[x]), np.uintp(state.starts[y])
    of_x = np.uintp(state.starts[x + one]) - start_x
    of_both = of_x + np.uintp(state.starts[y + one]) - start_y
    total = -(state.paid[x] + state.paid[y])
    pair = state.paid.dtype.type(0)
    # One loop for both: with a second one it keeps them, too.
    for k in range(of_both):
        first = k < of_x
        e = start_x + k if first else start_y + (k - of_x)
        z = np.uintp(state.neighbors[e])
        place_z = np.uintp(state.place[z])
        value = state.values[e]
        total += value * state.other[place_z if first else place_x, place_y if first else place_z]
        pair += value * (z == x)
    # The loop met the two in each other's place, which costs nothing there.
    total += pair * 2 * state.other[place_x, place_y]
    return total * state.factor + linear_delta(state.linear, state.permutation, a, b)


@kernel(swap_delta, GeneralSparseQuadraticState, allocates=False)
def _general_sparse_swap_delta(state: GeneralSparseQuadraticState, a: int, b: int) -> Any:
    x, y, one = np.uintp(state.node[a]), np.uintp(state.node[b]), np.uintp(1)
    place_x, place_y = np.uintp(state.place[x]), np.uintp(state.place[y])
    start_x, start_y = np.uintp(state.starts[x]), np.uintp(state.starts[y])
    of_x = np.uintp(state.starts[x + one]) - start_x
    of_both = of_x + np.uintp(state.starts[y + one]) - start_y
    total = -(state.paid[x] + state.paid[y])
    pair = state.paid.dtype.type(0)
    for k in range(of_both):
        first = k < of_x
        e = start_x + k if first else start_y + (k - of_x)
        z = np.uintp(state.neighbors[e])
        place_z = np.uintp(state.place[z])
        value, back = state.values[e], state.back[e]
        row, column = place_z if first else place_x, place_y if first else place_z
        straight, crossed = state.other[row, column], state.other_transposed[row, column]
        total += value * (crossed if first else straight) + back * (straight if first else crossed)
        pair += (value + back) * (z == x)
    # What the two pay each other was taken off twice, and is the same sum of products in either place but one.
    total += pair * (state.other[place_x, place_y] + state.paid.dtype.type(state.other[place_y, place_x]))
    return total + linear_delta(state.linear, state.permutation, a, b)


@kernel(commit_swap, SparseQuadraticState, allocates=False)
def _sparse_commit_swap(state: SparseQuadraticState, a: int, b: int) -> None:
    x, y = state.node[a], state.node[b]
    exchange_places(state, state.values, state.other, x, y)
    exchange_seats(state.permutation, state.order, a, b)
    for node in (x, y):
        state.paid[node] = cost_in_place(state, state.values, state.other, node)


@kernel(commit_swap, GeneralSparseQuadraticState, allocates=False)
def _general_sparse_commit_swap(state: GeneralSparseQuadraticState, a: int, b: int) -> None:
    x, y = state.node[a], state.node[b]
    exchange_places(state, state.values, state.other, x, y)
    exchange_places(state, state.back, state.other_transposed, x, y)
    exchange_seats(state.permutation, state.order, a, b)
    for node in (x, y):
        straight = cost_in_place(state, state.values, state.other, node)
        state.paid[node] = straight + cost_in_place(state, state.back, state.other_transposed, node)


@compiled
def exchange_places(state: Any, values: Any, other: Any, x: int, y: int) -> None:
    """Let the neighbors of nodes x and y pay for them in the place of each other, before they are there."""
    place, paid = state.place, state.paid
    for node, after in ((x, place[y]), (y, place[x])):
        before = place[node]
        for e in range(state.starts[node], state.starts[node + 1]):
            z = state.neighbors[e]
            paid[z] += values[e] * (paid.dtype.type(other[after, place[z]]) - other[before, place[z]])


@compiled
def cost_in_place(state: Any, values: Any, other: Any, x: int) -> Any:
    """Return what node x pays its neighbors."""
    total = state.paid.dtype.type(0)
    for e in range(state.starts[x], state.starts[x + 1]):
        total += values[e] * other[state.place[x], state.place[state.neighbors[e]]]
    return total


# A committed swap of a and b changes the delta of slots i and j by ``-(w_i - w_j) (h_i - h_j)``, as in the dense case.
# Here w is the difference of what a node exchanges with those of a and of b, zero but for neighbors of these, and h
# that of the rows of `other`. Deltas with a or b are computed afresh, by a pass over neighbors: no potential is kept.


@kernel(commit_swap_and_deltas, SparseQuadraticState, allocates=False)
def _sparse_commit(state: SparseQuadraticState, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    update_deltas(state, matrix, state.values, state.other, state.factor, a, b)
    commit_swap(state, a, b)
    row_of_swap_deltas(state, matrix, a)
    row_of_swap_deltas(state, matrix, b)


@kernel(commit_swap_and_deltas, GeneralSparseQuadraticState, allocates=False)
def _general_sparse_commit(
    state: GeneralSparseQuadraticState, matrix: DeltaMatrix, block_size: int, a: int, b: int
) -> None:
    update_deltas(state, matrix, state.values, state.other, 1, a, b)
    update_deltas(state, matrix, state.back, state.other_transposed, 1, a, b)
    commit_swap(state, a, b)
    row_of_swap_deltas(state, matrix, a)
    row_of_swap_deltas(state, matrix, b)


@compiled
def update_deltas(state: Any, matrix: DeltaMatrix, values: Any, other: Any, factor: int, a: int, b: int) -> None:
    """Bring the deltas of swaps without slots a and b up to date, before these two are swapped."""
    starts, neighbors, slot = state.starts, state.neighbors, state.slot
    w, h, done = matrix.scratch[0], matrix.scratch[1], matrix.scratch[2]
    x, y = state.node[a], state.node[b]
    for i in range(h.shape[0]):
        place = state.place[state.node[i]]
        h[i] = other[state.place[y], place] - other[state.place[x], place]
    for e in range(starts[x], starts[x + 1]):
        w[slot[neighbors[e]]] += factor * values[e]
    for e in range(starts[y], starts[y + 1]):
        w[slot[neighbors[e]]] -= factor * values[e]
    for node in (x, y):
        for e in range(starts[node], starts[node + 1]):
            i = slot[neighbors[e]]
            if done[i] == 0 and w[i] != 0:
                subtract_row(matrix, w, h, i)
            done[i] = 1
    for node in (x, y):
        for e in range(starts[node], starts[node + 1]):
            w[slot[neighbors[e]]] = 0
            done[slot[neighbors[e]]] = 0


@compiled
def subtract_row(matrix: DeltaMatrix, w: Any, h: Any, i: int) -> None:
    """Subtract ``(w_i - w_j) (h_i - h_j)`` from the deltas of slot i; of two slots with a w the first one does."""
    deltas, least = matrix.deltas, matrix.least
    cast = deltas.dtype.type
    for j in range(i):
        if w[j] == 0:
            deltas[j, i] -= w[i] * (h[i] - h[j])
            least[j] = min(least[j], deltas[j, i])
    for j in range(np.uintp(i + 1), np.uintp(deltas.shape[0])):
        deltas[i, j] = cast(deltas[i, j] - cast(cast(w[i] - w[j]) * cast(h[i] - h[j])))
    find_least(deltas, least, deltas.shape[0], i)


@compiled
def row_of_swap_deltas(state: Any, matrix: DeltaMatrix, i: int) -> None:
    """Compute the deltas of all swaps with slot i."""
    deltas, least = matrix.deltas, matrix.least
    for j in range(i):
        deltas[j, i] = swap_delta(state, i, j)
        least[j] = min(least[j], deltas[j, i])
    for j in range(i, deltas.shape[0]):
        deltas[i, j] = swap_delta(state, i, j)
    find_least(deltas, least, deltas.shape[0], i)
