"""Symmetries of an assignment: seats or slots that are twins, and automorphisms of a matrix."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled

MOST_AUTOMORPHISMS = 512
MOST_STEPS = 200_000


class Symmetry(NamedTuple):
    """Exchanges of the rows and columns of a matrix that leave it as it is.

    Twins are an equivalence: the chain of previous twins visits all that come before.
    """

    maps: npt.NDArray[np.int64]  # (g, n): automorphisms, the identity apart: ``matrix[g[i], g[j]] == matrix[i, j]``
    previous_twin: npt.NDArray[np.int64]  # (n,): the last index before, exchanged with which it is one, or -1


def symmetry_of(matrix: npt.NDArray[Any], colors: npt.NDArray[Any]) -> Symmetry:
    """Return the symmetries of a square matrix that map indices only to those of the same color.

    Parameters
    ----------
    matrix : ndarray, shape (n, n)
        Symmetric or not.
    colors : ndarray, shape (n, k)
        Two indices are of one color if their rows are equal.

    Returns
    -------
    Symmetry
        All twins; all automorphisms, unless there are more than `MOST_AUTOMORPHISMS` or the search for them takes more
        than `MOST_STEPS`.
    """
    n = len(matrix)
    # Numbers only matter as equal or not: one compiled kernel for integers and floats.
    labels = _labels(matrix.ravel()).reshape(n, n)
    # A row can only go where a row of the same numbers is.
    rows = [np.sort(labels, axis=1), np.sort(labels, axis=0).T, np.diagonal(labels)[:, None]]
    color = _labels(np.hstack([*rows, _labels(colors)[:, None]]))
    if len(np.unique(color)) == n:
        # Nothing to be found; most matrices of random numbers are such.
        return Symmetry(np.empty((0, n), dtype=np.int64), np.full(n, -1, dtype=np.int64))
    maps = np.empty((MOST_AUTOMORPHISMS, n), dtype=np.int64)
    image, taken = np.full(n, -1, dtype=np.int64), np.zeros(n, dtype=np.bool_)
    return Symmetry(maps[: find_automorphisms(labels, color, maps, image, taken, MOST_STEPS)], _twins(labels, color))


def seats_of_experts(expert: npt.NDArray[np.int64], block_size: int) -> Symmetry:
    """Return the symmetry of seats of which only those of one expert, neighbours in a block, are alike."""
    m = len(expert)
    seat = np.arange(m)
    alike = (seat % block_size > 0) & (expert == np.roll(expert, 1))
    return Symmetry(np.empty((0, m), dtype=np.int64), np.where(alike, seat - 1, -1))


def _labels(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.unique(values, axis=0, return_inverse=True)[1].ravel().astype(np.int64)


def _twins(matrix: npt.NDArray[np.int64], color: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the previous twin of each index, exchanged with which matrix and colors are as they were, or -1."""
    previous = np.full(len(matrix), -1, dtype=np.int64)
    for i in range(1, len(matrix)):
        row, column = matrix[i], matrix[:, i]
        alike = (row == matrix) & (column == matrix.T)
        alike[:, i] = True
        np.fill_diagonal(alike, True)
        twins = alike.all(axis=1) & (color == color[i]) & (np.diagonal(matrix) == row[i]) & (row == column)
        earlier = np.flatnonzero(twins[:i])
        if earlier.size:
            previous[i] = earlier[-1]
    return previous


@compiled
def find_automorphisms(matrix: Any, color: Any, found: Any, image: Any, taken: Any, most_steps: int) -> int:
    """Write automorphisms to the rows of `found`; return how many. `image` is all -1, and `taken` False."""
    # A depth-first search: the images of all indices before i are distinct and agree with matrix and colors, and a
    # trial of an index goes on from the image it had last.
    n = matrix.shape[0]
    count = 0
    i = 0
    for _ in range(most_steps):
        if i < 0 or count == found.shape[0]:
            break
        if image[i] >= 0:
            taken[image[i]] = False
        target = image[i] + 1
        while target < n and (taken[target] or not maps(matrix, color, image, i, target)):
            target += 1
        if target == n:
            image[i] = -1
            i -= 1
            continue
        image[i] = target
        taken[target] = True
        if i + 1 < n:
            i += 1
            continue
        identity = True
        for j in range(n):
            # Element by element: for whole arrays Numba compiles checks of shapes and their messages.
            found[count, j] = image[j]
            identity &= image[j] == j
        if not identity:
            count += 1
    return count


@compiled
def maps(matrix: Any, color: Any, image: Any, i: int, target: int) -> bool:
    """Return whether `target` as the image of i agrees with the images of all before i."""
    if color[i] != color[target]:
        return False
    for j in range(i):
        if matrix[i, j] != matrix[target, image[j]] or matrix[j, i] != matrix[image[j], target]:
            return False
    return True
