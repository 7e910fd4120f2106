"""Exact solvers beyond the contract: published optima, capacities, rounding, what they cannot take."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from naive import permutations
from ortools.sat.python import cp_model
from qaplib_files import FOLDER, best_known, needs_qaplib

from moe_search import problems
from moe_search.problems.arrays import grid_scale
from moe_search.solvers import CpSat, Enumeration, Hungarian, MaxIterations, MaxRuntime, MinCostFlow, Transport
from moe_search.solvers.exact import cp_sat
from moe_search.solvers.exact.enumeration import is_last, next_swap, number_of_permutations


@needs_qaplib
@pytest.mark.parametrize("name", ["tai8a", "chr12a"])
def test_cp_sat_proves_published_optima(name):
    result = CpSat().solve(problems.read_qaplib(FOLDER / f"{name}.dat"), MaxRuntime(120.0))
    assert (result.value, result.bound, result.status) == (best_known()[name], best_known()[name], "optimal")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"symmetric": False, "linear": True}, {"density": 0.2}])
def test_exact_solvers_agree_on_quadratic_problems(seed, options):
    problem = problems.random_quadratic(7, seed=seed, **options)
    enumerated = Enumeration().solve(problem, MaxRuntime(60.0))
    assert enumerated.iterations == 5040
    assert CpSat().solve(problem, MaxRuntime(60.0)).value == enumerated.value


@pytest.mark.parametrize(("slots", "experts"), [(8, 8), (8, 4), (12, 3), (12, 1), (40, 8)])
@pytest.mark.parametrize("integral", [True, False])
def test_exact_solvers_agree_on_linear_problems(slots, experts, integral):
    problem = problems.random_linear(slots, experts, seed=slots, integral=integral)
    values = [solver.solve(problem, MaxRuntime(60.0)).value for solver in (Hungarian(), MinCostFlow(), CpSat())]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert values[0] == pytest.approx(values[2], rel=1e-9)


def test_cp_sat_bounds_integers_that_floats_do_not_hold():
    cost = np.random.default_rng(0).integers(-9, 10, (3, 3, 3, 3)) * (2**55 // 9 + 1)
    problem = problems.PairwiseAssignment(cost)
    result = CpSat().solve(problem, MaxRuntime(60.0))
    optimum = min(problem.value(list(p)) for p in permutations(3, 3))
    assert (result.value, result.bound, result.status) == (optimum, optimum, "optimal")


@pytest.mark.parametrize("solver", [CpSat(), MinCostFlow(), Hungarian(), Enumeration()])
@pytest.mark.parametrize("unit", [1e-300, 1e-320, 1e290])
def test_exact_solvers_keep_their_bound_near_the_ends_of_the_range_of_floats(solver, unit):
    cost = np.random.default_rng(0).integers(-90, 91, (4, 4)) * unit
    problem = problems.LinearAssignment(cost)
    result = solver.solve(problem, MaxRuntime(60.0))
    optimum = min(problem.value(list(p)) for p in permutations(4, 4))
    assert result.bound <= optimum <= result.value
    # On a grid that is too coarse CP-SAT has a bound, and no proof.
    proved = result.status == "optimal" and result.value == pytest.approx(optimum, rel=1e-9, abs=0.0)
    assert proved or isinstance(solver, CpSat)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    decades=st.sampled_from([6, 9, 15]),
    shape=st.sampled_from([(6, 6), (12, 3)]),
    negative=st.booleans(),
)
def test_cp_sat_proves_linear_floats_of_a_wide_range(seed, decades, shape, negative):
    rng = np.random.default_rng(seed)
    cost = 10.0 ** rng.uniform(-decades, decades, shape) * rng.choice([1.0, -1.0 if negative else 1.0], shape)
    problem = problems.LinearAssignment(cost)
    optimum = Hungarian().solve(problem, MaxRuntime(60.0)).value
    result = CpSat().solve(problem, MaxRuntime(60.0))
    assert result.status == "optimal"
    assert abs(result.value - optimum) <= 1e-8 * abs(optimum)
    assert optimum * (1 - 1e-8 * np.sign(optimum)) <= result.bound <= optimum + 1e-12 * abs(optimum)


@pytest.mark.parametrize("order", [[2.0**60, 1.0, -(2.0**60)], [-1.0, 2.0**60, -(2.0**60)]])
def test_cp_sat_ends_where_the_grid_is_exact_and_the_value_is_not(order, monkeypatch):
    solve_model, models = CpSat._solve_model, []

    def counted(*arguments):
        models.append(arguments)
        assert len(models) <= 2
        return solve_model(*arguments)

    monkeypatch.setattr(CpSat, "_solve_model", counted)
    # The sum of the three is 0 in float64, so that no finer grid could tell the bound from the value.
    linear = np.array(order)[:, None] + [[0.0, 512.0, 0.0], [0.0, 0.0, 256.0], [0.0, 0.0, 0.0]]
    problem = problems.QuadraticAssignment(np.zeros((3, 3)), np.zeros((3, 3)), linear)
    result = CpSat().solve(problem, MaxRuntime(60.0))
    assert result.value == 0.0
    assert result.bound is None or result.bound <= result.value


def test_cp_sat_leaves_out_what_all_pay_and_bounds_what_cancels_out():
    all_pay = np.array([[1e15, 1e15], [1.0 - 1e15, 2.0 - 1e15]])
    result = CpSat().solve(problems.LinearAssignment(all_pay), MaxRuntime(60.0))
    assert (result.value, result.bound, result.status) == (1.0, 1.0, "optimal")
    cancels = CpSat().solve(problems.LinearAssignment([[1e15, 1.0], [2.0, -1e15]]), MaxRuntime(60.0))
    assert cancels.bound <= 0.0 <= cancels.value <= 1e-8 * 1e15


@pytest.mark.parametrize("solver", [CpSat(), MinCostFlow(), Hungarian(), Transport()])
def test_the_largest_floats_that_a_problem_takes_are_solved(solver):
    largest = 1e300 / 16.01
    cost = np.array([[1.0, -1.0], [-1.0, 1.0]]) * largest
    with pytest.raises(ValueError, match="fits in float64 with room"):
        problems.LinearAssignment(2.5 * cost)
    result = solver.solve(problems.LinearAssignment(2.0 * cost), MaxRuntime(60.0))
    assert (result.value, result.status) == (-4.0 * largest, "optimal")
    assert result.gap <= 1e-9


@pytest.mark.parametrize("number", [0.0, 0.3, 0.5, 1e-30, 1e-310, -7.0])
def test_equal_floats_leave_no_gap(number):
    flat = np.full((3, 3), number)
    every = [problems.LinearAssignment(flat), problems.QuadraticAssignment(flat, flat)]
    every += [problems.PairwiseAssignment(np.full((3, 3, 3, 3), number)), problems.LoadLimited(every[0], [1] * 3, 1)]
    for problem in every:
        for solver in (MinCostFlow(), Hungarian(), CpSat()):
            if solver.refuses(problem) is None:
                result = solver.solve(problem, MaxRuntime(60.0))
                assert (result.value, result.gap, result.status) == (problem.value(range(3)), 0.0, "optimal")


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-320, 290), shift=st.sampled_from([0, 1000, -1000]))
def test_the_bound_of_the_flow_takes_rounding_in(seed, exponent, shift):
    cost = (np.random.default_rng(seed).random((6, 3)) + shift) * 10.0**exponent
    problem = problems.LinearAssignment(cost)
    result = MinCostFlow().solve(problem, MaxRuntime(60.0))
    optimum = Hungarian().solve(problem, MaxRuntime(60.0)).value
    assert result.bound <= optimum + 1e-12 * abs(optimum)
    assert result.value >= optimum - 1e-12 * abs(optimum)


@settings(max_examples=100, deadline=None)
@given(reach=st.floats(5e-324, 1e300), exponent=st.integers(10, 60), part=st.floats(1.0, 1.99))
def test_the_scale_of_a_grid_is_a_power_of_two_that_uses_it(reach, exponent, part):
    steps = part * 2.0**exponent
    scale = grid_scale(reach, steps)
    assert math.frexp(scale)[0] == 0.5
    assert reach * scale <= steps
    assert reach * scale >= steps / 4 or reach < 1e-290
    assert grid_scale(0.0, steps) == 1.0


NEGATIVE = -np.random.default_rng(0).integers(1, 50, (2, 6, 6))
BELOW_ZERO = {
    "linear": problems.LinearAssignment(NEGATIVE[0]),
    "linear float": problems.LinearAssignment(NEGATIVE[0] * 0.1),
    "quadratic": problems.QuadraticAssignment(NEGATIVE[0], -NEGATIVE[1]),
    "quadratic float": problems.QuadraticAssignment(NEGATIVE[0] * 0.1, -NEGATIVE[1]),
    "pairwise float": problems.PairwiseAssignment(-np.random.default_rng(0).random((4, 4, 4, 4))),
    "load-limited": problems.LoadLimited(problems.LinearAssignment(NEGATIVE[0]), [1, 2, 3, 4, 5, 6], 6),
}


@pytest.mark.parametrize("problem", BELOW_ZERO.values(), ids=BELOW_ZERO.keys())
def test_cp_sat_that_has_no_bound_yet_proves_nothing(monkeypatch, problem):
    class Presolving(cp_model.CpSolver):
        """Stopped while it presolves: every number that it answers is unset."""

        best_objective_bound = 0.0
        num_conflicts = 0

        def solve(self, model, solution_callback=None):
            return cp_model.UNKNOWN

    monkeypatch.setattr(cp_model, "CpSolver", Presolving)
    result = CpSat().solve(problem, MaxRuntime(60.0))
    optimum = Enumeration().solve(problem, MaxRuntime(60.0)).value
    assert result.bound is None or result.bound <= optimum
    assert result.status == "feasible"


@pytest.mark.parametrize("problem", BELOW_ZERO.values(), ids=BELOW_ZERO.keys())
def test_cp_sat_proves_no_more_than_the_optimum_in_any_time(problem):
    optimum = Enumeration().solve(problem, MaxRuntime(60.0)).value
    for seconds in (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1):
        result = CpSat().solve(problem, MaxRuntime(seconds))
        assert result.bound is None or result.bound <= optimum + 1e-9 * abs(optimum)
        assert result.status == "feasible" or result.value == pytest.approx(optimum, rel=1e-9)


@pytest.mark.parametrize(
    ("status", "bound", "expected"),
    [
        (cp_model.UNKNOWN, 0.0, None),
        (cp_model.UNKNOWN, -7.0, -7.0),
        (cp_model.UNKNOWN, -math.inf, None),
        (cp_model.MODEL_INVALID, 0.0, None),
        (cp_model.INFEASIBLE, 3.0, None),
        (cp_model.FEASIBLE, 0.0, 0.0),
        (cp_model.OPTIMAL, -7.0, -7.0),
    ],
)
def test_an_unset_number_is_no_bound(status, bound, expected):
    assert cp_sat.reported_bound(status, bound) == expected


SIGNS = np.array([[1, -1, -1, 1], [-1, 1, 1, 1], [1, -1, 1, 1], [1, 1, 1, -1]])


def test_cp_sat_solves_integers_up_to_its_limit_and_refuses_larger_ones():
    largest = problems.LinearAssignment(SIGNS * 2**58)
    result = CpSat().solve(largest, MaxRuntime(60.0))
    assert (result.value, result.bound, result.status) == (-(2**60), -(2**60), "optimal")
    larger = problems.LinearAssignment(SIGNS * ((2**63 - 1) // 16))
    with pytest.raises(ValueError, match=r"integer costs add up to 9.223e\+18 over .*, 4.612e\+18 at most"):
        CpSat().solve(larger, MaxRuntime(1.0))


@pytest.mark.parametrize("seed", [10, 53, 2736])
@pytest.mark.parametrize("grid", [cp_sat.COST_STEPS, 2.0**42])
def test_cp_sat_proves_optima_of_mixtures_that_its_presolving_called_infeasible(monkeypatch, grid, seed):
    monkeypatch.setattr(cp_sat, "COST_STEPS", grid)
    problem = problems.random_mixture(4, 2, num_samples=9, seed=seed, k=2, num_selectors=2)
    result = CpSat().solve(problem, MaxRuntime(60.0))
    assert result.status == "optimal"
    assert result.value == pytest.approx(Enumeration().solve(problem, MaxRuntime(60.0)).value, rel=1e-9)


def test_flow_keeps_integers_that_float64_cannot():
    # Both assignments are equal in float64.
    cost = np.array([[2**52 + 1, 0], [0, -(2**52)]]) * 3
    problem = problems.LinearAssignment(cost)
    assert Hungarian().refuses(problem) is not None
    assert MinCostFlow().solve(problem, MaxRuntime(1.0)).value == min(problem.value([0, 1]), problem.value([1, 0]))


@pytest.mark.parametrize(("size", "block_size"), [(1, 1), (4, 4), (6, 3), (6, 2), (5, 5)])
def test_heaps_swaps_visit_every_permutation_once(size, block_size):
    p, counters = list(range(size)), np.zeros(size, dtype=np.int64)
    seen = {tuple(p)}
    while not is_last(counters, block_size):
        a, b = next_swap(counters, block_size)
        p[a], p[b] = p[b], p[a]
        assert tuple(p) not in seen
        seen.add(tuple(p))
    assert seen == {tuple(q) for q in permutations(size, block_size)}


def test_enumeration_proves_nothing_before_its_end():
    for visited in range(1, 25):
        partial = Enumeration().solve(problems.random_quadratic(4, seed=0), MaxIterations(visited))
        assert partial.iterations == visited
        assert partial.status == ("optimal" if visited == 24 else "feasible")
    assert number_of_permutations(problems.random_pairwise(3, seed=0, num_selectors=3)) == 216


@pytest.mark.parametrize(
    ("solver", "problem", "message"),
    [
        (Enumeration(), problems.random_quadratic(11, seed=0), "it has 11! permutations, enumeration takes 3,628,800"),
        (Hungarian(), problems.random_quadratic(3, seed=0), "it solves LinearAssignment only"),
        (MinCostFlow(), problems.random_mixture(3, num_samples=3, seed=0), "LinearAssignment and BalancedRouting only"),
        (MinCostFlow(), problems.LinearAssignment([[0, 2**59], [1, 0]]), "overflows the flow's arithmetic"),
        (
            CpSat(),
            problems.random_mixture(3, num_samples=3, seed=0, loss="bce"),
            "its value is not a sum over pairs of slots",
        ),
        (CpSat(), problems.random_quadratic(60, seed=0), "terms, 200,000 at most; LocalSearch takes any size"),
    ],
)
def test_a_solver_says_what_it_cannot_take_before_it_runs(solver, problem, message):
    with pytest.raises(ValueError, match=f"{type(solver).__name__} cannot take this .*{message}"):
        solver.solve(problem, MaxRuntime(1.0))


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_workers(workers, error):
    with pytest.raises(error, match="workers must be"):
        CpSat(workers=workers)


def test_cp_sat_stopped_early_gives_what_it_has():
    problem = problems.random_quadratic(14, seed=0)
    result = CpSat().solve(problem, MaxRuntime(0.5))
    assert result.status == "feasible"
    assert result.bound is not None
    assert result.bound < result.value
    assert result.gap > 0
