"""Solvers under load limits: the best feasible permutation, and never another."""

import itertools

import pytest
from hypothesis import example, given, settings, strategies as st
from instances import naive_value
from load_limits import INNER, limited, naive_excess
from naive import permutations

from moe_search import problems, solve
from moe_search.problems import LoadLimited
from moe_search.solvers import CpSat, Enumeration, LocalSearch, MaxIterations, MaxRuntime, MemeticSearch, TabuSearch
from moe_search.solvers.bounds.lower_bounds import lower_bound


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slack=st.sampled_from([1.0, 1.1, 1.5]),
    name=st.sampled_from(["linear", "mixture squared"]),
)
@example(seed=2928, slack=1.1, name="mixture squared")  # CP-SAT's presolving lost the optimum
def test_exact_solvers_find_the_best_feasible_permutation(seed, slack, name):
    problem = limited(INNER[name](seed), seed, slack)
    every = permutations(problem.size, problem.block_size)
    best = min(naive_value(problem.problem, p) for p in every if naive_excess(problem, p) == 0)
    for solver in (Enumeration(), CpSat()):
        result = solver.solve(problem, MaxRuntime(60.0), seed=seed)
        assert result.status == "optimal"
        assert result.value == pytest.approx(best, rel=1e-9)
        assert naive_excess(problem, result.permutation.tolist()) == 0
    assert lower_bound(problem, 1.0) == lower_bound(problem.problem, 1.0) <= best + 1e-9 * abs(best)


@pytest.mark.parametrize("scale", [None, 10**7])
@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_cp_sat_solves_problems_whose_limits_force_a_slot(scale, seed):
    # On a grid of 2**38, without presolving, it called most of the models of floats infeasible.
    inner = problems.random_pairwise(3, 3, seed=seed, integral=scale is not None)
    if scale is not None:
        inner = problems.PairwiseAssignment(inner.cost * scale, block_size=3)
    problem = LoadLimited(inner, [0, 0, 4], [4, 0, 0])
    result, exact = (solver.solve(problem, MaxRuntime(60.0)) for solver in (CpSat(), Enumeration()))
    assert result.status == "optimal"
    assert result.value == pytest.approx(exact.value, rel=1e-9)


def infeasible(problem):
    every = itertools.permutations(range(problem.size))
    return next(p for p in every if naive_excess(problem, p) > 0)


SEARCHES = [LocalSearch(), TabuSearch(), MemeticSearch(population=2, moves=2.0), Enumeration(), CpSat(), None]


@pytest.mark.parametrize("solver", SEARCHES, ids=str)
@pytest.mark.parametrize("stop", [MaxIterations(1), MaxIterations(300), MaxRuntime(0.0)], ids=str)
def test_no_solver_returns_a_permutation_beyond_the_limits(solver, stop):
    problem = limited(INNER["mixture squared"](3), 3)
    initial = infeasible(problem)
    for start in (None, initial):
        result = solve(problem, solver, stop, seed=5, initial=start)
        assert problem.feasible(result.permutation)
        assert naive_excess(problem, result.permutation.tolist()) == 0
        assert result.value == problem.problem.value(result.permutation) <= problem.value(initial)


def test_tabu_search_keeps_the_deltas_of_a_limited_quadratic_problem():
    problem = limited(problems.random_quadratic(6, seed=3), 3)
    every = permutations(6, 6)
    best = min(naive_value(problem.problem, p) for p in every if naive_excess(problem, p) == 0)
    assert TabuSearch().solve(problem, MaxIterations(2000)).value == best


def test_a_search_goes_beyond_the_limits_and_comes_back():
    # Each expert bears 1 + 4 or 2 + 3, and the way from one to the other is by 2 + 4.
    inner = problems.random_mixture(4, 2, num_samples=9, seed=1, k=2)
    problem = LoadLimited(inner, [1, 2, 3, 4], 5)
    feasible = [p for p in permutations(4, 4) if naive_excess(problem, p) == 0]
    values = sorted({round(inner.value(p), 9) for p in feasible})
    assert len(values) == 2
    for start in feasible:
        assert TabuSearch().solve(problem, MaxIterations(100), initial=start).value == pytest.approx(values[0])
