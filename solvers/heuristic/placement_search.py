"""Iterated local search for placements, and for rebalancing them at few migrations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer, require_number
from moe_search.problems.kernels import compiled
from moe_search.problems.moves import copy_permutation
from moe_search.problems.placement import ExpertPlacement, Experts
from moe_search.problems.rebalancing import Rebalancing
from moe_search.solvers.engine.compiled_search import LOG_LENGTH
from moe_search.solvers.engine.random_state import random_state, random_unit
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.heuristic.longest_processing_time import constructed
from moe_search.solvers.heuristic.placement_moves import (
    Board,
    descend,
    empty_board,
    exchange_groups,
    go_back,
    go_home,
    homes_of,
    kick,
    most_loaded,
    remember,
    settle,
)

# This part of the turns exchanges two groups of experts instead of kicking.
GROUP_SHARE = 0.25
# After this many failures of a layer, ever worse local optima are gone on from, at last those this part above the best.
WORST_ACCEPTED = 0.05
TRACE_LENGTH = 1024
# Tens of microseconds each, or hundreds where the cluster is large.
FIRST_TURNS = 64


@dataclass(frozen=True)
class PlacementSearch(Solver):
    """Search placements by swaps and retargets of the most loaded device: descents, kicks, and descents again.

    The layers take turns. A layer that reaches its bound takes none any more.

    Parameters
    ----------
    tolerance : float, default 0.0
        A layer is left alone once its largest load is at most this part above its bound.
    patience : int, default 200
        After how many turns without a better placement the search of a layer goes back to the best one.

    Notes
    -----
    It starts at `LongestProcessingTime`, or to rebalance, at the previous placement, where it takes the moves that gain
    most for a migration, and then undoes those that are not needed. A budget is first shared out along the concave
    envelopes of what every layer gains. An iteration is one descent of one layer; what is found depends on the seed and
    the number of iterations alone.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.ExpertPlacement([[9, 1, 7, 3], [6, 5, 2, 2]], ms.Cluster(num_devices=2, slots_per_device=3))
    >>> result = ms.PlacementSearch(tolerance=0.01).solve(problem, ms.MaxIterations(100))
    >>> result.solution.balancedness.round(2).tolist()
    [0.91, 1.0]

    References
    ----------
    DeepSeek-AI, "Expert parallelism load balancer", 2025, for the problem; H. R. Lourenco, O. C. Martin, T. Stuetzle,
    "Iterated local search", Handbook of Metaheuristics (2003), 320-353.
    """

    takes: ClassVar[type | tuple[type, ...]] = (ExpertPlacement, Rebalancing)
    tolerance: float = 0.0
    patience: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("tolerance", self.tolerance)
        require_integer("patience", self.patience)

    def search(self, run: Run) -> Result:
        """Search; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, ExpertPlacement | Rebalancing)
        if run.initial is None:
            starts_at = problem.start if isinstance(problem, Rebalancing) else constructed(problem)
            run.initial = problem.placed(starts_at)
        start = run.initial.physical_to_logical
        costs = problem.costs(start)
        run.offer(run.initial, float(costs.sum()), 0)
        if run.bound is None:
            run.bound = problem.value_range()[0]
        placement = problem.placement if isinstance(problem, Rebalancing) else problem
        board, layers = empty_board(placement), _layers_of(problem, start, costs, self.tolerance)
        state, past, ranked = _standing_of(layers), _past_of(problem), _ranked(placement)
        if isinstance(problem, Rebalancing) and problem.budget is not None:
            layers.rows["most_moved"] = _shares(problem, start, costs, self.tolerance)
            state["spare"] = problem.budget - layers.rows["most_moved"].sum()
        standing = state[0]
        rng = random_state(run.seed)
        log_values, log_iterations = np.zeros(LOG_LENGTH), np.zeros(LOG_LENGTH, dtype=np.int64)

        def advance(budget: int, target: float) -> Slice:
            before = int(standing["iterations"])
            standing["logged"] = 0
            search_slice(
                board, layers, *past, ranked, state, rng, log_values, log_iterations, budget, target, self.patience
            )
            logged, iterations = int(standing["logged"]), int(standing["iterations"])
            if logged and run.on_improvement is not None:
                run.incumbent = problem.placed(layers.best)
            improvements = zip(log_iterations[:logged].tolist(), log_values[:logged].tolist(), strict=True)
            ended = standing["left"] == 0 or standing["total"] <= target
            return Slice(iterations - before, iterations, improvements, bool(ended))

        run.loop(advance, first_budget=FIRST_TURNS)
        if len(run.trajectory) > 1:
            run.incumbent = problem.placed(layers.best)
        return run.result(moves=int(standing["accepted"]), restarts=int(standing["restarts"]))


