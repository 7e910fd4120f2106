"""Quadratic assignment in Koopmans-Beckmann form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit
from numba.extending import overload

from moe_search.problems.arrays import (
    largest_magnitude,
    numeric_array,
    read_only,
    require_fits,
    square_matrix,
)
from moe_search.problems.delta_matrix import DeltaMatrix, empty_delta_matrix
from moe_search.problems.moves import commit_swap, exchange_seats, kernel, swap_delta
from moe_search.problems.problem import Permutation, Problem, inverse


@dataclass(frozen=True, eq=False)
class QuadraticAssignment(Problem):
    """Place n facilities on n locations; the form of Koopmans and Beckmann (1957).

    ``value(p) = sum_{i, j} flow[i, j] * distance[p[i], p[j]] + sum_i linear[i, p[i]]``, over all ordered pairs, the
    diagonal included.

    Parameters
    ----------
    flow, distance : array_like, shape (n, n)
        Integers are kept exact; floats in either make the problem a floating-point one.
    linear : array_like, shape (n, n), optional
        Cost of facility i at location k.

    Raises
    ------
    ValueError
        If a matrix is not square, the shapes differ, an entry is NaN or infinite, or totals could overflow.
    TypeError
        If the entries are not real numbers.

    Notes
    -----
    The kernels keep ``distance[p][:, p]`` in memory, so that a delta is one contiguous pass over two rows of each
    matrix. The diagonals are folded into the linear term. If one matrix is asymmetric it is replaced by M + M^T and the
    factor 2 of the symmetric delta by 1; only if both are asymmetric is the general kernel used. Integer matrices are
    held in 32 bits where no delta can overflow them.

    Examples
    --------
    >>> from moe_search.problems.quadratic import QuadraticAssignment
    >>> QuadraticAssignment([[0, 3], [3, 0]], [[0, 2], [2, 0]]).value([1, 0])
    12
    """

    flow: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    linear: npt.NDArray[Any] | None = None
    kernel_arrays: KernelArrays = field(init=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        flow = square_matrix("flow", self.flow)
        distance = square_matrix("distance", self.distance)
        if flow.shape != distance.shape:
            raise ValueError(f"flow and distance must have one shape, got {flow.shape} and {distance.shape}")
        linear = None if self.linear is None else numeric_array("linear", self.linear, 2)
        if linear is not None and linear.shape != flow.shape:
            raise ValueError(f"linear must have the shape of flow, {flow.shape}, got {linear.shape}")
        parts = [a for a in (flow, distance, linear) if a is not None]
        if not all(a.dtype.kind == "i" for a in parts):
            flow, distance = (read_only(a.astype(np.float64)) for a in (flow, distance))
            linear = None if linear is None else read_only(linear.astype(np.float64))
        flows, distances = largest_magnitude(flow), largest_magnitude(distance)
        once = 0 if linear is None else flow.shape[0] * largest_magnitude(linear)
        require_fits("the value of a permutation", 4 * flow.size * flows * distances + 2 * once)
        # Sums of either that meet zeros, or numbers below one, in the other.
        require_fits("a sum of flows", 4 * flow.size * flows)
        require_fits("a sum of distances", 4 * flow.size * distances)
        for name, array in (("flow", flow), ("distance", distance), ("linear", linear)):
            object.__setattr__(self, name, array)
        object.__setattr__(self, "kernel_arrays", _kernel_arrays(flow, distance, linear))

    @property
    def size(self) -> int:
        """Number of facilities n."""
        return self.flow.shape[0]

    @property
    def integral(self) -> bool:
        """Whether all data are integers."""
        return self.flow.dtype.kind == "i"

    def value(self, permutation: npt.ArrayLike) -> int | float:
        """Return the total cost of a permutation; see `Problem.value`."""
        p = self.check_permutation(permutation)
        value = np.vdot(self.flow, self.distance[np.ix_(p, p)])
        if self.linear is not None:
            value = value + self.linear[np.arange(self.size), p].sum()
        return value.item()

    def state(self, permutation: npt.ArrayLike) -> SymmetricQuadraticState | GeneralQuadraticState:
        """Return the arrays of the kernels; see `Problem.state`."""
        p = self.check_permutation(permutation)
        arrays = self.kernel_arrays
        permuted = np.ascontiguousarray(arrays.distance[np.ix_(p, p)])
        if arrays.factor:
            return SymmetricQuadraticState(p, inverse(p), arrays.flow, permuted, arrays.linear, arrays.factor)
        flow_transposed = np.ascontiguousarray(arrays.flow.T)
        permuted_transposed = np.ascontiguousarray(permuted.T)
        return GeneralQuadraticState(
            p, inverse(p), arrays.flow, flow_transposed, permuted, permuted_transposed, arrays.linear
        )

    def delta_matrix(self) -> DeltaMatrix:
        """Return the arrays for the deltas of all swaps; see `Problem.delta_matrix`."""
        return empty_delta_matrix(self.size, self.kernel_arrays.delta_dtype, with_potential=True)


class KernelArrays(NamedTuple):
    """The same problem with zero diagonals.

    `factor` is 1 or 2 if both matrices are symmetric now, 0 in the general case; `linear` is an empty vector where
    there is no linear term. `delta_dtype` holds any delta and any sum of four potentials.
    """

    flow: npt.NDArray[Any]
    distance: npt.NDArray[Any]
    linear: npt.NDArray[Any]
    factor: int
    delta_dtype: npt.DTypeLike


def _kernel_arrays(flow: npt.NDArray[Any], distance: npt.NDArray[Any], linear: npt.NDArray[Any] | None) -> KernelArrays:
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
            a, b = a.astype(np.int32), b.astype(np.int32)
            once = largest_magnitude(folded) if folded.size else 0
            if 8 * passes * (a.shape[0] * spread + 4 * largest) + 4 * once < 2**31:
                delta_dtype = np.dtype(np.int32)
    return KernelArrays(read_only(a), read_only(b), read_only(folded), factor, delta_dtype)


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


def linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    """Return the change of the linear term when facilities a and b exchange locations; zero for an empty vector."""
    return _no_linear_delta(linear, permutation, a, b) if linear.ndim == 1 else _linear_delta(linear, permutation, a, b)


def _no_linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    return linear.dtype.type(0)


def _linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    i = permutation[a]
    j = permutation[b]
    return linear[a, j] - linear[a, i] + linear[b, i] - linear[b, j]


@overload(linear_delta)
def _resolve_linear_delta(linear: Any, permutation: Any, a: int, b: int) -> Any:
    # Resolved by type, not by a branch at run time; see the symmetric swap delta.
    return _no_linear_delta if linear.ndim == 1 else _linear_delta


@njit(cache=True, nogil=True)
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
    cast = state.flow.dtype.type
    total = cast(0)
    for k in range(flow_a.shape[0]):
        total = cast(total + cast(cast(flow_a[k] - flow_b[k]) * cast(distance_b[k] - distance_a[k])))
    # The pass took in k = a and k = b, each of which contributes -flow[a, b] * distance[a, b]. There is no branch for
    # a = b, where this is zero: with a second basic block Numba keeps its reference counts, at three times the cost.
    total = cast(total + cast(cast(2) * cast(flow_a[b] * distance_a[b])))
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
    cast = state.flow.dtype.type
    total = cast(0)
    for k in range(row_a.shape[0]):
        total = cast(total + cast(cast(row_a[k] - row_b[k]) * cast(distance_row_b[k] - distance_row_a[k])))
        total = cast(total + cast(cast(column_a[k] - column_b[k]) * cast(distance_column_b[k] - distance_column_a[k])))
    # What k = a and k = b put into the pass, and what the two entries between a and b change, in one product.
    total = cast(total + cast(cast(row_a[b] + column_a[b]) * cast(distance_row_a[b] + distance_column_a[b])))
    # The linear part is a 64-bit number even where there is none, which makes the sum one too.
    return total + linear_delta(state.linear, state.permutation, a, b)


@kernel(commit_swap, GeneralQuadraticState)
def _general_commit_swap(state: GeneralQuadraticState, a: int, b: int) -> None:
    swap_rows_and_columns(state.distance, a, b)
    swap_rows_and_columns(state.distance_transposed, a, b)
    exchange_seats(state.permutation, state.order, a, b)
