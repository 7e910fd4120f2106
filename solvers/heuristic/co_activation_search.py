"""Iterated local search for experts that are chosen together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.co_activation import CoActivation
from moe_search.problems.kernels import compiled
from moe_search.problems.moves import copy_permutation
from moe_search.problems.placement import Experts
from moe_search.solvers.engine.compiled_search import LOG_LENGTH
from moe_search.solvers.engine.random_state import random_below, random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.heuristic.longest_processing_time import constructed

# A kick is up to this many random swaps.
MOST_KICKS = 4
# A local optimum up to this part above the best one is gone on from.
WORST_ACCEPTED = 0.005
# A gain must be this part of all that the sets of a layer weigh, beyond rounding errors.
LEAST_GAIN = 1e-12


@dataclass(frozen=True)
class CoActivationSearch(Solver):
    """Search placements of experts that are chosen together: descents by swaps, kicks, and descents again.

    The layers take turns.

    Parameters
    ----------
    patience : int, default 100
        After how many turns without a better placement the search of a layer goes back to the best one.

    Notes
    -----
    It starts at `LongestProcessingTime`. What a swap of two experts changes is read from two tables, what it takes for
    an expert to leave its device and to join another, but for the tokens that chose both; the first that gains is
    taken. An iteration is one descent of one layer.

    Examples
    --------
    >>> import moe_search as ms
    >>> cluster = ms.Cluster(num_devices=2, slots_per_device=2)
    >>> pairs = [[9, 1, 8, 0], [1, 9, 0, 8], [8, 0, 9, 1], [0, 8, 1, 9]]
    >>> result = ms.CoActivationSearch().solve(ms.CoActivation(cluster, pairs=pairs), ms.MaxIterations(10))
    >>> round(result.value, 3), sorted(result.solution.physical_to_logical[0, :2].tolist()) in ([0, 2], [1, 3])
    (0.111, True)

    References
    ----------
    H. R. Lourenco, O. C. Martin, T. Stuetzle, "Iterated local search", Handbook of Metaheuristics (2003), 320-353.
    """

    takes: ClassVar[type] = CoActivation
    patience: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("patience", self.patience)

    def search(self, run: Run) -> Result:
        """Search; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, CoActivation)
        start = run.take_initial(
            problem.placed(constructed(problem.placement)) if run.initial is None else None
        ).physical_to_logical
        if run.bound is None:
            run.bound = problem.value_range()[0]
        layers = _layers_of(problem, start)
        board = _board_of(problem)
        state = np.zeros(1, dtype=STANDING).view(np.recarray)
        state.total = run.value
        standing = state[0]
        rng = random_state(run.seed)
        log_values, log_iterations = np.zeros(LOG_LENGTH), np.zeros(LOG_LENGTH, dtype=np.int64)

        def advance(budget: int, target: float) -> Slice:
            before = int(standing.iterations)
            standing.logged = 0
            search_slice(board, layers, state, rng, log_values, log_iterations, budget, target, self.patience)
            logged, iterations = int(standing.logged), int(standing.iterations)
            if logged:
                run.incumbent = problem.placed(layers.best)
            improvements = zip(log_iterations[:logged], log_values[:logged], strict=True)
            return Slice(iterations - before, iterations, improvements, bool(standing.total <= target))

        run.loop(advance, first_budget=1)
        return run.result(moves=int(standing.accepted), restarts=int(standing.restarts))


STANDING = np.dtype(
    [
        ("iterations", np.int64),
        ("logged", np.int64),  # improvements in this slice
        ("layer", np.int64),  # the one whose turn is next
        ("accepted", np.int64),  # local optima gone on from
        ("restarts", np.int64),  # returns to the best placement
        ("total", np.float64),  # the value of the best placements
    ]
)


class Layers(NamedTuple):
    """Where all layers stand. Costs are in units of weight: of tokens, and what overload is worth."""

    load: npt.NDArray[np.float64]  # (layers, experts)
    limit: npt.NDArray[np.float64]  # (layers,) what a device may bear
    slope: npt.NDArray[np.float64]  # (layers,) the cost of load above
    scale: npt.NDArray[np.float64]  # (layers,) the part of the value that a unit of cost is
    together: Experts  # (layers, sets, chosen)
    weight: npt.NDArray[np.float64]  # (layers, sets)
    first: npt.NDArray[np.int64]  # (layers, experts + 1) where in `member` the sets of an expert begin
    member: npt.NDArray[np.int64]  # (layers, sets * chosen) the sets of every expert
    current: Experts  # (layers, slots) the local optimum that kicks start from
    best: Experts  # (layers, slots)
    cost: npt.NDArray[np.float64]  # (layers,) of the current placement
    least_cost: npt.NDArray[np.float64]  # (layers,) of the best placement
    failures: npt.NDArray[np.int64]  # (layers,) turns since the last better placement, -1 before the first turn


