"""Memetic search: a small population of local optima, their crossovers improved by breakout local search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer, require_number
from moe_search.problems.kernels import compiled
from moe_search.problems.moves import DeltaMatrix, copy_permutation
from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.compiled_search import CompiledSearch, Kernel, Track, new_track, take
from moe_search.solvers.engine.random_state import random_below
from moe_search.solvers.engine.run import Run
from moe_search.solvers.heuristic.breakout_local_search import (
    MOST_PATIENCE,
    Breakout,
    BreakoutLocalSearch,
    breakout_slice,
    forget,
)
from moe_search.solvers.heuristic.tabu_search import Tabu, descent_first, first_tabu

# Parents that differ in fewer slots have no child of their own.
LEAST_DISTANCE = 4
MOST_MOVES = 1 << 40
MOST_SHAKE = 10.0


@dataclass(frozen=True)
class MemeticSearch(CompiledSearch):
    """Cross two good permutations, improve the child by breakout local search, keep it if it is good and new.

    A child takes over what its parents have in common, each of the other slots the expert of either parent if there is
    still room, else a random one. It replaces the worst of the population if it is better, and if no other has its
    expert map.

    Parameters
    ----------
    population : int, default 15
        How many permutations are kept. They begin as `initial`, or a random one, and random ones, all improved.
    moves : float, default 30.0
        Iterations that improve a permutation, in multiples of the number of slots. On grids a hundred do better.
    patience : int, default 30
        Children in a row that were not taken, after which all permutations but the best are shaken and improved anew.
    shake : float, default 1.0
        Random swaps of a shake, in multiples of half the number of slots: one leaves a third of the slots where they
        are. A child of parents that are nearly one is shaken too.
    improvement : BreakoutLocalSearch
        The search that improves, and its parameters.

    Notes
    -----
    The article shakes by 0.3; made nearly anew, the others led further on uniform instances of 50 slots.
    An iteration is one look at the deltas of all swaps, as in `BreakoutLocalSearch`. What the search does depends on
    the seed alone. It takes time to be worth it: the population is there after `population` times `moves` iterations a
    slot. On large problems every swap of the first permutation is tried once before, as in `TabuSearch`.

    References
    ----------
    U. Benlic, J.-K. Hao, "Memetic search for the quadratic assignment problem", Expert Systems with Applications 42
    (2015), 584-595.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.MemeticSearch(population=4).solve(ms.random_quadratic(8, seed=1), ms.MaxIterations(1_000), seed=1).iterations
    1000
    """

    population: int = 15
    moves: float = 30.0
    patience: int = 30
    shake: float = 1.0
    improvement: BreakoutLocalSearch = field(default_factory=BreakoutLocalSearch)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("population", self.population, 2)
        require_number("moves", self.moves, strict=True)
        require_integer("patience", self.patience)
        require_number("shake", self.shake, strict=True)
        if not isinstance(self.improvement, BreakoutLocalSearch):
            raise TypeError(f"improvement must be a BreakoutLocalSearch, got {type(self.improvement).__name__}")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what the improvement refuses."""
        return self.improvement.refuses(problem)

    def iteration_work(self, problem: PermutationProblem) -> int:
        """Return the number of deltas that a move brings up to date."""
        return self.improvement.iteration_work(problem)

    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel, the search that improves, and the population; see `CompiledSearch.prepare`."""
        problem = run.problem
        assert isinstance(problem, PermutationProblem)
        size = problem.size
        matrix = problem.delta_matrix()
        population = Population(
            new_track(run, run.incumbent.copy()),
            np.zeros((self.population, size), dtype=np.int64),
            np.zeros(self.population, dtype=run.dtype),
            np.zeros(1, dtype=GENERATION).view(np.recarray),
            np.zeros(size, dtype=np.int64),
            np.zeros(size, dtype=np.int64),
            int(min(max(self.moves * size, 1.0), MOST_MOVES)),
            min(self.patience, MOST_PATIENCE),
            max(round(min(self.shake, MOST_SHAKE) * size / 2), 1),
        )
        arguments = (matrix, first_tabu(problem, matrix), self.improvement.breakout(problem), population)
        return descent_first(problem, state, memetic_slice, arguments)

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of swaps, of children, of those taken, and of shaken populations."""
        generation = arguments[3].generation[0]
        return self.improvement.statistics(track, arguments) | {
            "children": int(generation.children),
            "children taken": int(generation.taken),
            "populations shaken": int(generation.shaken),
        }


GENERATION = np.dtype(
    [
        ("left", np.int64),  # iterations left of the improvement; 0 before it begins
        ("member", np.int64),  # the permutation being made; all are there if it is the number of them
        ("bred", np.bool_),  # whether the population was complete before
        ("failures", np.int64),  # children in a row that were not taken
        ("children", np.int64),
        ("taken", np.int64),
        ("shaken", np.int64),
    ]
)


