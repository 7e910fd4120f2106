"""Kernels that keep the deltas of all swaps up to date from move to move, for searches that look at all of them."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import kernel
from moe_search.problems.moves import commit_swap, swap_delta


class DeltaMatrix(NamedTuple):
    """The deltas of all swaps at the current permutation.

    Parameters
    ----------
    deltas : ndarray, shape (size, size)
        Entry (i, j) with i < j, both of one block, is the delta of the swap of slots i and j. The rest is scratch.
    potential : ndarray, shape (size, size) or (0, 0)
        What a problem class keeps beside them to update them faster.
    scratch : ndarray, shape (4, size) or (0, 0)
        Scratch space of the updates.
    """

    deltas: npt.NDArray[Any]
    potential: npt.NDArray[Any]
    scratch: npt.NDArray[Any]


def empty_delta_matrix(size: int, dtype: npt.DTypeLike, with_potential: bool = False) -> DeltaMatrix:
    """Return a matrix to be filled by `fill_deltas`."""
    rows = size if with_potential else 0
    return DeltaMatrix(*(np.zeros(shape, dtype=dtype) for shape in ((size, size), (rows, rows), (4, rows))))


@singledispatch
def fill_potential(state: Any, matrix: DeltaMatrix, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the potential from the state; all of them, before any delta."""


@singledispatch
def fill_deltas(state: Any, matrix: DeltaMatrix, block_size: int, first: int, last: int) -> None:
    """Compute rows first .. last - 1 of the deltas from the state and its potential."""


@singledispatch
def commit_swap_and_deltas(state: Any, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    """Commit the swap of slots a < b of one block, and bring state and deltas up to date."""


@kernel(fill_potential)
def _fill_potential(state: Any, matrix: DeltaMatrix, first: int, last: int) -> None:
    pass


@kernel(fill_deltas)
def _fill_deltas(state: Any, matrix: DeltaMatrix, block_size: int, first: int, last: int) -> None:
    for i in range(first, last):
        for j in range(i + 1, (i // block_size + 1) * block_size):
            matrix.deltas[i, j] = swap_delta(state, i, j)


@kernel(commit_swap_and_deltas)
def _commit_swap_and_deltas(state: Any, matrix: DeltaMatrix, block_size: int, a: int, b: int) -> None:
    commit_swap(state, a, b)
    fill_deltas(state, matrix, block_size, 0, matrix.deltas.shape[0])