def _layers_of(
    problem: ExpertPlacement | Rebalancing, start: Experts, costs: npt.NDArray[np.float64], tolerance: float
) -> Layers:
    """Return where all layers stand at the start."""
    placement = problem.placement if isinstance(problem, Rebalancing) else problem
    num_layers = len(placement.load)
    near = (1 + tolerance) * placement.load_bounds
    rows = np.zeros(num_layers, dtype=LAYER)
    rows["goal"] = rows["target"] = near
    rows["slope"], rows["most_moved"], rows["fresh"] = 1.0, placement.cluster.num_slots, True
    if isinstance(problem, Rebalancing):
        rows["limit"], rows["slope"], rows["moved"] = problem.limits, problem.slopes, problem.migrations(start)
        if problem.price:
            rows["goal"] = problem.least_costs
        if problem.tolerance is not None:
            rows["target"] = problem.limits
    rows["cost"] = rows["least_cost"] = costs
    rows["left"] = costs > rows["goal"] * (1 + 1e-12)
    groups = placement.homes.shape[1]
    homes = np.zeros((2, num_layers, groups), dtype=np.int64)
    if placement.num_regions > 1:
        homes[:] = placement.homes_of(start)
    return Layers(
        load=placement.load,
        current=start.copy(),
        best=start.copy(),
        rows=rows,
        homes=homes,
        price=problem.price if isinstance(problem, Rebalancing) else 0.0,
    )


def _past_of(problem: ExpertPlacement | Rebalancing, trace: int = 0) -> Any:
    """Return what `search_slice` takes where migrations count, and Nones where they do not."""
    if not isinstance(problem, Rebalancing):
        return None, None, None
    was = np.zeros((problem.placement.load.shape[1], problem.placement.cluster.num_devices), dtype=np.bool_)
    return was, problem.previous, np.zeros((trace, 2))


def _ranked(placement: ExpertPlacement) -> npt.NDArray[np.int64] | None:
    """Return the experts of every group by falling load, shape (layers, groups, experts of a group)."""
    if placement.num_regions == 1:
        return None
    grouped = placement.load.reshape(len(placement.load), placement.num_groups or 1, -1)
    ranked = np.argsort(-grouped, axis=2, kind="stable")
    return ranked + np.arange(grouped.shape[1])[:, None] * grouped.shape[2]


def _standing_of(layers: Layers) -> npt.NDArray[np.void]:
    state = np.zeros(1, dtype=STANDING)
    state["total"] = layers.rows["least_cost"].sum()
    state["left"] = layers.rows["left"].sum()
    return state


def _shares(
    problem: Rebalancing, start: Experts, costs: npt.NDArray[np.float64], tolerance: float
) -> npt.NDArray[np.int64]:
    """Share the budget out: the steps that gain most for a migration, along the envelopes of all layers."""
    assert problem.budget is not None
    shares = problem.migrations(start)
    board, layers = empty_board(problem.placement), _layers_of(problem, start, costs, tolerance)
    state, past, ranked = _standing_of(layers), _past_of(problem, TRACE_LENGTH), _ranked(problem.placement)
    trace = past[-1]
    log_values, log_iterations = np.zeros(1), np.zeros(1, dtype=np.int64)
    steps = []
    for layer in np.flatnonzero(layers.rows["left"]).tolist():
        trace[:] = 0.0
        state["layer"], state["logged"] = layer, 0
        search_slice(board, layers, *past, ranked, state, random_state(0), log_values, log_iterations, 1, -math.inf, 1)
        for (few, high), (many, low) in _envelope([row for row in trace.tolist() if row[1] > 0]):
            steps.append(((high - low) / (many - few), int(many - few), layer))
    left = problem.budget - int(shares.sum())
    for _, migrations, layer in sorted(steps, key=lambda step: -step[0]):
        if migrations <= left:
            shares[layer] += migrations
            left -= migrations
    return shares


