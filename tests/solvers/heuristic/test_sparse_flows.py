"""A search takes the same way whichever kernels a quadratic problem has."""

import pytest
from instances import as_sparse

from moe_search.problems import random_quadratic
from moe_search.solvers import LocalSearch, MaxIterations, TabuSearch


@pytest.mark.slow
@pytest.mark.parametrize("solver", [LocalSearch(), TabuSearch()])
def test_a_search_takes_the_same_way(solver):
    dense = random_quadratic(70, seed=3, density=0.05)
    twins = (dense, as_sparse(dense.flow, dense.distance))
    results = [solver.solve(problem, MaxIterations(3000), seed=1) for problem in twins]
    assert results[0].value == results[1].value
    assert results[0].permutation.tolist() == results[1].permutation.tolist()
    assert results[0].moves == results[1].moves > 0
