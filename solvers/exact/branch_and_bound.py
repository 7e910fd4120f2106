"""Branch and bound with the Gilmore-Lawler bound."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_n_jobs
from moe_search.problems.arrays import EXACT_IN_FLOAT64, INT64_MAX, largest_magnitude, read_only
from moe_search.problems.pair_costs import NO_PAIR_COSTS, PairCosts
from moe_search.problems.permutation_problem import PermutationProblem, expert_of_seat
from moe_search.problems.problem import Problem
from moe_search.solvers.bounds.gilmore_lawler import KoopmansBeckmann, Lawler
from moe_search.solvers.bounds.linear_assignment import empty_duals
from moe_search.solvers.bounds.semidefinite import semidefinite, semidefinite_bound
from moe_search.solvers.engine.background import count_workers
from moe_search.solvers.engine.result import Incumbent, Result
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import AnyOf, MaxIterations, MaxRuntime, Progress
from moe_search.solvers.exact.branching import empty_tree
from moe_search.solvers.exact.enumeration import number_of_permutations
from moe_search.solvers.exact.subtrees import Subtrees
from moe_search.solvers.exact.symmetry import Symmetry, seats_of_experts, symmetry_of

# A node takes some nanoseconds for each of these; more would break a limit of time.
NODE_OPERATIONS = 10_000_000
# About; no run depends on it for longer than its first slice.
OPERATIONS_A_SECOND = 1_000_000_000
# Up to here the first dive of the tree finds an incumbent that is about as good: a tabu search before it would visit up
# to a third fewer nodes and take longer than they do, not counting that it has to be compiled.
DIVE_UP_TO = math.factorial(12)
# Above this depth all children that a node could have are bounded before it is chosen which it has: on grids a fifth of
# the nodes is saved. To look ahead is a part of a node, hence takes no longer than some milliseconds.
LOOK_AHEAD, LOOK_AHEAD_OPERATIONS = 3, 20_000_000
# The part of a limit of time after which the semidefinite bound of the root is computed, which few proofs miss, since
# the next larger instance takes several times as long; and what it takes to get close at 20 slots.
SEMIDEFINITE_SHARE, SEMIDEFINITE_SECONDS = 0.25, 10.0
# Of a slice that several threads share; at its end some wait for the others.
SHARED_SLICE_SECONDS = 0.2
# What the tabu search for the first incumbent may take, some milliseconds. Of 13 to 17 slots, each of 60 runs had found
# by then the best that it found at all.
HEURISTIC_OPERATIONS, HEURISTIC_MOVES = 5_000_000, 12_500


@dataclass(frozen=True)
class BranchAndBound(Solver):
    """Solve quadratic and pairwise problems exactly, or bound them, with Gilmore and Lawler's bound at every node.

    A node seats one more slot. Its bound is that of `moe_search.solvers.bounds.gilmore_lawler` over the free slots and
    seats; the reduced costs of the assignment it ends with bound the children before they are visited, and choose
    whether they are the seats of one slot or the slots of one seat. Depth first, on an explicit stack, the best child
    first. Symmetries of the matrices (twin rows, automorphisms) are found in advance, and of equivalent children only
    the first is visited. Beyond 12! permutations the first incumbent comes from a short `TabuSearch`, up to there from
    the tree itself.

    Parameters
    ----------
    n_jobs : int, default 1
        How many threads search subtrees side by side, as in joblib: -1 for all processors.

    Notes
    -----
    An iteration is one node bounded. After some thousands of them the tree is searched in 32 parts, which split anew as
    they end and exchange incumbents after every few thousand nodes: the result depends on the seed alone, whatever
    `n_jobs`, down to the number of nodes, as long as no clock ends a run; where a target does, several threads may have
    a better bound by then. Stopped early it returns the least bound of the open nodes. Of 13 to 30 slots, the
    semidefinite bound of the whole problem is computed in the last quarter of a limit of time, and returned where it is
    the better one. Values of integer problems are multiples of a common divisor of the data, to which bounds are
    rounded up. Squared mixtures are solved as pairwise problems, linear ones as quadratic problems without flow. `seed`
    only draws the first permutation, and what the tabu search does.

    References
    ----------
    P. C. Gilmore, "Optimal and suboptimal algorithms for the quadratic assignment problem", SIAM Journal 10 (1962),
    305-313; T. Mautor, C. Roucairol, "A new exact algorithm for the solution of quadratic assignment problems",
    Discrete Applied Mathematics 55 (1994), 281-293, for the branching and the symmetries.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.solve(ms.random_quadratic(9, seed=0), ms.BranchAndBound())
    >>> result.status, result.gap
    ('optimal', 0.0)
    """

    exact: ClassVar[bool] = True
    # Not shown: it changes nothing of a result.
    n_jobs: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_n_jobs(self.n_jobs)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse values that are not sums over pairs of slots, limits, long nodes, and integers that could overflow."""
        costs = problem.pair_costs()
        if costs is None:
            return NO_PAIR_COSTS
        if costs.limits is not None:
            return "it branches over all permutations, those beyond load limits included; CpSat keeps limits"
        operations = node_operations(costs)
        if operations > NODE_OPERATIONS:
            return (
                f"a node would take {operations:,} operations, {NODE_OPERATIONS:,} at most; LocalSearch takes any size"
            )
        if costs.integral and 16 * reach(costs) > INT64_MAX:
            return f"its values can reach {reach(costs):.3e}, which overflows the arithmetic of the bound"
        return None

    def search(self, run: Run) -> Result:
        """Search; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, PermutationProblem)
        costs = problem.pair_costs()
        assert costs is not None
        dives = number_of_permutations(problem) <= DIVE_UP_TO
        if dives:
            moves = 0
            run.take_initial()
        else:
            # A squared mixture is searched as the pairwise problem that bounds it: its deltas take less time.
            moves = self._first_incumbent(run, problem if costs.pairwise is None else costs.pairwise)
        relaxation = relax(costs)
        scale = relaxation.scale
        # An improvement is one where all costs are zero too, or too small for their rounding to be a number.
        rounding = max(float(run.tolerance), 1e-14 * float(reach(costs)), math.ulp(0.0))
        step = relaxation.step if problem.integral else rounding
        totals = scale * run.value, scale * step
        unit = node_operations(costs)
        tree = empty_tree(
            relaxation.linear,
            problem.block_size,
            run.incumbent.copy(),
            totals,
            relaxation.slots,
            relaxation.seats,
            0 if dives or not _looks_ahead(costs) else LOOK_AHEAD,
        )
        seconds, last = self._last_seconds(run, costs)
        with ExitStack() as stack:
            workers = count_workers(self.n_jobs)
            at_once = map if workers == 1 else stack.enter_context(ThreadPoolExecutor(workers)).map
            subtrees = Subtrees(relaxation.costs, tree, unit, at_once, dives)

            def advance(budget: int, target: float) -> Slice:
                before = subtrees.nodes
                totals, ended = subtrees.advance(max(budget // unit, 1), scale * target)
                run.incumbent[:] = subtrees.incumbent
                values = [
                    (nodes, run.dtype(total // scale if problem.integral else total / scale)) for nodes, total in totals
                ]
                return Slice((subtrees.nodes - before) * unit, subtrees.nodes, values, ended)

            if not run.interrupted:
                run.stop = AnyOf(MaxRuntime(seconds - last), run.stop)
                if workers == 1:
                    run.loop(advance, unit)
                else:
                    # Short slices to begin with, as a single thread has them, would leave nothing to share.
                    first = min(SHARED_SLICE_SECONDS, max(seconds - last - run.clock.seconds(), 0.0))
                    run.loop(advance, unit, int(first * OPERATIONS_A_SECOND), SHARED_SLICE_SECONDS)
        if run.interrupted:
            subtrees.take_in_all()
            run.incumbent[:] = subtrees.incumbent
        if not subtrees.parts:
            return run.result(moves=moves, proved=True)
        run.bound = subtrees.bound()
        if run.bound is not None:
            # Raised to the next value that there can be.
            below = -(-int(run.bound) // (scale * step)) * step if problem.integral else float(run.bound) / scale
            run.bound = min(below, problem.value(run.incumbent))
        left = seconds - run.clock.seconds()
        if last and not run.interrupted and left > 0:
            try:
                above = semidefinite_bound(costs, min(left, last), float(run.value))
                run.bound = above if run.bound is None else max(run.bound, above)
            except KeyboardInterrupt:
                run.interrupted = True
        return run.result(moves=moves)

    def _last_seconds(self, run: Run, costs: PairCosts) -> tuple[float, float]:
        """Return the limit of seconds, and how many of them are for the semidefinite bound: none without a limit."""
        seconds, problem = run.stop.start().allowance(Progress()).seconds, run.problem
        assert isinstance(problem, PermutationProblem)
        if number_of_permutations(problem) <= DIVE_UP_TO or math.isinf(seconds) or not semidefinite(costs):
            return seconds, 0.0
        return seconds, min(SEMIDEFINITE_SHARE * seconds, SEMIDEFINITE_SECONDS * (costs.block_size / 20) ** 6)

    def _first_incumbent(self, run: Run, searched: PermutationProblem) -> int:
        """Find the first incumbent by a short tabu search, whose moves are no iterations; return how many it made."""

        def take(incumbent: Incumbent) -> None:
            run.offer(incumbent.permutation, incumbent.value, 0)
            run.show()

        # Imported here: small problems need none of its kernels.
        from moe_search.solvers.heuristic.tabu_search import TabuSearch

        heuristic, moves = TabuSearch(), min(max(HEURISTIC_OPERATIONS // searched.sweep_cost, 1), HEURISTIC_MOVES)
        stop = AnyOf(run.stop, MaxIterations(moves))
        found = heuristic.search(Run(repr(heuristic), searched, stop, run.seed, run.initial, take, run.clock))
        run.incumbent, run.value = found.permutation.copy(), run.problem.value(found.permutation)
        run.trajectory = [point._replace(iteration=0) for point in found.trajectory]
        run.trajectory[-1] = run.trajectory[-1]._replace(value=run.value)
        run.shown = len(run.trajectory)
        run.interrupted = found.status == "interrupted"
        return found.moves


class Relaxation(NamedTuple):
    """A problem as its bounds need it."""

    costs: KoopmansBeckmann | Lawler  # of pairs
    linear: npt.NDArray[Any]  # (m, m): the cost of every slot on every seat
    scale: int  # how many times the value these costs are
    step: int  # a divisor of all values, where they are integers
    slots: Symmetry  # what is known to be alike
    seats: Symmetry


def relax(costs: PairCosts) -> Relaxation:
    """Return the arrays of the bounds of a problem."""
    m = costs.shape[0]
    expert = expert_of_seat(m, costs.block_size, costs.capacity)
    linear = costs.unary[:, expert]
    if costs.pairwise is not None:
        table = costs.pairwise.coupling
        step = (_divisor(table, costs.unary) or 1) if costs.integral else 0
        coupling, linear = _numbers(costs, table, 2 * linear)
        inner, duals = np.zeros((m, m), coupling.dtype), empty_duals(m, coupling.dtype)
        # A table that was not converted is read-only; one that was is made so, that one compiled kernel serves both.
        lawler = Lawler(read_only(coupling), expert, costs.block_size, inner, duals)
        slots = Symmetry(np.empty((0, m), dtype=np.int64), np.full(m, -1, dtype=np.int64))
        return Relaxation(lawler, linear, 2, step, slots, seats_of_experts(expert, costs.block_size))
    flow, distance = costs.factors or np.zeros((2, m, m), dtype=linear.dtype)
    flow, distance = flow.copy(), distance.copy()
    np.fill_diagonal(flow, 0)
    np.fill_diagonal(distance, 0)
    slots = symmetry_of(flow, linear)
    seats = symmetry_of(distance, linear.T) if costs.factors else seats_of_experts(expert, costs.block_size)
    step = 0
    if costs.integral:
        twice = 2 if np.array_equal(flow, flow.T) and np.array_equal(distance, distance.T) else 1
        step = math.gcd(twice * _divisor(flow) * _divisor(distance), _divisor(linear)) or 1
    flow, distance, linear = _numbers(costs, flow, distance, linear)
    orders = []
    for matrix in (flow, -distance):
        order = np.argsort(matrix, axis=1, kind="stable")
        orders.append(order[order != np.arange(m)[:, None]].reshape(m, m - 1))
    scratch = np.zeros((2, m, m), flow.dtype)
    return Relaxation(KoopmansBeckmann(flow, distance, *orders, *scratch), linear, 1, step, slots, seats)


def _looks_ahead(costs: PairCosts) -> bool:
    """Return whether to look ahead saves time: where one matrix holds few numbers, as that of a grid does."""
    m = costs.shape[0]
    few = costs.factors is not None and min(len(np.unique(factor)) for factor in costs.factors) <= m
    return few and m**2 * node_operations(costs) <= LOOK_AHEAD_OPERATIONS


def _numbers(costs: PairCosts, *arrays: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Return arrays in float64 wherever that is exact: it is faster than 64-bit integers."""
    exact = costs.integral and 16 * reach(costs) > EXACT_IN_FLOAT64
    return tuple(np.ascontiguousarray(array, dtype=np.int64 if exact else np.float64) for array in arrays)


def _divisor(*arrays: npt.NDArray[np.int64]) -> int:
    return math.gcd(*(int(np.gcd.reduce(array, axis=None)) for array in arrays))


def node_operations(costs: PairCosts) -> int:
    """Return about how many operations, of about a nanosecond, the bound of a node takes."""
    m, n = costs.shape
    return 2 * m**3 if costs.make_pairwise is None else 4 * n * m**3


def reach(costs: PairCosts) -> int | Decimal:
    """Return a magnitude that no sum of costs of the problem exceeds."""
    m = costs.shape[0]
    if costs.pairwise is not None:
        # Bounds count in halves, and a coupling is the sum of two costs.
        return 4 * m**2 * largest_magnitude(costs.pairwise.cost)
    once = 0 if costs.linear is None else m * largest_magnitude(costs.linear)
    return once if costs.factors is None else m**2 * math.prod(map(largest_magnitude, costs.factors)) + once
