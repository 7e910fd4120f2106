import numpy as np
import pytest
import torch
from instances import INSTANCES

from moe_search.bench.peers.sinkhorn import SinkhornRelaxation, log_sinkhorn, relaxed_value, rounded
from moe_search.problems.random_instances import random_linear, random_quadratic
from moe_search.solvers.engine.stop import MaxIterations, MaxRuntime
from moe_search.solvers.exact.hungarian import Hungarian


def as_matrices(p, block_size):
    matrices = np.zeros((len(p) // block_size, block_size, block_size))
    for slot, seat in enumerate(p):
        matrices[slot // block_size, slot % block_size, seat % block_size] = 1.0
    return torch.from_numpy(matrices)


@pytest.mark.parametrize("name", [name for name in INSTANCES if name not in ("mixture, load-limited", "callable")])
def test_at_a_permutation_the_relaxed_value_is_the_value(name):
    problem = INSTANCES[name](3)
    for seed in range(3):
        p = problem.random_solution(np.random.default_rng(seed))
        matrices = as_matrices(p, problem.block_size)
        assert float(relaxed_value(problem)(matrices)) == pytest.approx(problem.value(p), rel=1e-12)
        np.testing.assert_array_equal(rounded(matrices), p)


def test_sinkhorn_makes_matrices_doubly_stochastic():
    logits = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 5, 5)))
    matrices = log_sinkhorn(logits, 100).exp()
    for axis in (1, 2):
        np.testing.assert_allclose(matrices.sum(axis), 1.0, atol=1e-9)


def test_it_finds_what_the_gradient_shows():
    problem = random_linear(12, 4, seed=0)
    optimum = Hungarian().solve(problem, MaxRuntime(1.0)).value
    search = SinkhornRelaxation(steps=50, temperatures=(1e-1, 1e-2), learning_rate=0.1)
    assert search.solve(problem, MaxIterations(100), seed=0).value == optimum


def test_the_published_schedule_stays_finite_and_is_reproducible():
    problem = random_quadratic(8, seed=0)
    results = [SinkhornRelaxation(steps=20).solve(problem, MaxIterations(45), seed=1) for _ in range(2)]
    assert results[0].value == results[1].value == problem.value(results[0].permutation)
    assert results[0].iterations == 45


def test_it_refuses_large_blocks():
    reason = SinkhornRelaxation().refuses(random_linear(300, 3, seed=0))
    assert "300 seats" in reason
