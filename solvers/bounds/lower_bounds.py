"""A lower bound for every problem class, within a limit of time."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.problem import Problem
from moe_search.solvers.bounds.convex_relaxation import convex_relaxation
from moe_search.solvers.bounds.gilmore_lawler import gilmore_lawler, pairwise_gilmore_lawler
from moe_search.solvers.bounds.linear_assignment import (
    assign,
    assignment_seconds,
    empty_duals,
    linear_bound,
)
from moe_search.solvers.engine.run import Clock


@singledispatch
def lower_bound(problem: Problem, seconds: float) -> int | float | None:
    """Return a proved lower bound on the value of every solution, the best that fits in about `seconds`.

    Parameters
    ----------
    problem : Problem
        Its pair costs decide: linear ones, the optimum itself; those of pairs, Gilmore-Lawler. A mixture has its convex
        relaxation. Where the time is too short for it, a weaker bound that takes one look at the data. A problem whose
        `relaxed` is another has the bound of that; one without pair costs, the lower end of its range of values.
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
    if costs is None:
        values = problem.value_range()
        return None if values is None else values[0]
    if costs.pairwise is not None:
        return pairwise_gilmore_lawler(costs.pairwise, seconds)
    return _linear_bound(costs, seconds) if costs.factors is None else _factored_bound(costs, seconds)


@lower_bound.register
def _mixture_bound(problem: MixtureAssignment, seconds: float) -> float:
    data = problem.outputs.size + problem.slot_weights.size
    if 20e-9 * data > seconds:
        # All three losses are nonnegative.
        return 0.0
    return convex_relaxation(problem, seconds)


def _linear_bound(costs: PairCosts, seconds: float) -> int | float:
    cost = costs.unary
    blocks = range(0, len(cost), costs.block_size)
    if assignment_seconds(costs.block_size) * len(blocks) <= seconds:
        return sum(linear_bound(cost[start : start + costs.block_size], costs.capacity) for start in blocks)
    return cost.min(axis=1).sum().item()


def _factored_bound(costs: PairCosts, seconds: float) -> int | float:
    assert costs.factors is not None
    flow, distance = costs.factors
    n = len(flow)
    if assignment_seconds(n) <= seconds:
        return gilmore_lawler(costs)[0]
    if 1e-7 * n**2 <= seconds:
        # The least scalar product of all entries, as if every flow could choose its distance.
        bound = np.sort(flow, axis=None) @ np.sort(distance, axis=None)[::-1]
    else:
        # Every product is at least the flow times the end of the range of distances that suits its sign.
        positive, negative = np.maximum(flow, 0).sum(), np.minimum(flow, 0).sum()
        bound = positive * distance.min() + negative * distance.max()
    return (bound if costs.linear is None else bound + costs.linear.min(axis=1).sum()).item()


def compile_bound(problem: Problem, clock: Clock) -> None:
    """Compile, off the clock, what the bound of a problem needs compiled, which only costs in factors do."""
    costs = problem.pair_costs()
    if costs is not None and costs.factors is not None:
        dtype = np.int64 if costs.integral else np.float64
        clock.compile(assign, np.zeros((1, 1), dtype), 0, 1, empty_duals(1, dtype))