class Population(NamedTuple):
    """What a memetic search keeps beside the search that improves, and its parameters."""

    round: Track  # the improvement of one permutation; its incumbent is the best one met in it
    members: npt.NDArray[np.int64]  # (population, size): permutations
    values: npt.NDArray[Any]  # (population,)
    generation: npt.NDArray[Any]  # of `GENERATION`, (1,)
    room: npt.NDArray[np.int64]  # (size,): scratch
    sequence: Permutation  # scratch
    moves: int  # iterations of an improvement
    patience: int  # children not taken before a shake
    swaps: int  # of a shake


@compiled
def memetic_slice(
    state: Any,
    track: Track,
    budget: int,
    target: float,
    matrix: DeltaMatrix,
    tabu: Tabu,
    breakout: Breakout,
    population: Population,
) -> int:
    """Improve a permutation; at its end take it into the population and make the next; return the work done.

    The next permutation is written over the current one and the state called stale, so that it is built afresh there.
    A slice ends then, and where it has logged anything.
    """
    g, counts, inner = population.generation[0], track.counts[0], population.round
    improved = inner.counts[0]
    work = 0
    if g.left == 0 or improved.stale:
        # The state has been built afresh, and the value of its permutation was computed from the definition.
        inner.totals[0] = track.totals[0]
        improved.stale = False
    if g.left == 0 and budget > 0:
        begin_round(tabu, breakout, population, state.permutation)
        if track.totals[0] < track.totals[1] - track.tolerance:
            take(track, state.permutation, target)
    while work < budget and not counts.done and not counts.stale and counts.logged == 0:
        improved.logged = 0
        before, moves = improved.iterations, improved.moves
        pairs = tabu.masks.shape[0] * tabu.block_size
        work += breakout_slice(state, inner, min(budget - work, g.left * pairs), target, matrix, tabu, breakout)
        counts.iterations = improved.iterations
        counts.moves += improved.moves - moves
        g.left -= improved.iterations - before
        counts.stale = improved.stale
        counts.done = improved.done
        take_over(track, inner)
        if g.left == 0 and not counts.done:
            end_round(population, tabu.capacity, tabu.block_size, state.permutation)
            improved.stale = False
            counts.stale = True
    return work


@compiled
def begin_round(tabu: Tabu, breakout: Breakout, population: Population, permutation: Any) -> None:
    """Start to improve the current permutation, by a search that has forgotten all of the last one."""
    inner = population.round
    inner.totals[1] = inner.totals[0]
    copy_permutation(inner.incumbent, permutation)
    forget(tabu, breakout, inner.counts[0].iterations)
    population.generation[0].left = population.moves


@compiled
def take_over(track: Track, inner: Track) -> None:
    """Take over the improvements logged by a round that are better than the incumbent."""
    counts = track.counts[0]
    for k in range(inner.counts[0].logged):
        value = inner.log_values[k]
        if value < track.totals[1] - track.tolerance:
            track.totals[1] = value
            track.log_values[counts.logged] = value
            track.log_iterations[counts.logged] = inner.log_iterations[k]
            counts.logged += 1
    if counts.logged > 0:
        copy_permutation(track.incumbent, inner.incumbent)


@compiled
def end_round(population: Population, capacity: int, block_size: int, permutation: Any) -> None:
    """Take what a round has found into the population, and write the next permutation to be improved."""
    g, inner, members, values = population.generation[0], population.round, population.members, population.values
    rng, found, value = inner.rng, inner.incumbent, inner.totals[1]
    if g.member < values.shape[0]:
        copy_permutation(members[g.member], found)
        values[g.member] = value
        g.member += 1
        g.bred = g.bred or g.member == values.shape[0]
    else:
        g.children += 1
        g.failures += 1
        worst = extreme(values, -1)
        if value < values[worst] - inner.tolerance and not is_there(members, values, found, value, capacity):
            copy_permutation(members[worst], found)
            values[worst] = value
            g.taken += 1
            g.failures = 0
        if g.failures >= population.patience:
            g.failures = 0
            g.shaken += 1
            g.member = 1
            put_first(members, values, extreme(values, 1))
    if g.member < values.shape[0]:
        if g.bred:
            copy_permutation(permutation, members[g.member])
            shake(rng, permutation, block_size, population.swaps)
        else:
            shuffle(rng, permutation, block_size)
        return
    first, second = parents(rng, values)
    if distance(members[first], members[second], capacity) < LEAST_DISTANCE:
        copy_permutation(permutation, members[first])
        shake(rng, permutation, block_size, population.swaps)
    else:
        cross(
            rng,
            members[first],
            members[second],
            permutation,
            population.room,
            population.sequence,
            capacity,
            block_size,
        )