def _envelope(points: list[list[float]]) -> list[tuple[list[float], list[float]]]:
    """Return the pieces of the lower convex hull of points of migrations and load, as far as the load falls."""
    hull: list[list[float]] = []
    for point in sorted(points):
        if hull and point[1] >= hull[-1][1]:
            continue
        if hull and point[0] == hull[-1][0]:
            hull.pop()
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (point[0] - hull[-1][0]) >= (point[1] - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append(point)
    return list(pairwise(hull))


STANDING = np.dtype(
    [
        ("iterations", np.int64),
        ("logged", np.int64),  # improvements in this slice
        ("layer", np.int64),  # the one whose turn is next
        ("left", np.int64),  # layers that are not at their goal
        ("spare", np.int64),  # migrations that no layer's best placement takes
        ("accepted", np.int64),  # local optima gone on from
        ("restarts", np.int64),  # returns to the best placement
        ("total", np.float64),  # what the best placements cost
    ]
)


LAYER = np.dtype(
    [
        ("limit", np.float64),  # up to which load the layer costs its migrations alone
        ("slope", np.float64),  # the cost of load above
        ("goal", np.float64),  # at this cost the layer takes no more turns
        ("target", np.float64),  # at this load a descent ends
        ("cost", np.float64),  # of the current placement
        ("least_cost", np.float64),  # of the best placement
        ("moved", np.int64),  # migrations of the best placement
        ("most_moved", np.int64),  # migrations of the first descent at most
        ("failures", np.int64),  # turns since the last better placement
        ("left", np.bool_),  # whether the layer is not at its goal
        ("fresh", np.bool_),  # whether it has had no turn
    ]
)


class Layers(NamedTuple):
    """Where all layers stand."""

    load: npt.NDArray[np.float64]  # (layers, experts)
    current: Experts  # (layers, slots) the local optimum that kicks start from
    best: Experts  # (layers, slots)
    rows: Any  # of `LAYER`, (layers,)
    homes: npt.NDArray[np.int64]  # (2, layers, groups) the regions of groups, in the current and the best placement
    price: float  # of a migration


@compiled
def search_slice(
    board: Board,
    layers: Layers,
    was: Any,
    before: Any,
    trace: Any,
    ranked: Any,
    state: Any,
    rng: Any,
    log_values: Any,
    log_iterations: Any,
    budget: int,
    target: float,
    patience: int,
) -> None:
    """Let layers take turns, at most `budget` of them.

    What is None is not compiled: where migrations do not count, `was` (experts, devices), `before` (layers, slots) and
    `trace`, which gets migrations and largest load of every step of a descent; where there are no groups, `ranked`, the
    experts of every group of every layer by falling load.
    """
    standing = state[0]
    for _ in range(budget):
        if standing["left"] == 0 or standing["total"] <= target or standing["logged"] == log_values.shape[0]:
            return
        layer = standing["layer"]
        while not layers.rows[layer]["left"]:
            layer = (layer + 1) % layers.rows.shape[0]
        standing["layer"] = (layer + 1) % layers.rows.shape[0]
        row = layers.rows[layer]
        standing["iterations"] += 1
        copy_permutation(board.place, layers.current[layer])
        for e in range(board.experts.shape[0]):
            board.experts[e]["load"] = layers.load[layer, e]
        if ranked is not None:
            go_home(board.experts, layers.homes[0, layer])
        worth, allowed, aim = layers.price / row["slope"], row["moved"] + standing["spare"], row["target"]
        if was is not None:
            remember(board.devices, was, before[layer], True)
            if row["fresh"]:
                # What the first descent leaves of its share, all layers may take.
                standing["spare"] += row["most_moved"] - row["moved"]
                allowed = row["most_moved"]
        moved = settle(board, was)
        if not row["fresh"]:
            if layers.price > 0.0 and row["failures"] % 2 == 1:
                # Where migrations cost, every other turn looks for as good a load at fewer of them.
                aim = max(aim, board.devices[most_loaded(board.devices)]["load"])
            if ranked is not None and random_unit(rng) < GROUP_SHARE:
                exchange_groups(board, ranked[layer], rng)
                settle(board, was)
            kick(board, was, rng)
            moved = settle(board, was)
        moved = descend(board, was, aim, moved, allowed, worth, trace)
        if was is not None:
            go_back(board, was, before[layer], aim, moved, worth)
        moved = settle(board, was)
        if was is not None:
            remember(board.devices, was, before[layer], False)
        load = board.devices[most_loaded(board.devices)]["load"]
        cost = row["slope"] * max(load - row["limit"], 0.0) + layers.price * moved
        feasible = was is None or moved <= row["moved"] + standing["spare"]
        failures = row["failures"]
        best = row["least_cost"]
        if feasible and cost < best - 1e-12 * abs(best):
            standing["total"] += cost - best
            standing["spare"] -= moved - row["moved"]
            row["moved"] = moved
            row["least_cost"] = cost
            row["failures"] = 0
            copy_permutation(layers.best[layer], board.place)
            if ranked is not None:
                homes_of(board.experts, layers.homes[1, layer])
            # The first descents of all layers are one improvement.
            if standing["logged"] == 0 or not row["fresh"]:
                standing["logged"] += 1
            log_values[standing["logged"] - 1] = standing["total"]
            log_iterations[standing["logged"] - 1] = standing["iterations"]
            if cost <= row["goal"] * (1.0 + 1e-12):
                row["left"] = False
                standing["left"] -= 1
        else:
            row["failures"] = failures + 1
        row["fresh"] = False
        slack = WORST_ACCEPTED * max(0, 2 * failures - patience) / patience
        if feasible and cost <= max(row["cost"], best * (1.0 + slack)):
            row["cost"] = cost
            copy_permutation(layers.current[layer], board.place)
            if ranked is not None:
                homes_of(board.experts, layers.homes[0, layer])
            standing["accepted"] += 1
        elif failures >= patience:
            row["failures"] = 0
            row["cost"] = best
            copy_permutation(layers.current[layer], layers.best[layer])
            copy_permutation(layers.homes[0, layer], layers.homes[1, layer])
            standing["restarts"] += 1
