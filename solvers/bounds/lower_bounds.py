"""A lower bound for every problem class, within a limit of time."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.solvers.bounds.convex_relaxation import convex_relaxation
from moe_search.solvers.bounds.gilmore_lawler import gilmore_lawler, pairwise_gilmore_lawler
from moe_search.solvers.bounds.small_assignment import assign, empty_duals
from moe_search.solvers.engine.run import Clock
from moe_search.solvers.exact.hungarian import EXACT_IN_FLOAT64, solve_dense


@singledispatch
def lower_bound(problem: Problem, seconds: float) -> int | float | None:
    """Return a proved lower bound on the value of every permutation, the best that fits in about `seconds`.

    Parameters
    ----------
    problem : Problem
        The class decides: linear, the optimum itself; quadratic and pairwise, Gilmore-Lawler; mixture, the convex
        relaxation; under load limits, that of the problem without them. Where the time is too short for it, a weaker
        bound that takes one look at the data.
    seconds : float
        Time to spend, roughly; estimates decide, so the bound does not depend on how busy the machine is
        (the convex relaxation, which improves as long as it runs, excepted).

    Returns
    -------
    int or float or None
        The bound; None for a class that has none registered.
    """
    return None


@lower_bound.register
def _linear(problem: LinearAssignment, seconds: float) -> int | float:
    cost = problem.cost
    exact = not problem.integral or 2 * problem.size * int(np.ptp(cost)) < EXACT_IN_FLOAT64
    if exact and assignment_seconds(problem.size) <= seconds:
        return problem.value(solve_dense(cost, problem.capacity))
    return cost.min(axis=1).sum().item()


@lower_bound.register
def _quadratic(problem: QuadraticAssignment, seconds: float) -> int | float:
    n = problem.size
    if assignment_seconds(n) <= seconds:
        return gilmore_lawler(problem)[0]
    flow, distance, linear = problem.flow, problem.distance, problem.linear
    if 1e-7 * n**2 <= seconds:
        # The least scalar product of all entries, as if every flow could choose its distance.
        bound = np.sort(flow, axis=None) @ np.sort(distance, axis=None)[::-1]
    else:
        # Every product is at least the flow times the end of the range of distances that suits its sign.
        positive, negative = np.maximum(flow, 0).sum(), np.minimum(flow, 0).sum()
        bound = positive * distance.min() + negative * distance.max()
    return (bound if linear is None else bound + linear.min(axis=1).sum()).item()


@lower_bound.register
def _pairwise(problem: PairwiseAssignment, seconds: float) -> int | float:
    return pairwise_gilmore_lawler(problem, seconds)


@lower_bound.register
def _mixture(problem: MixtureAssignment, seconds: float) -> float:
    data = problem.outputs.size + problem.slot_weights.size
    if 20e-9 * data > seconds:
        # All three losses are nonnegative.
        return 0.0
    return convex_relaxation(problem, seconds)


@lower_bound.register
def _load_limited(problem: LoadLimited, seconds: float) -> int | float | None:
    # Feasible permutations are some of all, and the others have larger values.
    return lower_bound(problem.problem, seconds)


@singledispatch
def compile_bound(problem: Problem, clock: Clock) -> None:
    """Compile, off the clock, what the bound of a problem needs compiled; nothing for most classes."""


@compile_bound.register
def _compile_quadratic(problem: QuadraticAssignment, clock: Clock) -> None:
    dtype = np.int64 if problem.integral else np.float64
    clock.compile(assign, np.zeros((1, 1), dtype), 0, 1, empty_duals(1, dtype))


def assignment_seconds(size: int) -> float:
    """Return the seconds that scipy takes for a dense linear assignment of `size` slots, at worst.

    Independent costs take a twentieth of it; nearly equal ones, as in a Gilmore-Lawler matrix, take all.
    """
    return 100e-6 + 1.2e-9 * size**3
