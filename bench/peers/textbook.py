"""The textbook twin of the quadratic kernels: the same search on deltas that gather B[p[i], p[j]]."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import kernel
from moe_search.problems.moves import commit_swap, exchange_seats, swap_delta
from moe_search.problems.permutation_problem import Permutation, inverse
from moe_search.problems.quadratic import QuadraticAssignment


class TextbookState(NamedTuple):
    """The matrices as they were given, and the permutation."""

    permutation: Permutation
    order: Permutation
    flow: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int64]


class SymmetricTextbookState(NamedTuple):
    """The same, for two symmetric matrices."""

    permutation: Permutation
    order: Permutation
    flow: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int64]


class TextbookQuadratic(QuadraticAssignment):
    """A quadratic assignment whose deltas are those of the textbook, for any two matrices."""

    def state(self, permutation: npt.ArrayLike) -> Any:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        return TextbookState(p, inverse(p), self.flow, self.distance)


class SymmetricTextbookQuadratic(QuadraticAssignment):
    """A quadratic assignment whose deltas are those of the textbook, for two symmetric matrices."""

    def state(self, permutation: npt.ArrayLike) -> Any:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        return SymmetricTextbookState(p, inverse(p), self.flow, self.distance)


@kernel(swap_delta, TextbookState)
def _swap_delta(state: TextbookState, r: int, s: int) -> Any:
    """Equation (7) of Burkard and Rendl (1984), as printed in Taillard (1991)."""
    a, b, p = state.flow, state.distance, state.permutation
    x, y = p[r], p[s]
    delta = a[r, r] * (b[y, y] - b[x, x]) + a[r, s] * (b[y, x] - b[x, y])
    delta += a[s, r] * (b[x, y] - b[y, x]) + a[s, s] * (b[x, x] - b[y, y])
    for k in range(p.shape[0]):
        if k != r and k != s:
            z = p[k]
            delta += a[k, r] * (b[z, y] - b[z, x]) + a[k, s] * (b[z, x] - b[z, y])
            delta += a[r, k] * (b[y, z] - b[x, z]) + a[s, k] * (b[x, z] - b[y, z])
    return delta


@kernel(swap_delta, SymmetricTextbookState)
def _symmetric_swap_delta(state: SymmetricTextbookState, r: int, s: int) -> Any:
    a, b, p = state.flow, state.distance, state.permutation
    x, y = p[r], p[s]
    delta = a[r, r] * 0
    for k in range(p.shape[0]):
        if k != r and k != s:
            delta += (a[k, r] - a[k, s]) * (b[p[k], y] - b[p[k], x])
    return 2 * delta


@kernel(commit_swap, TextbookState)
def _commit_swap(state: TextbookState, r: int, s: int) -> None:
    exchange_seats(state.permutation, state.order, r, s)


@kernel(commit_swap, SymmetricTextbookState)
def _symmetric_commit_swap(state: SymmetricTextbookState, r: int, s: int) -> None:
    exchange_seats(state.permutation, state.order, r, s)
