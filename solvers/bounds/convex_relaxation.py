"""A lower bound for mixtures: the loss is convex in the mixture, and the mixture is linear in the expert map."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernel_cache import compile_time
from moe_search.problems.mixture import MixtureAssignment
from moe_search.solvers.bounds.linear_assignment import solve_dense

Matrix = npt.NDArray[np.float64]


def convex_relaxation(
    problem: MixtureAssignment, seconds: float, iterations: int = 100, precision: float = 1e-4
) -> float:
    """Return a lower bound, valid up to rounding, on the value of every permutation of a mixture assignment.

    Permutations are relaxed to the polytope of assignments (each slot divided over the experts, each expert full), over
    which the value is convex, and minimized by Frank and Wolfe's method. Every step gives a valid bound, ``f(X) +
    min_V <grad f(X), V - X>``, so the method can stop at any time; the best of them is returned.

    Parameters
    ----------
    problem : MixtureAssignment
        Its loss may be any; all three are convex in the mixture.
    seconds : float
        Time after which no further step begins. The first step is always made.
    iterations : int, default 100
        Steps at most.
    precision : float, default 1e-4
        Stop once the bound is this close, relatively, to the minimum of the relaxation.

    References
    ----------
    M. Frank, P. Wolfe, "An algorithm for quadratic programming", Naval Research Logistics Quarterly 3 (1956), 95-110;
    M. Jaggi, "Revisiting Frank-Wolfe", ICML 2013, for the gap.
    """
    # Imported here: it takes longer than many a search that needs none of it.
    with compile_time():
        from scipy.optimize import minimize_scalar

    deadline = time.perf_counter() + seconds
    weights = problem.slot_weights.reshape(len(problem.slot_weights), -1)
    capacity, block_size = problem.capacity, problem.block_size
    point = np.full((problem.size, problem.num_experts), 1.0 / problem.num_experts)
    mixtures = problem.mixtures(point)
    best = -np.inf
    for _ in range(iterations):
        value, slope = problem.mean_loss(mixtures), _slope(problem, mixtures)
        gradient = weights.T @ np.matmul(problem.outputs, slope[:, :, None])[:, :, 0]
        vertex = np.zeros_like(point)
        for start in range(0, problem.size, block_size):
            p = solve_dense(gradient[start : start + block_size], capacity)
            vertex[start + np.arange(block_size), p // capacity] = 1.0
        best = max(best, value + float((gradient * (vertex - point)).sum()))
        if value - best <= precision * abs(value) or time.perf_counter() >= deadline:
            break
        towards = problem.mixtures(vertex) - mixtures
        step = minimize_scalar(_value_on_line, args=(problem, mixtures, towards), bounds=(0.0, 1.0)).x
        point = point + step * (vertex - point)
        mixtures = mixtures + step * towards
    return best


def _value_on_line(step: float, problem: MixtureAssignment, mixtures: Matrix, towards: Matrix) -> float:
    return problem.mean_loss(mixtures + step * towards)


def _slope(problem: MixtureAssignment, mixtures: Matrix) -> Matrix:
    """Return the derivative of the value with respect to the mixtures, shape (B, D)."""
    from scipy.special import expit, softmax

    targets = problem.targets
    if problem.loss == "squared":
        slope = 2.0 * (mixtures - targets)
    elif problem.loss == "bce":
        slope = expit(mixtures) - targets
    else:
        groups, classes = softmax(mixtures.reshape(*targets.shape, -1), axis=2), targets[:, :, None]
        np.put_along_axis(groups, classes, np.take_along_axis(groups, classes, axis=2) - 1.0, axis=2)
        slope = groups.reshape(mixtures.shape)
    return slope * problem.sample_weights[:, None]
