"""One call that solves any problem."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_flag, require_n_jobs, require_number
from moe_search.problems.balanced_routing import BalancedRouting
from moe_search.problems.co_activation import CoActivation
from moe_search.problems.expert_subset import ExpertSubset
from moe_search.problems.kernel_cache import LOGGER
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.neuron_partition import NeuronPartition
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.placement import ExpertPlacement
from moe_search.problems.problem import Problem
from moe_search.problems.rebalancing import Rebalancing
from moe_search.solvers.bounds import lower_bounds
from moe_search.solvers.bounds.linear_assignment import assignment_seconds
from moe_search.solvers.engine.background import count_workers
from moe_search.solvers.engine.result import Result, reached
from moe_search.solvers.engine.run import OnImprovement, Run
from moe_search.solvers.engine.solver import Solver, require_problem, require_result
from moe_search.solvers.engine.stop import MaxRuntime, Progress, StoppingCriterion, require_criterion
from moe_search.solvers.exact.enumeration import Enumeration, number_of_permutations

# Of a limit of seconds, or of what a search without one took.
BOUND_SHARE = 0.1
MOST_BOUND_SECONDS = 5.0
# Without a limit of seconds, before the search has told how long it takes.
FIRST_BOUND_SECONDS = 0.3
LATE_BOUND_SECONDS = 0.01
# Where an expert holds several slots. Up to here scipy's takes some hundredths of a second at worst, which is more than
# Transport takes, and far less than its kernels take to compile.
HUNGARIAN_UP_TO = 512
ENUMERATE_UP_TO = math.factorial(8)
# Within a fraction of a second random instances of these sizes are proved optimal; the next larger ones are not. Pairs
# cost products of two factors, or what a table says.
BRANCH_FACTORS_UP_TO, BRANCH_TABLE_UP_TO = math.factorial(12), math.factorial(10)
# What follows was measured by bench/speed/default_choice.py. Time is counted in the moves for each slot of a block that
# it allows. With fewer than these, searches that look at a neighbor at a time got further on mixtures and on large
# quadratic problems.
TABU_MOVES_PER_SLOT = 4
# On grids annealing is the best in between: on 100, 150 and 256 cells, however short the time that was tried.
ANNEALING_MOVES_PER_SLOT, GRID_MOVES_PER_SLOT = 20, 1500
# With fewer, the population is hardly there; with two seconds or less, its kernels take much longer to compile.
MEMETIC_MOVES_PER_SLOT, MEMETIC_SECONDS = 4000, 2.0
# Iterations a slot of an improvement by memetic search where costs are those of distances: more than it has by default.
MOVES_ON_DISTANCES = 100.0
TRIANGLES, MOST_BROKEN, LEAST_SPREAD = 1000, 0.01, 0.25
SECONDS_PER_OPERATION = 1e-9


def solve(
    problem: Problem,
    solver: Solver | None = None,
    stop: StoppingCriterion | None = None,
    seed: int | np.random.SeedSequence = 0,
    initial: npt.ArrayLike | None = None,
    on_improvement: OnImprovement | None = None,
    display: bool = False,
    n_jobs: int = 1,
) -> Result:
    """Minimize a problem, and prove how far from the optimum the answer can be.

    Parameters
    ----------
    problem : Problem
        A `LinearAssignment`, `QuadraticAssignment`, `PairwiseAssignment`, `MixtureAssignment` or one's own.
    solver : Solver, optional
        By default the best one for the class: `Hungarian` or `Transport` for linear problems (exact), `Transport` for
        `BalancedRouting` (exact), `Enumeration` for up to 8! permutations (exact), `BranchAndBound` (exact) for
        quadratic problems of up to 12! permutations and pairwise ones of up to 10!, else `TabuSearch`, `MemeticSearch`,
        `SimulatedAnnealing` or `IteratedLocalSearch` by how many moves the limit of seconds allows and whether costs
        are those of distances; `PlacementSearch` for placements, and `SubsetEnumeration` (exact) for an `ExpertSubset`
        where the limit of seconds allows it, else `SubsetSearch`.
    stop : StoppingCriterion, optional
        When to return the incumbent, at the latest; by default ``MaxRuntime(1.0)``, and for linear problems
        not before the optimum. The time for the bound, a tenth of the limit at most, is part of it. Without a limit of
        seconds the bound takes 0.3 s at most; after a search of more than three seconds, up to a tenth of these again.
    seed : int or SeedSequence, default 0
        Source of all randomness.
    initial : array_like of int, shape (size,), optional
        Permutation to start from. The result is never worse.
    on_improvement : callable, optional
        Called with an `Incumbent` whenever there is a better one; see `Solver.solve`.
    display : bool, default False
        Whether to show time, value, bound, gap and iterations on the standard error while it runs, and the outcome at
        the end: as a bar on a terminal, as a table in a notebook, and else as a line now and then. The result is the
        same.
    n_jobs : int, default 1
        How many threads to use, as in joblib: -1 for all processors. `BranchAndBound` and `MultiStart` are given it in
        place of their own; any other heuristic is run by `MultiStart`, once on each; any other exact solver uses one.

    Returns
    -------
    Result
        With a lower bound and hence a gap for every class of this package. A value equal to the bound ends the search.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong or the solver cannot take the problem; see `Solver.solve`.

    Notes
    -----
    The logger ``moe_search`` is told the outcome at the level INFO, and the start at DEBUG.

    Without a limit of seconds the same seed and `n_jobs` give the same solution; how close its bound is, and whether it
    proves the solution optimal, may depend on how long the search took. A heuristic on two threads is another search
    than on one: its runs have seeds spawned from the given one, and a limit of iterations holds for each of them. With
    -1 there are as many runs as processors, so that the result depends on the machine.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.solve(ms.QuadraticAssignment([[0, 3, 1], [3, 0, 2], [1, 2, 0]], [[0, 4, 1], [4, 0, 6], [1, 6, 0]]))
    >>> result.value, result.status
    (34, 'optimal')
    """
    require_problem(problem)
    if solver is not None and not isinstance(solver, Solver):
        raise TypeError(f"solver must be a Solver such as LocalSearch(), got {type(solver).__name__}")
    if stop is None:
        to_optimum = isinstance(problem, (LinearAssignment, BalancedRouting)) and solver is None
        stop = MaxRuntime(math.inf if to_optimum else 1.0)
    require_criterion(stop)
    require_flag("display", display)
    require_n_jobs(n_jobs)
    seconds = stop.start().allowance(Progress()).seconds
    chosen = on_threads(default_solver(problem, seconds) if solver is None else solver, n_jobs)
    run = chosen.begin_run(problem, stop, seed, initial, on_improvement)
    LOGGER.debug("solving %r with %s", problem, run.solver)
    search = partial(_search_and_bound, run, chosen, seconds)
    if display:
        # Imported here: whoever wants no display waits for none.
        from moe_search.display import displayed

        result = displayed(run, search)
    else:
        result = search()
    LOGGER.info("%r, %s: %s in %.3f s", problem, run.solver, result.outcome(), result.runtime)
    return result


def on_threads(solver: Solver, n_jobs: int) -> Solver:
    """Return the solver that does on several threads what the given one does on one, itself if it cannot use them."""
    workers = count_workers(n_jobs)
    if workers == 1:
        return solver
    if hasattr(solver, "n_jobs"):
        parallel: Any = solver
        return replace(parallel, n_jobs=n_jobs)
    if solver.exact:
        return solver
    from moe_search.solvers.heuristic.multi_start import MultiStart

    return MultiStart(solver, runs=workers, n_jobs=n_jobs)


def _search_and_bound(run: Run, chosen: Solver, seconds: float) -> Result:
    """Return what a solver finds, with a lower bound: its own if it is exact, else a quick one."""
    problem = run.problem
    limit = FIRST_BOUND_SECONDS if math.isinf(seconds) else min(BOUND_SHARE * seconds, MOST_BOUND_SECONDS)
    try:
        if not chosen.exact:
            run.aim(lower_bounds.lower_bound(problem, limit))
        result = require_result(chosen, chosen.search(run))
    except KeyboardInterrupt:
        return run.interrupt()
    if chosen.exact:
        # An exact solver that was stopped before it had a bound of its own gets a quick one.
        return result if result.bound is not None else _bounded(run, result, LATE_BOUND_SECONDS)
    late = min(BOUND_SHARE * result.runtime, MOST_BOUND_SECONDS)
    if math.isinf(seconds) and late > limit and result.status == "feasible" and result.bound is not None:
        return _bounded(run, result, late)
    return result


def _bounded(run: Run, result: Result, seconds: float) -> Result:
    """Return a result with the larger of its bound and one that takes so many seconds; its own after Ctrl-C."""
    try:
        bound = lower_bounds.lower_bound(run.problem, seconds)
    except KeyboardInterrupt:
        return replace(result, status="interrupted")
    run.bound = max((each for each in (result.bound, bound) if each is not None), default=None)
    run.doubt_bound()
    optimal = reached(result.value, run.bound, run.problem)
    return replace(
        result,
        bound=run.bound,
        status="optimal" if optimal else result.status,
        runtime=run.clock.seconds(),
        compile_seconds=run.clock.compile_seconds(),
    )


def lower_bound(problem: Problem, method: str = "auto", seconds: float = 1.0) -> int | float | None:
    """Prove that no solution of a problem has a value below a bound.

    Parameters
    ----------
    problem : Problem
        Any problem of this package, or one's own.
    method : {"auto", "gilmore-lawler", "projection", "semidefinite"}, default "auto"
        The first is what `solve` takes: the best of those that end by themselves within `seconds`.

        - ``"gilmore-lawler"``: any costs of pairs, milliseconds up to some hundred slots. Good where a matrix is sparse
          or very uneven.
        - ``"projection"``: pairs that cost products of two matrices, milliseconds up to some hundred slots. Good on
          dense matrices and on grids, the better the larger; of no use on sparse ones, where it may be negative.
        - ``"semidefinite"``: up to 30 slots, each with a seat of its own. By far the best once it has had its time: two
          seconds at 12 slots, ten at 20, a minute at 30; before that, the better of the other two.
    seconds : float, default 1.0
        Time to spend, roughly. The two quick methods take what they need.

    Returns
    -------
    int or float or None
        The bound, an integer where all values are integers; None where none is known for the class.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the method cannot take the problem.

    References
    ----------
    P. C. Gilmore, SIAM Journal 10 (1962), 305-313; E. L. Lawler, Management Science 9 (1963), 586-599; S. W. Hadley, F.
    Rendl, H. Wolkowicz, Mathematics of Operations Research 17 (1992), 727-739; D. E. Oliveira, H. Wolkowicz, Y. Xu,
    Mathematical Programming Computation 10 (2018), 631-658.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.QuadraticAssignment([[0, 3, 1], [3, 0, 2], [1, 2, 0]], [[0, 4, 1], [4, 0, 6], [1, 6, 0]])
    >>> ms.lower_bound(problem, method="projection"), ms.lower_bound(problem, method="semidefinite")
    (34, 34)
    """
    require_problem(problem)
    require_choice("method", method, ("auto", *lower_bounds.METHODS))
    seconds = require_number("seconds", seconds)
    if method == "auto":
        return lower_bounds.lower_bound(problem, seconds)
    return lower_bounds.bound_by(problem, method, seconds)


def training_solver(problem: Problem) -> Solver:
    """Return the solver that `PermutationSearch` takes for a problem if none is given: it starts from a good map."""
    if isinstance(problem, LinearAssignment):
        from moe_search.solvers.exact.hungarian import Hungarian

        return Hungarian()
    from moe_search.solvers.heuristic.local_search import LocalSearch

    return LocalSearch(neighborhood="swap", restarts=True)


def default_solver(problem: Problem, seconds: float) -> Solver:
    """Return the solver that `solve` takes for a problem and a limit of `seconds` if none is given."""
    # Each solver is imported where it is chosen: the kernels of all of them take longer to declare than one to load.
    if isinstance(problem, LinearAssignment):
        from moe_search.solvers.exact.hungarian import Hungarian
        from moe_search.solvers.exact.transport import Transport

        hungarian = Hungarian()
        # Scipy's is faster where an expert holds one slot, but it cannot be stopped: it must end in time by itself.
        one_each = problem.capacity == 1 or problem.size <= HUNGARIAN_UP_TO
        in_time = hungarian.refuses(problem) is None and assignment_seconds(problem.size) <= seconds
        return hungarian if one_each and in_time else Transport()
    if isinstance(problem, BalancedRouting):
        from moe_search.solvers.exact.transport import Transport

        return Transport()
    if isinstance(problem, ExpertPlacement | Rebalancing):
        from moe_search.solvers.heuristic.placement_search import PlacementSearch

        return PlacementSearch()
    if isinstance(problem, ExpertSubset):
        from moe_search.solvers.exact.subset_enumeration import SubsetEnumeration
        from moe_search.solvers.heuristic.subset_search import SubsetSearch

        seconds_of_all = problem.num_subsets * problem.evaluation_cost * SECONDS_PER_OPERATION
        enumerable = SubsetEnumeration().refuses(problem) is None and seconds_of_all <= seconds
        return SubsetEnumeration() if enumerable else SubsetSearch()
    if isinstance(problem, CoActivation):
        from moe_search.solvers.heuristic.co_activation_search import CoActivationSearch

        return CoActivationSearch()
    if isinstance(problem, NeuronPartition):
        from moe_search.solvers.heuristic.partition_search import PartitionSearch

        return PartitionSearch()
    if not isinstance(problem, PermutationProblem):
        raise TypeError(
            f"solver must be given: none is known for {type(problem).__name__}, whose solutions are no permutations"
        )
    permutations = number_of_permutations(problem)
    if permutations <= ENUMERATE_UP_TO:
        return Enumeration()
    costs = problem.pair_costs()
    # A table that would have to be made first is not waited for.
    if costs is not None and costs.products == 0:
        branch_up_to = BRANCH_TABLE_UP_TO if costs.factors is None else BRANCH_FACTORS_UP_TO
    else:
        branch_up_to = 0
    if permutations <= branch_up_to:
        from moe_search.solvers.exact.branch_and_bound import BranchAndBound

        branching = BranchAndBound()
        if branching.refuses(problem) is None:
            return branching
    return default_heuristic(problem, seconds)


def default_heuristic(problem: PermutationProblem, seconds: float) -> Solver:
    """Return the search that `solve` takes for a problem of permutations that is too large for a proof."""
    from moe_search.solvers.heuristic.tabu_search import TabuSearch

    moves_per_slot = seconds / (problem.block_size * problem.sweep_cost * SECONDS_PER_OPERATION)
    if moves_per_slot < TABU_MOVES_PER_SLOT or TabuSearch().refuses(problem) is not None:
        from moe_search.solvers.heuristic.iterated_local_search import IteratedLocalSearch

        return IteratedLocalSearch()
    if ANNEALING_MOVES_PER_SLOT <= moves_per_slot < GRID_MOVES_PER_SLOT and has_distances(problem):
        from moe_search.solvers.heuristic.simulated_annealing import SimulatedAnnealing

        return SimulatedAnnealing()
    # Where iterations are counted and no seconds, they are those of a tabu search.
    if MEMETIC_SECONDS < seconds < math.inf and moves_per_slot >= MEMETIC_MOVES_PER_SLOT:
        from moe_search.solvers.heuristic.memetic_search import MemeticSearch

        return MemeticSearch(moves=MOVES_ON_DISTANCES) if has_distances(problem) else MemeticSearch()
    return TabuSearch()


def has_distances(problem: PermutationProblem) -> bool:
    """Return whether pairs cost products, one factor of which looks like the distances of a grid or of points.

    Of such a factor hardly any of a thousand random triangles has a side longer than the two others together, as a
    sixth has of uniform random numbers; and unlike numbers of one magnitude, of which none has either, it is spread.
    """
    costs = problem.pair_costs()
    if costs is None or costs.factors is None or costs.limits is not None:
        return False
    corners = np.random.default_rng(0).integers(problem.size, size=(TRIANGLES, 3))
    first, second, third = corners[(corners != np.roll(corners, 1, axis=1)).all(axis=1)].T
    return any(
        _looks_like_distances(np.stack([factor[first, second], factor[second, third], factor[first, third]]))
        for factor in costs.factors
    )


def _looks_like_distances(sides: npt.NDArray[Any]) -> bool:
    broken = np.mean(2.0 * sides.max(axis=0) > sides.sum(axis=0, dtype=float))
    return bool(sides.min() >= 0 and broken <= MOST_BROKEN and sides.std() >= LEAST_SPREAD * sides.mean() > 0)
