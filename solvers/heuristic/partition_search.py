"""Search of partitions of neurons: rows choose experts, neurons choose experts, and then neurons change places."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_flag
from moe_search.problems.kernels import compiled
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.neuron_partition import Labels, NeuronPartition, best_experts
from moe_search.solvers.engine.random_state import random_below, random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.exact.transport import Transport

STARTS = 3
"""Divisions of a round, of which the best is gone on from."""

KMEANS_STEPS = 8
BURST = 1024
"""Pairs of neurons looked at in an iteration."""

TRIES_PER_NEURON = 24
"""Pairs looked at before rows choose their experts anew."""

LEAST_MASS_GAIN = 1e-3
"""Turns that save a smaller part of the mass lost end before swaps."""

LEAST_GAIN = 2e-2
"""A sweep that lowers the error by a smaller part of it is the last one."""


@dataclass(frozen=True)
class PartitionSearch(Solver):
    """Solve a `NeuronPartition` by turns: every row takes its best experts, then all neurons are divided anew.

    Given the experts of every row, the best division of the neurons is a transport problem, which `Transport` solves
    exactly; given the division, so is the choice of a row. The turns end where neither gains. For the error of a layer,
    pairs of neurons then change places where that lowers it, the rows keeping their experts for a sweep at a time.

    Parameters
    ----------
    restarts : bool, default True
        Whether to go on from other starts until told to stop; else one round is all.

    Notes
    -----
    A round has three starts: first the neurons by their mass and two balanced clusterings of their activity, and later
    random ones and clusterings from other centers. An iteration is one transport problem, or 1024 pairs of neurons
    looked at; what is found depends on the seed and the number of iterations alone.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.NeuronPartition([[4, 0, 3, 1], [0, 5, 1, 2]], num_experts=2, active=1)
    >>> result = ms.PartitionSearch(restarts=False).solve(problem, ms.MaxIterations(100))
    >>> result.value, result.status
    (0.125, 'optimal')

    References
    ----------
    Z. Zhang et al., "MoEfication: transformer feed-forward layers are mixtures of experts", Findings of ACL 2022, for
    balanced clusters of neurons.
    """

    takes: ClassVar[type] = NeuronPartition
    restarts: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag("restarts", self.restarts)

    def search(self, run: Run) -> Result:
        """Search; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, NeuronPartition)
        start = run.take_initial(by_mass(problem))
        if run.bound is None:
            run.bound = (problem.value_range() or (None, None))[0]
        counts = Counts()
        steps = self._steps(problem, run.seed, start, counts)
        value, iterations = float(run.value), 0

        def advance(budget: int, target: float) -> Slice:
            nonlocal value, iterations
            improvements: list[tuple[int, float]] = []
            ended, done = False, 0
            while done < budget and not ended:
                found = next(steps, END)
                done += 1
                iterations += 1
                if found is not None and found.value < value:
                    run.incumbent, value = found.labels, found.value
                    improvements.append((iterations, value))
                ended = found is END or value <= target
            return Slice(done, iterations, improvements, ended)

        run.loop(advance, first_budget=1)
        return run.result(moves=counts.moves, restarts=max(counts.starts - 1, 0))

    def _steps(
        self, problem: NeuronPartition, seed: int | np.random.SeedSequence, start: Labels, counts: Counts
    ) -> Iterator[Found | None]:
        """Search on by an iteration, and yield the division that it has led to where its value is known."""
        rng = np.random.default_rng(seed)
        swaps = None if problem.activations is None else Swaps(problem, seed, counts)
        masses = problem.mass[:, problem.routed].astype(np.float32)
        activity = activity_of(masses)
        while counts.starts == 0 or self.restarts:
            best = END
            for number in range(STARTS):
                if number > 0:
                    start = yield from clustered(problem, activity, rng)
                counts.starts += 1
                found = yield from alternated(problem, masses, start)
                best = min(best, found, key=lambda each: each.value)
            if swaps is None:
                yield Found(best.labels, problem.value_of(best.labels))
            else:
                yield from swaps.descend(best.labels)
            start = problem.random_solution(rng)


class Found(NamedTuple):
    """A division and its value."""

    labels: Labels
    value: float


