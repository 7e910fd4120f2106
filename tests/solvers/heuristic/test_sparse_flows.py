"""A search takes the same way whichever kernels a quadratic problem has."""

import numpy as np
import pytest
from instances import as_sparse

from moe_search.problems import LoadLimited, random_quadratic
from moe_search.solvers import LocalSearch, MaxIterations, TabuSearch
from moe_search.solvers.heuristic.tabu_search import fill_rows


@pytest.mark.slow
@pytest.mark.parametrize("solver", [LocalSearch(), TabuSearch()])
def test_a_search_takes_the_same_way(solver):
    dense = random_quadratic(70, seed=3, density=0.05)
    twins = (dense, as_sparse(dense.flow, dense.distance))
    results = [solver.solve(problem, MaxIterations(3000), seed=1) for problem in twins]
    assert results[0].value == results[1].value
    assert results[0].permutation.tolist() == results[1].permutation.tolist()
    assert results[0].moves == results[1].moves > 0


def test_no_time_goes_to_a_potential_that_is_not_kept():
    # Rows of it would take none, and the next slice, by that measure, would compute all deltas at once.
    ours = random_quadratic(12, seed=3, density=0.4)
    sparse = as_sparse(ours.flow, ours.distance)
    for problem in (sparse, LoadLimited(sparse, np.ones(12), np.ones(12))):
        run = TabuSearch().begin_run(problem, MaxIterations(1), 0, None, None)
        state = problem.state(run.take_initial())
        matrix, tabu, _ = TabuSearch().prepare(run, state)[1]
        assert fill_rows(state, matrix, tabu, 36) == 36
        assert tabu.filled[1] == 3