@compiled
def extreme(values: Any, sign: int) -> int:
    """Return where the first of the least values is; of the largest, if the sign is -1."""
    found = 0
    for k in range(values.shape[0]):
        found = k if sign * values[k] < sign * values[found] else found
    return found


@compiled
def parents(rng: Any, values: Any) -> tuple[int, int]:
    """Draw two of a population, the first as the better of two draws."""
    first, rival = random_below(rng, values.shape[0]), random_below(rng, values.shape[0])
    first = rival if values[rival] < values[first] else first
    second = random_below(rng, values.shape[0] - 1)
    return first, second + 1 if second >= first else second


@compiled
def distance(first: Any, second: Any, capacity: int) -> int:
    """Return how many slots have another expert in one permutation than in the other."""
    different = 0
    for slot in range(first.shape[0]):
        different += first[slot] // capacity != second[slot] // capacity
    return different


@compiled
def is_there(members: Any, values: Any, permutation: Any, value: Any, capacity: int) -> bool:
    """Return whether a population has a permutation of these experts; only one of the same value may."""
    # Sums that are added up in another order differ by rounding.
    slack = 1e-9 * abs(value)
    for k in range(values.shape[0]):
        if abs(values[k] - value) <= slack and distance(members[k], permutation, capacity) == 0:
            return True
    return False


@compiled
def put_first(members: Any, values: Any, k: int) -> None:
    """Exchange the first permutation of a population and another."""
    values[0], values[k] = values[k], values[0]
    for slot in range(members.shape[1]):
        members[0, slot], members[k, slot] = members[k, slot], members[0, slot]


@compiled
def shuffle(rng: Any, permutation: Any, block_size: int) -> None:
    """Shuffle every block uniformly (Fisher and Yates)."""
    for slot in range(permutation.shape[0]):
        other = slot - random_below(rng, slot % block_size + 1)
        permutation[slot], permutation[other] = permutation[other], permutation[slot]


@compiled
def shake(rng: Any, permutation: Any, block_size: int, swaps: int) -> None:
    """Exchange the seats of random pairs of slots."""
    for _ in range(swaps):
        slot = random_below(rng, permutation.shape[0])
        other = slot // block_size * block_size + random_below(rng, block_size)
        permutation[slot], permutation[other] = permutation[other], permutation[slot]


@compiled
def cross(
    rng: Any, first: Any, second: Any, child: Any, room: Any, sequence: Any, capacity: int, block_size: int
) -> None:
    """Write a child of two permutations.

    Every slot has the expert of both parents where they agree. In a random order, each of the others gets that of
    either parent while there is room, and those that are left get random ones that have some.

    Parameters
    ----------
    rng : ndarray of uint64, shape (4,)
        State of the random numbers.
    first, second : ndarray of int64, shape (size,)
        The parents.
    child : ndarray of int64, shape (size,)
        Is written.
    room, sequence : ndarray of int64, shape (size,)
        Scratch.
    capacity, block_size : int
        Slots of an expert in a block, and slots of a block.
    """
    size = first.shape[0]
    # Experts are numbered through all blocks: expert e of block t is t * block_size / capacity + e.
    for expert in range(size // capacity):
        room[expert] = capacity
    for slot in range(size):
        sequence[slot] = slot
        expert = first[slot] // capacity
        child[slot] = expert if expert == second[slot] // capacity else -1
        if child[slot] >= 0:
            room[expert] -= 1
    shuffle(rng, sequence, size)
    for slot in sequence:
        if child[slot] < 0:
            one, other = first[slot] // capacity, second[slot] // capacity
            if random_below(rng, 2) == 1:
                one, other = other, one
            chosen = one if room[one] > 0 else other
            if room[chosen] > 0:
                child[slot] = chosen
                room[chosen] -= 1
    for slot in sequence:
        if child[slot] < 0:
            chosen = random_room(rng, room, slot // block_size * block_size // capacity, block_size // capacity)
            child[slot] = chosen
            room[chosen] -= 1
    # No room is left: it counts the seats of each expert that are taken now.
    for slot in range(size):
        expert = child[slot]
        child[slot] = expert * capacity + room[expert]
        room[expert] += 1


@compiled
def random_room(rng: Any, room: Any, start: int, experts: int) -> int:
    """Return an expert of a block that has room, each with a probability by its room."""
    total = 0
    for expert in range(start, start + experts):
        total += room[expert]
    expert, left = start, random_below(rng, total)
    while left >= room[expert]:
        left -= room[expert]
        expert += 1
    return expert
