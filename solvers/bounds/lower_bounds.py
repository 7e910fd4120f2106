"""A lower bound for every problem class, within a limit of time, or by a method of one's choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch

import numpy as np

from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.placement import ExpertPlacement
from moe_search.problems.problem import Problem
from moe_search.solvers.bounds.convex_relaxation import convex_relaxation
from moe_search.solvers.bounds.gilmore_lawler import gilmore_lawler, pairwise_gilmore_lawler
from moe_search.solvers.bounds.linear_assignment import assignment_seconds, linear_bound
from moe_search.solvers.bounds.projection import projection_bound, projection_seconds
from moe_search.solvers.bounds.semidefinite import SEMIDEFINITE_UP_TO, semidefinite, semidefinite_bound


@singledispatch
def lower_bound(problem: Problem, seconds: float) -> int | float | None:
    """Return a proved lower bound on the value of every solution, the best that fits in about `seconds`.

    Parameters
    ----------
    problem : Problem
        Its pair costs decide: linear ones, the optimum itself; products of two matrices, the larger of the projection
        bound and Gilmore and Lawler's; others of pairs, the latter. A mixture has its convex relaxation, experts on
        devices of two slots the relaxation of their numbers of replicas, and a problem whose `relaxed` is another the
        bound of that. Where the time is too short, or there are no pair costs, a weaker bound takes one look at the
        data, such as the lower end of the range of values.
    seconds : float
        Time to spend, roughly; estimates decide, so the bound does not depend on how busy the machine is
        (the convex relaxation, which improves as long as it runs, excepted).

    Returns
    -------
    int or float or None
        The bound; None where none is known.
    """
    relaxed = problem.relaxed()
    if relaxed is not problem:
        return lower_bound(relaxed, seconds)
    costs = problem.pair_costs()
    bound = None if costs is None else _pair_bound(costs, seconds)
    if bound is not None:
        return bound
    values = problem.value_range()
    return None if values is None else values[0]


@lower_bound.register
def _mixture_bound(problem: MixtureAssignment, seconds: float) -> float:
    data = problem.outputs.size + problem.slot_weights.size
    # All three losses are nonnegative.
    return 0.0 if 20e-9 * data > seconds else convex_relaxation(problem, seconds)


@lower_bound.register
def _placement_bound(problem: ExpertPlacement, seconds: float) -> float:
    # Imported here: no other bound waits for scipy's linear programs.
    with compile_time():
        from moe_search.solvers.bounds.replica_counts import counting_bounds

    return float(counting_bounds(problem, seconds).sum())


def _pair_bound(costs: PairCosts, seconds: float) -> int | float | None:
    """Return the bound that the costs have, None where none of them fits in the time."""
    if costs.pairwise is not None:
        return pairwise_gilmore_lawler(costs.pairwise, seconds)
    blocks = costs.shape[0] // costs.block_size
    bounds = []
    if assignment_seconds(costs.block_size) * blocks <= seconds:
        bounds.append(_gilmore_lawler(costs, seconds))
    if costs.factors is not None and projection_seconds(costs) <= seconds:
        bounds.append(projection_bound(costs))
    if bounds:
        return max(bounds)
    if costs.factors is not None and 1e-7 * costs.block_size**2 <= seconds:
        # The least scalar product of all entries, as if every flow could choose its distance.
        flow, distance = (np.sort(factor, axis=None) for factor in costs.factors)
        bound = flow @ distance[::-1]
        return (bound if costs.linear is None else bound + costs.linear.min(axis=1).sum()).item()
    return None


def _gilmore_lawler(costs: PairCosts, seconds: float) -> int | float:
    if costs.pairwise is not None:
        return pairwise_gilmore_lawler(costs.pairwise, seconds)
    if costs.factors is not None:
        return gilmore_lawler(costs)[0]
    blocks = range(0, costs.shape[0], costs.block_size)
    return sum(linear_bound(costs.unary[start : start + costs.block_size], costs.capacity) for start in blocks)


def _projection(costs: PairCosts, seconds: float) -> int | float:
    if costs.factors is None:
        raise ValueError("it takes problems whose pairs cost products of two matrices, such as QuadraticAssignment")
    return projection_bound(costs)


def _semidefinite(costs: PairCosts, seconds: float) -> int | float:
    if costs.factors is None and costs.make_pairwise is None:
        raise ValueError("it takes problems whose pairs cost something; linear ones are solved to optimality")
    if not semidefinite(costs):
        slots, experts = costs.shape
        raise ValueError(
            f"it takes one block of 2 to {SEMIDEFINITE_UP_TO} slots and as many experts, got {slots} slots in blocks "
            f"of {costs.block_size} and {experts} experts"
        )
    # Its own first iterates may be below the two that take no time.
    quick = _pair_bound(costs, math.inf)
    assert quick is not None
    return max(quick, semidefinite_bound(costs, seconds))


METHODS: dict[str, Callable[[PairCosts, float], int | float]] = {
    "gilmore-lawler": _gilmore_lawler,
    "projection": _projection,
    "semidefinite": _semidefinite,
}


def bound_by(problem: Problem, method: str, seconds: float) -> int | float:
    """Return the bound of one of `METHODS`; ValueError, where it cannot take the problem, says why."""
    relaxed = problem.relaxed()
    if relaxed is not problem:
        return bound_by(relaxed, method, seconds)
    costs = problem.pair_costs()
    try:
        if costs is None:
            raise ValueError("it takes problems whose value is a sum over pairs of slots")
        return METHODS[method](costs, seconds)
    except ValueError as error:
        raise ValueError(f"method {method!r} cannot bound {problem!r}: {error}") from None
