"""The textbook twins of our quadratic kernels and of tabu search: the same searches on gathered distances.

Every delta gathers B[p[i], p[j]] from the matrices as they were given; tabu search updates its deltas pair by pair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import dense
from moe_search.problems.kernels import compiled, kernel
from moe_search.problems.moves import commit_swap, exchange_seats, swap_delta
from moe_search.problems.permutation_problem import Permutation, inverse
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.solvers.engine.random_state import random_state, random_unit
from moe_search.solvers.heuristic.tabu_search import TabuSearch


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

    arrays: Any = TextbookState

    def state(self, permutation: npt.ArrayLike) -> Any:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        p = self.check_solution(permutation)
        return self.arrays(p, inverse(p), self.flow, self.distance)


class SymmetricTextbookQuadratic(TextbookQuadratic):
    """A quadratic assignment whose deltas are those of the textbook, for two symmetric matrices."""

    arrays = SymmetricTextbookState


@compiled
def delta_of_swap(a: Any, b: Any, p: Any, r: int, s: int) -> Any:
    """Equation (7) of Burkard and Rendl (1984), as printed in Taillard (1991)."""
    x, y = p[r], p[s]
    delta = a[r, r] * (b[y, y] - b[x, x]) + a[r, s] * (b[y, x] - b[x, y])
    delta += a[s, r] * (b[x, y] - b[y, x]) + a[s, s] * (b[x, x] - b[y, y])
    for k in range(p.shape[0]):
        if k != r and k != s:
            z = p[k]
            delta += a[k, r] * (b[z, y] - b[z, x]) + a[k, s] * (b[z, x] - b[z, y])
            delta += a[r, k] * (b[y, z] - b[x, z]) + a[s, k] * (b[x, z] - b[y, z])
    return delta


@kernel(swap_delta, TextbookState)
def _swap_delta(state: TextbookState, r: int, s: int) -> Any:
    return delta_of_swap(state.flow, state.distance, state.permutation, r, s)


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
@kernel(commit_swap, SymmetricTextbookState)
def _commit_swap(state: TextbookState | SymmetricTextbookState, r: int, s: int) -> None:
    exchange_seats(state.permutation, state.order, r, s)


class TextbookTabu(NamedTuple):
    """The state of the textbook's search: stamps by facility and location, deltas by pair of facilities.

    `totals` holds the value of the permutation and the best one met; `iterations` the iterations made.
    """

    flow: npt.NDArray[np.int64]
    distance: npt.NDArray[np.int64]
    permutation: Permutation
    deltas: npt.NDArray[np.int64]
    until: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    iterations: npt.NDArray[np.int64]
    rng: npt.NDArray[np.uint64]


def textbook_tabu(problem: QuadraticAssignment, initial: Permutation, seed: int) -> TextbookTabu:
    """Return the search at its start; it makes the moves that `TabuSearch` makes from there with this seed."""
    n = problem.size
    slot = np.arange(n)
    until = -1 - slot[:, None] * n - slot
    twin = TextbookTabu(
        dense(problem.flow),
        problem.distance,
        initial.copy(),
        np.zeros((n, n), dtype=np.int64),
        until,
        np.full(2, problem.value(initial), dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        random_state(seed),
    )
    fill(twin)
    return twin


def advance(twin: TextbookTabu, iterations: int, solver: TabuSearch | None = None) -> int:
    """Make some iterations with the parameters of a solver; return the best value met."""
    n = len(twin.permutation)
    solver = TabuSearch() if solver is None else solver
    search(twin, iterations, solver.tenure[0] * n, solver.tenure[1] * n, int(solver.aspiration * n * n))
    return int(twin.totals[1])


@compiled
def fill(twin: TextbookTabu) -> None:
    """Compute the deltas of all swaps."""
    for i in range(twin.permutation.shape[0]):
        for j in range(i + 1, twin.permutation.shape[0]):
            twin.deltas[i, j] = delta_of_swap(twin.flow, twin.distance, twin.permutation, i, j)


@compiled
def search(twin: TextbookTabu, iterations: int, shortest: float, longest: float, aspiration: int) -> None:
    """Make some iterations: look at all pairs, commit the best that may be made, bring all deltas up to date."""
    flow, distance, p, deltas, until, totals = (
        twin.flow, twin.distance, twin.permutation, twin.deltas, twin.until, twin.totals
    )  # fmt: skip
    n = p.shape[0]
    for _ in range(iterations):
        twin.iterations[0] += 1
        now = twin.iterations[0]
        a, b, level = -1, -1, 0
        for i in range(n):
            for j in range(i + 1, n):
                stamp = min(until[i, p[j]], until[j, p[i]])
                # Improving moves come first, then forced ones, then those that are not tabu.
                if totals[0] + deltas[i, j] < totals[1]:
                    grade = 3
                elif stamp < now - aspiration:
                    grade = 2
                elif stamp < now:
                    grade = 1
                else:
                    grade = 0
                if grade > level or (grade == level and grade > 0 and deltas[i, j] < deltas[a, b]):
                    a, b, level = i, j, grade
        if level == 0:
            continue
        until[a, p[a]] = now + int(shortest + random_unit(twin.rng) ** 3 * (longest - shortest))
        until[b, p[b]] = now + int(shortest + random_unit(twin.rng) ** 3 * (longest - shortest))
        p[a], p[b] = p[b], p[a]
        totals[0] += deltas[a, b]
        totals[1] = min(totals[0], totals[1])
        for i in range(n):
            for j in range(i + 1, n):
                if i != a and i != b and j != a and j != b:
                    deltas[i, j] += change_of_delta(flow, distance, p, i, j, a, b)
                else:
                    deltas[i, j] = delta_of_swap(flow, distance, p, i, j)


@compiled
def change_of_delta(a: Any, b: Any, p: Any, i: int, j: int, r: int, s: int) -> Any:
    """Equation (8) of Taillard (1991): what the swap of r and s, just made, does to the delta of i and j."""
    u, v, x, y = p[i], p[j], p[r], p[s]
    forth = (a[r, i] - a[r, j] + a[s, j] - a[s, i]) * (b[y, u] - b[y, v] + b[x, v] - b[x, u])
    return forth + (a[i, r] - a[j, r] + a[j, s] - a[i, s]) * (b[u, y] - b[v, y] + b[v, x] - b[u, x])