class Board(NamedTuple):
    """One layer at work."""

    device_of_slot: npt.NDArray[np.int64]  # (slots,)
    unit_of_device: npt.NDArray[np.int64]  # (devices,)
    place: npt.NDArray[np.int64]  # (slots,) the expert in every slot
    slot: npt.NDArray[np.int64]  # (experts,)
    unit: npt.NDArray[np.int64]  # (experts,)
    load: npt.NDArray[np.float64]  # (devices,)
    present: npt.NDArray[np.int64]  # (sets, units) how many experts of a set are on a unit
    leave: npt.NDArray[np.float64]  # (experts,) weight of the sets of which an expert is alone on its unit
    join: npt.NDArray[np.float64]  # (experts, units) weight of the sets of an expert that have none on a unit


def _layers_of(problem: CoActivation, start: Experts) -> Layers:
    layers, _, chosen = problem.together.shape
    flat = problem.together.reshape(layers, -1)
    order = np.argsort(flat, axis=1, kind="stable")
    count = np.stack([np.bincount(row, minlength=problem.cluster.num_slots) for row in flat])
    totals = problem.weights.sum(axis=1)
    return Layers(
        load=problem.placement.load,
        limit=problem.limits,
        slope=problem.slopes * totals,
        scale=1.0 / (totals * layers),
        together=problem.together,
        weight=problem.weights,
        first=np.concatenate([np.zeros((layers, 1), dtype=np.int64), np.cumsum(count, axis=1)], axis=1),
        member=order // chosen,
        current=start.copy(),
        best=start.copy(),
        cost=np.zeros(layers),
        least_cost=np.zeros(layers),
        failures=np.full(layers, -1),
    )


def _board_of(problem: CoActivation) -> Board:
    experts, devices, units = problem.cluster.num_slots, problem.cluster.num_devices, problem.num_units
    return Board(
        device_of_slot=problem.cluster.device_of_slot,
        unit_of_device=problem.unit_of_device,
        place=np.zeros(experts, dtype=np.int64),
        slot=np.zeros(experts, dtype=np.int64),
        unit=np.zeros(experts, dtype=np.int64),
        load=np.zeros(devices),
        present=np.zeros((problem.together.shape[1], units), dtype=np.int64),
        leave=np.zeros(experts),
        join=np.zeros((experts, units)),
    )


@compiled
def search_slice(
    board: Board,
    layers: Layers,
    state: Any,
    rng: Any,
    log_values: Any,
    log_iterations: Any,
    budget: int,
    target: float,
    patience: int,
) -> None:
    """Let layers take turns, at most `budget` of them."""
    standing = state[0]
    for _ in range(budget):
        if standing.total <= target or standing.logged == log_values.shape[0]:
            return
        layer = standing.layer
        standing.layer = (layer + 1) % layers.load.shape[0]
        standing.iterations += 1
        copy_permutation(board.place, layers.current[layer])
        fresh = layers.failures[layer] < 0
        if not fresh:
            for _ in range(1 + random_below(rng, MOST_KICKS)):
                i, j = random_below(rng, board.place.shape[0]), random_below(rng, board.place.shape[0])
                board.place[i], board.place[j] = board.place[j], board.place[i]
        cost = settle(board, layers, layer)
        if fresh:
            layers.failures[layer] = 0
            layers.cost[layer] = layers.least_cost[layer] = cost
        cost = descend(board, layers, layer, cost, random_below(rng, board.place.shape[0]))
        best = layers.least_cost[layer]
        if cost < best - LEAST_GAIN / layers.scale[layer]:
            standing.total += (cost - best) * layers.scale[layer]
            layers.least_cost[layer] = cost
            layers.failures[layer] = 0
            copy_permutation(layers.best[layer], board.place)
            log_values[standing.logged] = standing.total
            log_iterations[standing.logged] = standing.iterations
            standing.logged += 1
        else:
            layers.failures[layer] += 1
        if cost <= max(layers.cost[layer], best * (1.0 + WORST_ACCEPTED)):
            layers.cost[layer] = cost
            copy_permutation(layers.current[layer], board.place)
            standing.accepted += 1
        elif layers.failures[layer] >= patience:
            layers.failures[layer] = 0
            layers.cost[layer] = best
            copy_permutation(layers.current[layer], layers.best[layer])
            standing.restarts += 1


