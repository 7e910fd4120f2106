"""Compiling kernels before they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from moe_search.api import default_solver, training_solver
from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.mixture import LossName
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.placement import Cluster, ExpertPlacement
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.problems.random_instances import random_linear, random_mixture, random_pairwise, random_quadratic
from moe_search.problems.rebalancing import Rebalancing
from moe_search.solvers.bounds.lower_bounds import lower_bound
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import AnyOf, MaxIterations, MaxRuntime

# Stopped at once, some searches run what they else need not; after these iterations, they have run all the rest.
ITERATIONS = (1, 2000)
LONGEST_SECONDS = 1.0
# With more time `solve` may take another solver than within two seconds.
MORE_SECONDS = 10.0


class Case(NamedTuple):
    """A solver and a problem, whose kernels are compiled by a short search."""

    solver: Solver
    problem: Problem

    def __str__(self) -> str:
        return f"{type(self.solver).__name__} for {type(self.problem).__name__}"

    def compile(self) -> None:
        """Compile what the solver runs on this problem, or load what is compiled."""
        for iterations in ITERATIONS:
            result = self.solver.solve(self.problem, AnyOf(MaxIterations(iterations), MaxRuntime(LONGEST_SECONDS)))
            if result.status == "interrupted":
                raise KeyboardInterrupt
        if not self.solver.exact:
            lower_bound(self.problem, LONGEST_SECONDS)


def warm_up(*what: Problem | Solver) -> float:
    """Compile kernels ahead, into the cache of all processes: in a container's build, or before a training run.

    Parameters
    ----------
    *what : Problem or Solver
        What is going to be solved, and by what. Problems alone: by the solver that `solve` takes for each. Solvers
        alone: on all classes of this package that each takes. Nothing: all that `solve` and `PermutationSearch` take by
        themselves. Machine code depends on the types of a problem's arrays and on which of them are given, not on its
        size, but for quadratic problems of 512 slots and more, held in fewer bits; what `solve` takes does.

    Returns
    -------
    float
        Seconds that it took to compile, or to load what was compiled before, and to import.

    Raises
    ------
    TypeError
        If an argument is neither a problem nor a solver.
    ValueError
        If no solver given takes one of the problems given.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.LinearAssignment([[4, 1], [2, 3]])
    >>> ms.warm_up(problem, ms.Hungarian()) < 60  # has nothing to compile
    True
    """
    spent = compile_time()
    before = spent.seconds
    for case in cases(*what):
        case.compile()
    return spent.seconds - before


def cases(*what: Problem | Solver) -> list[Case]:
    """Return the pairs whose kernels `warm_up` compiles."""
    problems = [each for each in what if isinstance(each, Problem)]
    solvers = [each for each in what if isinstance(each, Solver)]
    for each in what:
        if not isinstance(each, (Problem, Solver)):
            raise TypeError(f"what to warm up must be a Problem or a Solver, got {type(each).__name__}")
    if not solvers:
        return [*chosen_cases(*problems)] or [*usual_cases()]
    found = [
        Case(solver, problem)
        for solver in solvers
        for problem in problems or [*usual_problems()]
        if solver.reason_against(problem) is None
    ]
    for problem in problems:
        if all(case.problem is not problem for case in found):
            reasons = "; ".join(f"{type(each).__name__}: {each.reason_against(problem)}" for each in solvers)
            raise ValueError(f"no solver given can take this {type(problem).__name__}: {reasons}")
    return found


def chosen_cases(*problems: Problem) -> Iterator[Case]:
    """Yield what `solve` takes for problems by itself, with a limit of a second, and with more."""
    for problem in problems:
        quick, patient = (default_solver(problem, seconds) for seconds in (LONGEST_SECONDS, MORE_SECONDS))
        yield Case(quick, problem)
        if type(patient) is not type(quick):
            yield Case(patient, problem)


def usual_cases() -> Iterator[Case]:
    """Yield what `solve` takes by itself, and `PermutationSearch`, whose limits are short."""
    for problem in usual_problems():
        yield Case(default_solver(problem, LONGEST_SECONDS), problem)
        searched = isinstance(problem, PermutationProblem) and not isinstance(
            problem, (LinearAssignment, QuadraticAssignment)
        )
        if searched and not problem.integral:
            yield Case(training_solver(problem), problem)


def usual_problems() -> Iterator[Problem]:
    """Yield a problem of every class, of the types that users have most, for every solver that a size calls for."""
    for integral in (True, False):
        yield random_linear(1024, 16, seed=0, integral=integral)
        for size in (7, 11, 30):
            yield random_quadratic(size, seed=0, integral=integral)
        for size in (6, 9, 24):
            yield random_pairwise(size, seed=0, integral=integral)
    yield random_quadratic(30, seed=0, symmetric=False)
    losses: tuple[LossName, ...] = ("squared", "bce", "cross_entropy")
    for loss in losses:
        for size in (6, 24):
            yield random_mixture(size, num_samples=64, seed=0, loss=loss)
    mixture = random_mixture(24, 8, num_samples=64, seed=0, loss="cross_entropy")
    yield LoadLimited(mixture, np.ones(24), np.full(8, 4.0))
    rng = np.random.default_rng(0)
    for groups in (None, 4):
        placement = ExpertPlacement(rng.lognormal(size=(2, 16)), Cluster(4, 5, 2), groups)
        yield placement
        yield Rebalancing(placement, placement.random_solution(rng).physical_to_logical, tolerance=0.01)
