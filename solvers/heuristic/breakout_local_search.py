"""Breakout local search: steepest descents, and between them perturbations that adapt to what they achieve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer, require_number
from moe_search.problems.kernels import compiled
from moe_search.problems.moves import DeltaMatrix, commit_swap_and_deltas
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.compiled_search import CompiledSearch, Kernel, Track, take
from moe_search.solvers.engine.random_state import random_below, random_unit
from moe_search.solvers.engine.run import Run
from moe_search.solvers.heuristic.tabu_search import (
    LONGEST_TENURE,
    NEVER,
    REFILL_AFTER,
    Tabu,
    TabuSearch,
    best_swap,
    descent_first,
    fill_rows,
    first_tabu,
    refill,
    stamp,
)

# How the moves of a perturbation are chosen.
DIRECTED, OLDEST, RANDOM = range(3)
LEAST_MOVES = 5
# No stamp is before this.
NONE_FORCED = -(2**31)
MOST_PATIENCE = 1 << 50


@dataclass(frozen=True)
class BreakoutLocalSearch(CompiledSearch):
    """Descend by the best swaps, break out of the local optimum, descend again; Benlic and Hao's search.

    A perturbation is a number of moves of one kind. *Directed*: the best swaps that are not tabu. *Oldest*: those whose
    slots have been where they are for the longest. *Random*: any. The longer the incumbent stands, the less often they
    are directed. A descent that ends where the last one did makes the next perturbation longer by a move.

    Parameters
    ----------
    strength : float, default 0.15
        Moves of a perturbation, in multiples of the number of slots; five at least.
    tenure : (float, float), default (0.7, 0.9)
        Range of the number of moves that a slot is kept from going back, in multiples of the number of slots.
    patience : int, default 2500
        Local optima without a new incumbent after which one perturbation has 0.4 to 0.6 moves a slot.
    directed : float, default 0.75
        The least probability of a directed perturbation; right after a new incumbent it is one.
    oldest : float, default 0.3
        The share of the others that take the oldest swaps; the rest take random ones.

    Notes
    -----
    An iteration is one look at the deltas of all swaps, which are kept up to date from move to move as in `TabuSearch`:
    one move, or none at a local optimum. What the search does depends on the seed alone. A swap is tabu here if it
    would bring both of its slots back, in the article if that very pair was swapped. On large problems every swap is
    tried once before, as in `TabuSearch`.

    References
    ----------
    U. Benlic, J.-K. Hao, "Breakout local search for the quadratic assignment problem", Applied Mathematics and
    Computation 219 (2013), 4800-4815.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.BreakoutLocalSearch().solve(ms.random_quadratic(8, seed=1), ms.MaxIterations(1_000), seed=1).iterations
    1000
    """

    strength: float = 0.15
    tenure: tuple[float, float] = (0.7, 0.9)
    patience: int = 2500
    directed: float = 0.75
    oldest: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("strength", self.strength, strict=True)
        if not isinstance(self.tenure, tuple) or len(self.tenure) != 2:
            raise TypeError(f"tenure must be two numbers, got {self.tenure!r}")
        low, high = (require_number("tenure", number) for number in self.tenure)
        if not low <= high:
            raise ValueError(f"tenure must be 0 <= low <= high, got {self.tenure!r}")
        require_integer("patience", self.patience)
        for name in ("directed", "oldest"):
            if require_number(name, getattr(self, name)) > 1:
                raise ValueError(f"{name} must be a probability, got {getattr(self, name)}")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what `TabuSearch` refuses: problems on which a single move takes too long."""
        return TabuSearch().refuses(problem)

    def iteration_work(self, problem: PermutationProblem) -> int:
        """Return the number of deltas that a move brings up to date."""
        return problem.size * problem.block_size

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel, the deltas of all swaps, and where the search stands; see `CompiledSearch.prepare`."""
        assert isinstance(run.problem, PermutationProblem)
        matrix = run.problem.delta_matrix()
        arguments = (matrix, first_tabu(run.problem, matrix), self.breakout(run.problem))
        return descent_first(run.problem, state, breakout_slice, arguments)

    def breakout(self, problem: PermutationProblem) -> Breakout:
        """Return where a search stands before its first move, with the parameters of this solver."""
        size = problem.size
        progress = np.zeros(1, dtype=PROGRESS).view(np.recarray)
        breakout = Breakout(
            progress=progress,
            last_optimum=np.zeros(1, dtype=np.int64 if problem.integral else np.float64),
            moves=min(max(LEAST_MOVES, math.ceil(min(self.strength, 1.0) * size)), size),
            shortest=min(float(self.tenure[0]) * size, LONGEST_TENURE),
            longest=min(float(self.tenure[1]) * size, LONGEST_TENURE),
            patience=min(self.patience, MOST_PATIENCE),
            directed=float(self.directed),
            oldest=float(self.oldest),
        )
        progress.length = breakout.moves
        return breakout

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of swaps, those of all pairs at every move, and of perturbations."""
        tabu, breakout = arguments[1:3]
        evaluated = int(track.counts[0].iterations) * (tabu.masks.shape[0] * (tabu.block_size - 1) // 2)
        perturbations = int(breakout.progress[0].perturbations)
        return super().statistics(track, arguments) | {"swaps evaluated": evaluated, "perturbations": perturbations}


PROGRESS = np.dtype(
    [
        ("left", np.int64),  # moves left of the perturbation; 0 in a descent
        ("kind", np.int64),  # `DIRECTED`, `OLDEST` or `RANDOM`
        ("length", np.int64),  # moves of the last perturbation
        ("failures", np.int64),  # local optima since the last new incumbent
        ("perturbations", np.int64),
    ]
)


class Breakout(NamedTuple):
    """What a breakout local search carries from slice to slice beside what is tabu, and its parameters."""

    progress: npt.NDArray[Any]  # of `PROGRESS`, (1,)
    last_optimum: npt.NDArray[Any]  # (1,): value of the last local optimum
    moves: int  # of a perturbation, at least
    shortest: float  # the fewest iterations that a slot is kept from going back
    longest: float  # the most
    patience: int  # local optima after which a perturbation is a long one
    directed: float  # the least probability of a directed perturbation
    oldest: float  # the share of the others that take the oldest swaps


@compiled
def breakout_slice(
    state: Any, track: Track, budget: int, target: float, matrix: DeltaMatrix, tabu: Tabu, breakout: Breakout
) -> int:
    """Fill rows of deltas while any is missing, else move; return the work done in pairs of slots.

    Between two moves the deltas are those of the current permutation, and the masks those of its stamps. Slices end at
    fixed iterations to build floats afresh and to set stamps back, whatever the clock says; all is then filled anew.
    They end early at the target or with a full log.
    """
    totals, counts, tolerance = track.totals, track.counts[0], track.tolerance
    permutation, block_size, c = state.permutation, tabu.block_size, breakout.progress[0]
    if budget == 0:
        return 0
    if tabu.filled[1] < permutation.shape[0]:
        return fill_rows(state, matrix, tabu, budget)
    pairs = permutation.shape[0] * block_size
    steps = min(max(budget // pairs, 1), REFILL_AFTER - counts.iterations % REFILL_AFTER)
    work = 0
    if tabu.capacity == block_size:
        # All permutations are one: every slot of a block has the same expert.
        counts.done = True
    while work < steps and not counts.done:
        work += 1
        counts.iterations += 1
        now = counts.iterations - tabu.base[0]
        a, b = -1, -1
        if c.left == 0:
            a, b = best_swap(
                matrix.deltas, matrix.least, tabu.masks, tabu.oldest, tabu.nothing, now, NONE_FORCED,
                totals.dtype.type(-tolerance), block_size,
            )  # fmt: skip
            if a < 0 or matrix.deltas[a, b] >= -tolerance:
                begin_perturbation(track, breakout, permutation.shape[0])
                a = -1
        else:
            c.left -= 1
            a, b = perturbing_swap(track, matrix, tabu, c.kind, now)
        if a >= 0:
            totals[0] += matrix.deltas[a, b]
            commit_swap_and_deltas(state, matrix, block_size, a, b)
            shortest, longest = breakout.shortest, breakout.longest
            until = now + int(shortest + random_unit(track.rng) * (longest - shortest))
            stamp(tabu.stamps, tabu.masks, tabu.oldest, tabu.expert, block_size, a, b, until, until)
            counts.moves += 1
            if totals[0] < totals[1] - tolerance:
                c.failures = 0
                if take(track, permutation, target):
                    steps = work
    if work > 0 and counts.iterations % REFILL_AFTER == 0:
        refill(track, tabu)
    return work * pairs


@compiled
def begin_perturbation(track: Track, breakout: Breakout, size: int) -> None:
    """Decide how many moves lead out of the local optimum, and of what kind."""
    c, value = breakout.progress[0], track.totals[0]
    same = abs(value - breakout.last_optimum[0]) <= track.tolerance
    breakout.last_optimum[0] = value
    c.failures += 1
    c.perturbations += 1
    if c.failures > breakout.patience:
        c.failures = 0
        c.length = max(int(size * (0.4 + 0.2 * random_unit(track.rng))), 1)
    elif same:
        c.length = min(c.length + 1, size)
    else:
        c.length = breakout.moves
    c.left = c.length
    if random_unit(track.rng) < max(breakout.directed, math.exp(-c.failures / breakout.patience)):
        c.kind = DIRECTED
    else:
        c.kind = OLDEST if random_unit(track.rng) < breakout.oldest else RANDOM


@compiled
def perturbing_swap(track: Track, matrix: Any, tabu: Tabu, kind: int, now: int) -> tuple[int, int]:
    """Return the next swap of a perturbation, (-1, -1) if all are tabu."""
    masks, block_size = tabu.masks, tabu.block_size
    if kind == DIRECTED:
        totals = track.totals
        # A swap to a new incumbent is always allowed.
        needed = min(totals[1] - totals[0] - track.tolerance, totals.dtype.type(0))
        return best_swap(
            matrix.deltas, matrix.least, masks, tabu.oldest, tabu.nothing, now, NONE_FORCED, needed, block_size
        )
    if kind == OLDEST:
        return oldest_swap(masks, block_size)
    a = random_below(track.rng, masks.shape[0])
    b = a // block_size * block_size + random_below(track.rng, block_size - 1)
    b = b + 1 if b >= a else b
    return min(a, b), max(a, b)


@compiled
def forget(tabu: Tabu, breakout: Breakout, iteration: int) -> None:
    """Let the search begin afresh where it stands, at an iteration."""
    c, stamps, block_size = breakout.progress[0], tabu.stamps, tabu.block_size
    c.left = 0
    c.length = breakout.moves
    c.failures = 0
    breakout.last_optimum[0] = 0
    tabu.base[0] = iteration
    tabu.filled[0] = tabu.filled[1] = 0
    # As `first_stamps`.
    for i in range(stamps.shape[0]):
        for e in range(stamps.shape[1]):
            stamps[i, e] = -1 - i % block_size * block_size - e


@compiled
def oldest_swap(masks: Any, block_size: int) -> tuple[int, int]:
    """Return the swap with the least mask, the slots of one expert left out."""
    a, b = -1, -1
    least = masks.dtype.type(NEVER)
    for i in range(masks.shape[0]):
        for j in range(i + 1, (i // block_size + 1) * block_size):
            if masks[i, j] < least:
                least = masks[i, j]
                a, b = i, j
    return a, b
