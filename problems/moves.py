"""Kernels of moves: the change a move makes to the value of a problem, and the move itself.

A compiled search reaches the kernels of a problem through `swap_delta` and `commit_swap`, which Numba resolves by the
type of the NamedTuple that holds the problem's arrays, so one compiled search serves every problem class. An insertion
is a slide, that is a run of swaps of neighbouring seats, hence every problem that can swap can insert. Searches that
look at all swaps at every move keep their deltas in a `DeltaMatrix`, which a class may update faster than afresh.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import in_place, kernel, resolved


@singledispatch
def swap_delta(state: Any, a: int, b: int) -> Any:
    """Return the change in value when slots `a` and `b` of one block exchange their seats."""
    raise TypeError(f"no swap_delta kernel is registered for {type(state).__name__}")


@singledispatch
def commit_swap(state: Any, a: int, b: int) -> None:
    """Exchange the seats of slots `a` and `b` of one block and bring the arrays of `state` up to date."""
    raise TypeError(f"no commit_swap kernel is registered for {type(state).__name__}")


@in_place
def exchange_seats(permutation: Any, order: Any, a: int, b: int) -> None:
    """Exchange the seats of slots `a` and `b` in a permutation and in its inverse."""
    permutation[a], permutation[b] = permutation[b], permutation[a]
    order[permutation[a]] = a
    order[permutation[b]] = b


def copy_permutation(target: Any, source: Any) -> None:
    """Copy a permutation into an array of its size; in plain Python in one step, which Ctrl-C cannot break off."""
    target[:] = source


@resolved(copy_permutation)
def _copy_by_element(target: Any, source: Any) -> Any:
    # With target[:] = source Numba compiles a check of the shapes and its message, for four seconds in every kernel.
    def copy(target: Any, source: Any) -> None:
        for k in range(target.shape[0]):
            target[k] = source[k]

    return copy


@in_place
def slide(state: Any, origin: int, destination: int) -> Any:
    """Take the slot at seat `origin` out, put it back at seat `destination`; return the change in value.

    Swaps of neighbours carry it there, by which those between shift by one seat. Slid back, integer states are
    unchanged, and floating-point ones up to rounding.
    """
    step = 1 if destination > origin else -1
    carried = state.order[origin]
    # Adding to the delta of a slot with itself, which is zero, gives the sum the type of a delta.
    delta = swap_delta(state, carried, carried)
    seat = origin
    while seat != destination:
        neighbour = state.order[seat + step]
        delta += swap_delta(state, carried, neighbour)
        commit_swap(state, carried, neighbour)
        seat += step
    return delta


class DeltaMatrix(NamedTuple):
    """The deltas of all swaps at the current permutation.

    Entry (i, j) of `deltas` with i < j, both of one block, is the delta of the swap of slots i and j; the rest is
    scratch. No delta of row i is less than ``least[i]``.
    """

    deltas: npt.NDArray[Any]  # (size, size)
    least: npt.NDArray[Any]  # (size,)
    potential: npt.NDArray[Any]  # (size, size) or (0, 0): what a problem class keeps to update them faster
    scratch: npt.NDArray[Any]  # (rows, size)


def empty_delta_matrix(size: int, dtype: npt.DTypeLike, scratch: int = 0) -> DeltaMatrix:
    """Return a matrix without potential, with some rows of scratch, to be filled by `fill_deltas`."""
    return DeltaMatrix(
        deltas=np.zeros((size, size), dtype=dtype),
        least=np.full(size, largest_of(np.dtype(dtype))),
        potential=np.zeros((0, 0), dtype=dtype),
        scratch=np.zeros((scratch, size), dtype=dtype),
    )


def largest_of(dtype: np.dtype[Any]) -> np.generic:
    """Return the largest number of a type, as a scalar of it."""
    return dtype.type(np.inf if dtype.kind == "f" else np.iinfo(dtype).max)


@in_place
def find_least(deltas: Any, least_of_row: Any, block_size: int, i: int) -> None:
    """Find the least delta of row i; the last slot of a block has none."""
    # Arrays are passed one by one: to hand over all of them costs more than a short row.
    # Unsigned, or Numba allows for a negative index and gives up the SIMD code.
    first, end = np.uintp(i + 1), np.uintp((i // block_size + 1) * block_size)
    if first < end:
        least = deltas[i, first]
        for j in range(first, end):
            least = min(least, deltas[i, j])
        least_of_row[i] = least


@singledispatch
def fill_potential(state: Any, matrix: DeltaMatrix, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the potential from the state; all of them, before any delta."""


@singledispatch
def fill_deltas(state: Any, matrix: DeltaMatrix, block_size: int, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the deltas, and their least, from the state and its potential."""


@singledispatch
def commit_swap_and_deltas(state: Any, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    """Commit the swap of slots a < b of one block, and bring state and deltas up to date, and what `least` promises."""


@kernel(fill_potential, allocates=False)
def _fill_potential(state: Any, matrix: DeltaMatrix, first: int, last: int) -> None:
    pass


@kernel(fill_deltas, allocates=False)
def _fill_deltas(state: Any, matrix: DeltaMatrix, block_size: int, first: int, last: int) -> None:
    for i in range(first, last):
        for j in range(i + 1, (i // block_size + 1) * block_size):
            matrix.deltas[i, j] = swap_delta(state, i, j)
        find_least(matrix.deltas, matrix.least, block_size, i)


@kernel(commit_swap_and_deltas, allocates=False)
def _commit_swap_and_deltas(state: Any, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    commit_swap(state, a, b)
    fill_deltas(state, matrix, block_size, 0, matrix.deltas.shape[0])
