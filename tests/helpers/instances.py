"""Instances of every problem class, each with its naive value."""

import itertools
from unittest.mock import patch

import numpy as np
from naive import excess_load, linear_value, mixture_value, pairwise_value, quadratic_value
from scipy.sparse import csr_array

from moe_search import problems
from moe_search.problems import sparse_quadratic
from moe_search.problems.arrays import dense


def naive_value(problem, p):
    p = list(map(int, p))
    match problem:
        case problems.LinearAssignment():
            return linear_value(problem.cost.tolist(), p)
        case problems.QuadraticAssignment():
            linear = None if problem.linear is None else problem.linear.tolist()
            return quadratic_value(dense(problem.flow).tolist(), problem.distance.tolist(), linear, p)
        case problems.LoadLimited():
            inner = naive_value(problem.problem, p)
            excess = excess_load(problem.slot_loads.tolist(), problem.limits.tolist(), problem.block_size, p)
            return inner + problem.barrier + problem.slope * excess if excess > 0 else inner
        case problems.CallableProblem():
            return order_value(p)
        case problems.PairwiseAssignment():
            return pairwise_value(problem.cost.tolist(), problem.block_size, p)
    weights = None if problem.sample_weights is None else problem.sample_weights.tolist()
    targets = problem.targets.tolist()
    return mixture_value(problem.slot_weights.tolist(), problem.outputs.tolist(), targets, problem.loss, weights, p)


def _one_asymmetric(seed, which):
    rng = np.random.default_rng(seed)
    flow, distance = rng.integers(-9, 10, (2, 6, 6))
    if which == 0:
        distance = distance + distance.T
    else:
        flow = flow + flow.T
    return problems.QuadraticAssignment(flow, distance)


def _large_integers(seed):
    rng = np.random.default_rng(seed)
    return problems.QuadraticAssignment(rng.integers(0, 10**6, (5, 5)), rng.integers(0, 10**6, (5, 5)))


def sparse_from_one():
    """A context in which quadratic problems are made for the kernels for sparse matrices, however small they are."""
    return patch.multiple(sparse_quadratic, SPARSE_FROM=1, SPARSE_SHARE=1.1)


def as_sparse(*matrices):
    """A problem on the kernels for sparse matrices, however small it is."""
    with sparse_from_one():
        return problems.QuadraticAssignment(*matrices)


def _sparse_flow(seed):
    ours = problems.random_quadratic(6, seed=seed, density=0.4)
    return as_sparse(csr_array(ours.flow), ours.distance)


def _sparse_distance(seed):
    ours = problems.random_quadratic(5, seed=seed, symmetric=False, density=0.4, linear=True, integral=False)
    return as_sparse(ours.distance, ours.flow, ours.linear)


def _weighted_groups(seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((7, 1, 4)) * (rng.random((7, 1, 4)) < 0.6)
    return problems.MixtureAssignment(
        weights, rng.standard_normal((7, 4, 6)), rng.integers(0, 3, (7, 2)), "cross_entropy", rng.random(7)
    )


def _load_limited(seed):
    rng = np.random.default_rng(seed)
    inner = problems.random_mixture(4, 2, num_samples=9, seed=seed, k=2, num_selectors=2)
    loads = rng.integers(0, 9, 8)
    return problems.LoadLimited(inner, loads, [loads.sum() // 2 + loads.max(), loads.sum() // 2 + 1])


def order_value(p):
    """Neighbours in a block like to be near each other, and an early slot likes a late seat."""
    return sum((a - b) ** 2 / (1.5 + i) + a / (1 + i) for i, (a, b) in enumerate(itertools.pairwise(p)))


# Name -> function of a seed; each small enough to enumerate. A new problem class is one line.
INSTANCES = {
    "linear": lambda seed: problems.random_linear(6, 3, seed=seed),
    "linear float": lambda seed: problems.random_linear(6, seed=seed, integral=False),
    "quadratic": lambda seed: problems.random_quadratic(6, seed=seed),
    "quadratic float": lambda seed: problems.random_quadratic(5, seed=seed, integral=False),
    "quadratic with linear": lambda seed: problems.random_quadratic(6, seed=seed, linear=True, density=0.3),
    "quadratic general": lambda seed: problems.random_quadratic(6, seed=seed, symmetric=False, linear=True),
    "quadratic general float": lambda seed: problems.random_quadratic(
        5, seed=seed, symmetric=False, linear=True, integral=False
    ),
    "quadratic, flow asymmetric": lambda seed: _one_asymmetric(seed, 0),
    "quadratic, distance asymmetric": lambda seed: _one_asymmetric(seed, 1),
    "quadratic, 64 bits": _large_integers,
    "quadratic, sparse flow": _sparse_flow,
    "quadratic, sparse distance, general": _sparse_distance,
    "pairwise": lambda seed: problems.random_pairwise(4, 2, seed=seed, num_selectors=2),
    "pairwise float": lambda seed: problems.random_pairwise(5, seed=seed, integral=False),
    "mixture squared": lambda seed: problems.random_mixture(4, 2, num_samples=9, seed=seed, k=2, num_selectors=2),
    "mixture bce": lambda seed: problems.random_mixture(5, num_samples=9, seed=seed, loss="bce"),
    "mixture cross-entropy": lambda seed: problems.random_mixture(
        5, num_samples=9, seed=seed, k=1, loss="cross_entropy"
    ),
    "mixture weighted groups": _weighted_groups,
    "mixture, load-limited": _load_limited,
    "callable": lambda seed: problems.CallableProblem(order_value, 6, block_size=3),
}
