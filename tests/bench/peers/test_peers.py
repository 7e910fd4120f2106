import numpy as np
import pytest

from moe_search.bench.peers.proposals import RandomPermutations, Scipy2opt
from moe_search.bench.peers.textbook import SymmetricTextbookQuadratic, TextbookQuadratic
from moe_search.problems.moves import commit_swap, swap_delta
from moe_search.problems.random_instances import random_linear, random_mixture, random_quadratic
from moe_search.solvers.engine.stop import MaxIterations, MaxRuntime
from moe_search.solvers.exact.enumeration import Enumeration


def test_scipy_answers_are_valued_by_the_problem():
    problem = random_quadratic(7, seed=0, symmetric=False)
    optimum = Enumeration().solve(problem, MaxRuntime(60.0)).value
    result = Scipy2opt().solve(problem, MaxIterations(20), seed=0)
    assert result.value == problem.value(result.permutation)
    assert optimum <= result.value <= 1.1 * optimum


def test_scipy_refuses_what_it_does_not_know():
    peer = Scipy2opt()
    assert "QuadraticAssignment only" in peer.refuses(random_linear(4, seed=0))
    assert "linear term" in peer.refuses(random_quadratic(4, seed=0, linear=True))
    with pytest.raises(ValueError, match="linear term"):
        peer.solve(random_quadratic(4, seed=0, linear=True), MaxIterations(1))


def test_random_permutations_keep_the_best_of_what_they_drew():
    problem = random_mixture(4, 2, num_samples=9, seed=0, num_selectors=2)
    seen = []
    result = RandomPermutations().solve(problem, MaxIterations(200), seed=3, on_improvement=seen.append)
    rng = np.random.default_rng(3)
    first = problem.random_solution(np.random.default_rng(3))
    drawn = [first, *(problem.random_solution(rng) for _ in range(200))]
    assert result.value == min(problem.value(p) for p in drawn)
    values = [incumbent.value for incumbent in seen]
    assert values == sorted(values, reverse=True)
    assert values[-1] == result.value
    assert result.iterations == 200


@pytest.mark.parametrize(("kind", "symmetric"), [(TextbookQuadratic, False), (SymmetricTextbookQuadratic, True)])
def test_the_deltas_of_the_textbook_are_differences_of_values(kind, symmetric):
    ours = random_quadratic(6, seed=1, symmetric=symmetric)
    problem = kind(ours.flow, ours.distance)
    state = problem.state(np.arange(6))
    for r, s in ((0, 3), (5, 1), (2, 4)):
        before = ours.value(state.permutation)
        delta = swap_delta(state, r, s)
        commit_swap(state, r, s)
        assert ours.value(state.permutation) == before + delta
