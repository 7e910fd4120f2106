"""An interval that holds the values of all permutations of a problem."""

from __future__ import annotations

from functools import singledispatch

import numpy as np

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment


@singledispatch
def value_range(problem: Problem) -> tuple[int | float, int | float]:
    """Return two numbers between which the value of every permutation lies, after one look at the data.

    Parameters
    ----------
    problem : Problem
        The class decides: linear and pairwise, the sums of the least and of the largest costs; quadratic, every flow
        over the least and the largest distance; mixture, 0 and, the losses being convex in the mixture, the loss if the
        worst expert answered every sample alone.

    Returns
    -------
    (int, int) or (float, float)
        Exact if the problem is integral, else up to rounding.

    Raises
    ------
    TypeError
        For a class that has none registered.
    """
    raise TypeError(f"no range of values is known for {type(problem).__name__}: register one with value_range.register")


@value_range.register
def _linear(problem: LinearAssignment) -> tuple[int | float, int | float]:
    return problem.cost.min(axis=1).sum().item(), problem.cost.max(axis=1).sum().item()


@value_range.register
def _pairwise(problem: PairwiseAssignment) -> tuple[int | float, int | float]:
    return problem.cost.min(axis=(2, 3)).sum().item(), problem.cost.max(axis=(2, 3)).sum().item()


@value_range.register
def _quadratic(problem: QuadraticAssignment) -> tuple[int | float, int | float]:
    least, most = problem.distance.min().item(), problem.distance.max().item()
    positive, negative = np.maximum(problem.flow, 0).sum().item(), np.minimum(problem.flow, 0).sum().item()
    low, high = positive * least + negative * most, positive * most + negative * least
    if problem.linear is None:
        return low, high
    return low + problem.linear.min(axis=1).sum().item(), high + problem.linear.max(axis=1).sum().item()


@value_range.register
def _mixture(problem: MixtureAssignment) -> tuple[float, float]:
    assert problem.sample_weights is not None
    # A mixture is a convex combination of the experts' outputs, each times all the weight of the sample.
    weight = problem.slot_weights.sum(axis=(1, 2))[:, None]
    alone = [problem.sample_losses(weight * problem.outputs[:, e]) for e in range(problem.num_experts)]
    return 0.0, float(problem.sample_weights @ np.max(alone, axis=0))