@compiled
def descend(board: Board, layers: Layers, layer: int, cost: float, begin: int) -> float:
    """Take the first swap that gains, until none does; return the cost."""
    load, limit, slope = layers.load[layer], layers.limit[layer], layers.slope[layer]
    experts = load.shape[0]
    least = LEAST_GAIN / layers.scale[layer]
    a, idle = begin, 0
    while idle < experts:
        gained = False
        for b in range(experts):
            g, h = board.device_of_slot[board.slot[a]], board.device_of_slot[board.slot[b]]
            if g == h:
                continue
            d = load[a] - load[b]
            x, y = board.load[g], board.load[h]
            delta = max(x - d - limit, 0.0) + max(y + d - limit, 0.0) - max(x - limit, 0.0) - max(y - limit, 0.0)
            delta *= slope
            p, q = board.unit[a], board.unit[b]
            if p != q:
                # Of the sets with both experts, which stay where they are, this counts too much of a gain.
                delta += board.join[a, q] - board.leave[a] + board.join[b, p] - board.leave[b]
                if delta < -least:
                    delta += counted_twice(board, layers, layer, a, b)
            if delta < -least:
                swap(board, layers, layer, a, b)
                board.load[g] -= d
                board.load[h] += d
                cost += delta
                gained = True
        idle = 0 if gained else idle + 1
        a = (a + 1) % experts
    return cost


@compiled
def holds(row: Any, expert: int) -> bool:
    """Return whether an expert is in a set."""
    found = False
    for k in range(row.shape[0]):
        found = found or row[k] == expert
    return found


@compiled
def counted_twice(board: Board, layers: Layers, layer: int, a: int, b: int) -> float:
    """Return the weight of the sets with both experts that either is alone on its unit of."""
    first, member, sets = layers.first[layer], layers.member[layer], layers.together[layer]
    weight = layers.weight[layer]
    p, q = board.unit[a], board.unit[b]
    if first[b + 1] - first[b] < first[a + 1] - first[a]:
        a, b = b, a
    total = 0.0
    for i in range(first[a], first[a + 1]):
        t = member[i]
        if (board.present[t, p] == 1 or board.present[t, q] == 1) and holds(sets[t], b):
            total += weight[t] * (int(board.present[t, p] == 1) + int(board.present[t, q] == 1))
    return total


@compiled
def swap(board: Board, layers: Layers, layer: int, a: int, b: int) -> None:
    """Let two experts exchange their slots."""
    i, j = board.slot[a], board.slot[b]
    board.place[i], board.place[j] = b, a
    board.slot[a], board.slot[b] = j, i
    if board.unit[a] == board.unit[b]:
        return
    p, q = board.unit[a], board.unit[b]
    change(board, layers, layer, a, b, p, q)
    change(board, layers, layer, b, a, q, p)
    board.unit[a], board.unit[b] = q, p
    for e in (a, b):
        board.leave[e] = alone(board, layers, layer, e)


@compiled
def change(board: Board, layers: Layers, layer: int, e: int, other: int, p: int, q: int) -> None:
    """Count an expert on unit q and no longer on p, in all sets that do not hold the other one."""
    first, member, sets = layers.first[layer], layers.member[layer], layers.together[layer]
    weight = layers.weight[layer]
    for i in range(first[e], first[e + 1]):
        t = member[i]
        row, w = sets[t], weight[t]
        if holds(row, other):
            continue
        board.present[t, p] -= 1
        board.present[t, q] += 1
        before, after = board.present[t, p], board.present[t, q]
        for k in range(row.shape[0]):
            x = row[k]
            if before == 0:
                board.join[x, p] += w
            elif before == 1 and board.unit[x] == p and x != e:
                board.leave[x] += w
            if after == 1:
                board.join[x, q] -= w
            elif after == 2 and board.unit[x] == q:
                board.leave[x] -= w


@compiled
def alone(board: Board, layers: Layers, layer: int, e: int) -> float:
    """Return the weight of the sets of which an expert is alone on its unit."""
    first, member, weight = layers.first[layer], layers.member[layer], layers.weight[layer]
    total = 0.0
    for i in range(first[e], first[e + 1]):
        if board.present[member[i], board.unit[e]] == 1:
            total += weight[member[i]]
    return total


@compiled
def settle(board: Board, layers: Layers, layer: int) -> float:
    """Fill in what follows from the experts in the slots; return the cost."""
    load, sets, weight = layers.load[layer], layers.together[layer], layers.weight[layer]
    board.load[:] = 0.0
    board.present[:] = 0
    board.join[:] = 0.0
    for i in range(board.place.shape[0]):
        e, g = board.place[i], board.device_of_slot[i]
        board.slot[e] = i
        board.unit[e] = board.unit_of_device[g]
        board.load[g] += load[e]
    cost = 0.0
    for g in range(board.load.shape[0]):
        cost += layers.slope[layer] * max(board.load[g] - layers.limit[layer], 0.0)
    for t in range(sets.shape[0]):
        for k in range(sets.shape[1]):
            board.present[t, board.unit[sets[t, k]]] += 1
        for u in range(board.present.shape[1]):
            if board.present[t, u] > 0:
                cost += weight[t]
                continue
            for k in range(sets.shape[1]):
                board.join[sets[t, k], u] += weight[t]
    for e in range(load.shape[0]):
        board.leave[e] = alone(board, layers, layer, e)
    return cost