END = Found(np.zeros(0, dtype=np.int64), math.inf)


@dataclass
class Counts:
    """What a run has done."""

    starts: int = 0
    moves: int = 0


def by_mass(problem: NeuronPartition) -> Labels:
    """Return the division of the neurons by their mass: the greatest to the first expert."""
    ranked = np.argsort(-problem.mass[:, problem.routed].sum(axis=0), kind="stable")
    experts = np.empty(len(ranked), dtype=np.int64)
    experts[ranked] = np.arange(len(ranked)) // problem.size
    return problem.labels_of(experts)


def activity_of(masses: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the roots of the masses of every routed neuron, scaled to length 1; shape (routed neurons, rows)."""
    activity = np.sqrt(masses.T)
    return activity / np.maximum(np.linalg.norm(activity, axis=1, keepdims=True), 1e-12)


def clustered(
    problem: NeuronPartition, activity: npt.NDArray[np.float32], rng: np.random.Generator
) -> Generator[None, None, Labels]:
    """Cluster the neurons by their activity in groups of equal size around random neurons; an iteration a step."""
    centers = activity[rng.choice(len(activity), problem.num_experts, replace=False)]
    before = None
    for _ in range(KMEANS_STEPS):
        experts = transported(np.square(centers).sum(axis=1) - 2 * activity @ centers.T)
        yield None
        if before is not None and np.array_equal(experts, before):
            break
        before = experts
        members = (experts == np.arange(problem.num_experts)[:, None]).astype(np.float32)
        centers = members @ activity / problem.size
    return problem.labels_of(experts)


def alternated(
    problem: NeuronPartition, masses: npt.NDArray[np.float32], labels: Labels
) -> Generator[Found | None, None, Found]:
    """Let rows and neurons choose experts by turns until little mass is gained; return the best, by the mass it loses.

    Parameters
    ----------
    problem : NeuronPartition
    masses : ndarray of float32
        Those of its routed neurons.
    labels : ndarray of int64
        Where to begin.
    """
    # Swaps go on from where little is gained; where there are none, the last bit counts.
    least_gain = 1e-6 if problem.activations is None else LEAST_MASS_GAIN
    best = END
    experts = labels[problem.routed]
    while True:
        mass = masses @ (experts[:, None] == np.arange(problem.num_experts)).astype(np.float32)
        active = best_experts(mass, problem.active)
        lost = float(mass[~active].sum(dtype=np.float64))
        gains = lost < best.value * (1 - least_gain)
        if lost < best.value:
            best = Found(problem.labels_of(experts), lost)
        if not gains:
            return best
        experts = transported(-(masses.T @ active.astype(np.float32)))
        yield None


def transported(cost: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the expert of every neuron at the least cost in all, shape (neurons,)."""
    result = Transport().solve(LinearAssignment(cost), MaxRuntime(math.inf))
    if result.status == "interrupted":
        raise KeyboardInterrupt
    return result.permutation // (cost.shape[0] // cost.shape[1])


class Swaps:
    """The descent on the error of a layer by pairs of neurons that change places."""

    def __init__(self, problem: NeuronPartition, seed: int | np.random.SeedSequence, counts: Counts) -> None:
        assert problem.activations is not None
        assert problem.output_weights is not None
        self.problem, self.counts = problem, counts
        self.rng = random_state(seed)
        self.weights = problem.output_weights[:, problem.routed].astype(np.float32)
        self.activations = np.ascontiguousarray(problem.activations[:, problem.routed].T.astype(np.float32))
        self.gram = self.weights.T @ self.weights

    def descend(self, start: Labels) -> Iterator[Found | None]:
        """Sweep until a sweep gains next to nothing, and yield where it starts and what sweeps lead to."""
        problem, tries = self.problem, TRIES_PER_NEURON * len(self.gram)
        best = Found(start, problem.value_of(start))
        yield best
        while best.value > 0:
            active = problem.active_experts(best.labels)
            experts = best.labels[problem.routed]
            board = self.board(experts, active)
            least = 1e-6 * best.value * problem.whole
            moves = 0
            for begin in range(0, tries, BURST):
                moves += swap_neurons(board, self.rng, min(BURST, tries - begin), least)
                yield None
            self.counts.moves += moves
            labels = problem.labels_of(experts)
            found = Found(labels, problem.value_of(labels))
            yield found
            if found.value > best.value * (1 - LEAST_GAIN):
                return
            best = found

    def board(self, experts: npt.NDArray[np.int64], chosen: npt.NDArray[np.bool_]) -> Board:
        """Return what swaps look at, given the experts of all rows, and those of routed neurons, changed in place."""
        active = np.ascontiguousarray(chosen.T.astype(np.float32))
        skipped = self.activations * (active[experts] == 0)
        error = skipped.T @ self.weights.T
        projected = self.weights.T @ error.T
        pull = (self.activations * projected) @ active.T
        scratch = np.empty((2, active.shape[1]), dtype=np.float32)
        return Board(self.activations, projected, self.gram, active, experts, pull, scratch)


class Board(NamedTuple):
    """The error of a layer and what swaps of routed neurons make of it; rows keep their experts."""

    activations: npt.NDArray[np.float32]  # (neurons, rows)
    projected: npt.NDArray[np.float32]  # (neurons, rows): the error of a row, times the output weights of a neuron
    gram: npt.NDArray[np.float32]  # (neurons, neurons): products of output weights
    active: npt.NDArray[np.float32]  # (experts, rows): 1 where a row runs an expert, else 0
    experts: npt.NDArray[np.int64]  # (neurons,)
    pull: npt.NDArray[np.float32]  # (neurons, experts): output times error, over the rows of an expert
    scratch: npt.NDArray[np.float32]  # (2, rows)


@compiled
def swap_neurons(board: Board, rng: Any, tries: int, least: float) -> int:
    """Look at random pairs of neurons and swap those that lower the error by more than `least`; return how many."""
    experts = board.experts
    moves = 0
    for _ in range(tries):
        i, j = random_below(rng, experts.shape[0]), random_below(rng, experts.shape[0])
        if experts[i] == experts[j] or not promises(board, i, j):
            continue
        if swap_change(board, i, j) < -least:
            change_places(board, i, j)
            moves += 1
    return moves


@compiled
def promises(board: Board, i: int, j: int) -> bool:
    """Return whether the error falls to first order if two neurons change places; the second order is never below 0."""
    e, f, pull = board.experts[i], board.experts[j], board.pull
    return pull[i, e] - pull[i, f] < pull[j, e] - pull[j, f]


@partial(compiled, fastmath={"reassoc", "contract", "nsz"})
def swap_change(board: Board, i: int, j: int) -> float:
    """Return what the squared error changes by if two neurons change places."""
    a, projected, active, gram = board.activations, board.projected, board.active, board.gram
    e, f = board.experts[i], board.experts[j]
    # In single precision, which is as good as the arrays: a sweep ends with the value from its definition.
    linear = of_i = of_j = of_both = np.float32(0.0)
    for t in range(a.shape[1]):
        # 1 where neuron i is run now and j would be, -1 the other way round, else 0.
        differ = active[e, t] - active[f, t]
        x, y = a[i, t], a[j, t]
        linear += differ * (x * projected[i, t] - y * projected[j, t])
        differ *= differ
        of_i += differ * x * x
        of_j += differ * y * y
        of_both += differ * x * y
    return 2.0 * linear + gram[i, i] * of_i + gram[j, j] * of_j - 2.0 * gram[i, j] * of_both


@compiled
def change_places(board: Board, i: int, j: int) -> None:
    """Swap the experts of two neurons, and keep the error of every row up to date."""
    a, projected, active, gram = board.activations, board.projected, board.active, board.gram
    e, f = board.experts[i], board.experts[j]
    comes, goes = board.scratch[0], board.scratch[1]
    for t in range(a.shape[1]):
        comes[t] = (active[e, t] - active[f, t]) * a[i, t]
        goes[t] = (active[e, t] - active[f, t]) * a[j, t]
    for u in range(gram.shape[0]):
        by_i, by_j = gram[u, i], gram[u, j]
        for t in range(a.shape[1]):
            projected[u, t] += comes[t] * by_i - goes[t] * by_j
    board.experts[i], board.experts[j] = f, e
