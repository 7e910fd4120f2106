"""Branch and bound beyond the contract: published optima, symmetries, integers, what an early stop proves."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from instances import INSTANCES, naive_value
from naive import permutations
from qaplib_files import FOLDER, best_known, needs_qaplib
from scipy.optimize import linear_sum_assignment

from moe_search import problems
from moe_search.solvers import BranchAndBound, CpSat, Enumeration, MaxIterations, MaxRuntime, TabuSearch, TargetValue
from moe_search.solvers.bounds.gilmore_lawler import gilmore_lawler
from moe_search.solvers.bounds.linear_assignment import assign, empty_duals
from moe_search.solvers.bounds.lower_bounds import lower_bound
from moe_search.solvers.exact import branch_and_bound, subtrees
from moe_search.solvers.exact.branch_and_bound import relax
from moe_search.solvers.exact.symmetry import symmetry_of

LONG = MaxRuntime(120.0)


def grid(rows, columns):
    points = np.array(list(itertools.product(range(rows), range(columns))))
    return np.abs(points[:, None] - points[None, :]).sum(axis=2)


@needs_qaplib
@pytest.mark.parametrize("name", ["nug12", "rou12", "tai12a", "chr12a", "had12", "scr12", "tai8a", "chr15a", "esc16a"])
def test_it_proves_published_optima(name):
    result = BranchAndBound().solve(problems.read_qaplib(FOLDER / f"{name}.dat"), LONG)
    assert (result.value, result.bound, result.status) == (best_known()[name], best_known()[name], "optimal")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options", [{}, {"symmetric": False, "linear": True}, {"density": 0.3}, {"integral": False, "symmetric": False}]
)
def test_it_agrees_with_enumeration(seed, options):
    problem = problems.random_quadratic(8, seed=seed, **options)
    result = BranchAndBound().solve(problem, LONG)
    assert result.status == "optimal"
    assert result.value == pytest.approx(Enumeration().solve(problem, LONG).value, rel=1e-12)
    assert result.iterations < 20_000


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), symmetric=st.booleans(), linear=st.booleans(), values=st.sampled_from([2, 4, 50]))
@example(seed=0, symmetric=True, linear=False, values=1)
def test_negative_entries_diagonals_and_ties_from_any_start(seed, symmetric, linear, values):
    # Few different values: many twins and automorphisms.
    rng = np.random.default_rng(seed)
    flow, distance = rng.integers(1 - values, values, (2, 5, 5))
    if symmetric:
        flow, distance = flow + flow.T, distance + distance.T
    problem = problems.QuadraticAssignment(flow, distance, rng.integers(-3, 4, (5, 5)) if linear else None)
    optimum = min(naive_value(problem, p) for p in permutations(5, 5))
    # A bad incumbent leaves all the work to the tree.
    worst = max(permutations(5, 5), key=lambda p: naive_value(problem, p))
    result = BranchAndBound().solve(problem, LONG, initial=worst)
    assert (result.value, result.bound, result.status) == (optimum, optimum, "optimal")


@pytest.mark.parametrize("name", ["quadratic general", "quadratic float", "pairwise", "pairwise float", "linear"])
def test_the_optimum_is_found_with_and_without_a_heuristic(name, monkeypatch):
    for seed in range(5):
        problem = INSTANCES[name](seed)
        optimum = min(naive_value(problem, p) for p in permutations(problem.size, problem.block_size))
        for dive_up_to, makes_moves in ((math.inf, False), (0, True)):
            monkeypatch.setattr("moe_search.solvers.exact.branch_and_bound.DIVE_UP_TO", dive_up_to)
            result = BranchAndBound().solve(problem, LONG, seed=seed)
            assert result.value == pytest.approx(optimum, rel=1e-12)
            assert (result.moves > 0) == makes_moves


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("number", [0.0, 1.0, 5e-324])
def test_a_value_that_is_no_less_is_no_improvement(size, number):
    flat = np.full((size, size), number)
    for problem in (problems.LinearAssignment(flat), problems.QuadraticAssignment(flat, flat)):
        result = BranchAndBound().solve(problem, LONG)
        assert [point.value for point in result.trajectory] == [result.value]
        assert (result.bound, result.status) == (result.value, "optimal")


def test_it_agrees_with_cp_sat_on_pairwise_problems_with_capacity():
    problem = problems.random_pairwise(6, 3, seed=4)
    assert BranchAndBound().solve(problem, LONG).value == CpSat().solve(problem, LONG).value


@pytest.mark.parametrize("name", ["quadratic", "quadratic general float", "pairwise", "mixture squared"])
def test_what_an_early_stop_proves_holds_and_never_falls(name):
    problem = INSTANCES[name](3)
    best = BranchAndBound().solve(problem, LONG)
    optimum, bounds = best.value, []
    for nodes in range(1, 40):
        # From one incumbent all of them walk through one tree.
        result = BranchAndBound().solve(problem, MaxIterations(nodes), initial=best.permutation)
        assert result.iterations <= nodes
        assert result.bound <= optimum + 1e-9 * abs(optimum)
        assert (result.status == "optimal") == (result.gap <= 1e-9)
        bounds.append(result.bound)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("above", [0.01, 0.03, 0.06])
def test_a_target_that_is_reached_proves_nothing(above):
    for seed in range(6):
        problem = problems.random_quadratic(9, seed=seed)
        optimum = Enumeration().solve(problem, LONG).value
        result = BranchAndBound().solve(problem, TargetValue((1 + above) * optimum))
        assert result.bound <= optimum <= result.value <= (1 + above) * optimum
        assert (result.status == "optimal") == (result.gap == 0.0)


def test_the_bound_of_an_early_stop_is_gilmore_and_lawlers_at_the_root():
    problem = problems.random_quadratic(12, seed=0)
    assert BranchAndBound().solve(problem, MaxIterations(1)).bound == gilmore_lawler(problem.pair_costs())[0]


def test_bounds_are_rounded_up_to_values_that_there_can_be():
    rng = np.random.default_rng(0)
    flow, distance = rng.integers(0, 9, (2, 7, 7))
    problem = problems.QuadraticAssignment(6 * (flow + flow.T), 5 * (distance + distance.T))
    diagonal = int(np.gcd.reduce(np.outer(np.diagonal(problem.flow), np.diagonal(problem.distance)), axis=None))
    step = relax(problem.pair_costs()).step
    assert step % 30 == 0
    assert diagonal % step == 0
    for nodes in (1, 5, 25):
        assert BranchAndBound().solve(problem, MaxIterations(nodes)).bound % step == 0


def test_equivalent_children_are_visited_once():
    # A grid maps to itself in 4 ways, one of them the identity; facilities 0 .. 2 have no flow at all.
    flow = np.zeros((6, 6), dtype=int)
    flow[3, 4] = flow[4, 3] = 5
    distance = grid(2, 3)
    slots, seats = (symmetry_of(matrix, np.zeros((6, 1))) for matrix in (flow, distance))
    assert len(seats.maps) == 3
    for g in seats.maps:
        assert (distance[np.ix_(g, g)] == distance).all()
    assert slots.previous_twin.tolist() == [-1, 0, 1, -1, 3, 2]
    problem = problems.QuadraticAssignment(flow, distance)
    assert BranchAndBound().solve(problem, LONG).value == 10


def test_symmetries_keep_the_colors():
    colors = np.array([[0], [0], [1], [1]])
    symmetry = symmetry_of(np.ones((4, 4)), colors)
    assert symmetry.previous_twin.tolist() == [-1, 0, -1, 2]
    assert sorted(symmetry.maps.tolist()) == [[0, 1, 3, 2], [1, 0, 2, 3], [1, 0, 3, 2]]


@pytest.mark.parametrize(("rows", "columns"), [(2, 4), (3, 3)])
def test_grids_agree_with_enumeration(rows, columns):
    rng = np.random.default_rng(rows)
    flow = np.triu(rng.integers(0, 4, (rows * columns, rows * columns)), 1)
    problem = problems.QuadraticAssignment(flow + flow.T, grid(rows, columns))
    assert BranchAndBound().solve(problem, LONG).value == Enumeration().solve(problem, LONG).value


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("integral", [True, False])
def test_the_smallest_problems(n, integral):
    for problem in (
        problems.random_quadratic(n, seed=n, integral=integral, symmetric=False, linear=True),
        problems.random_pairwise(n, seed=n, integral=integral),
        problems.random_linear(2 * n, n, seed=n, integral=integral),
    ):
        result = BranchAndBound().solve(problem, LONG)
        optimum = min(naive_value(problem, p) for p in permutations(problem.size, problem.block_size))
        assert result.value == pytest.approx(optimum)
        assert (result.status, result.gap) == ("optimal", 0.0)


def test_equal_costs_are_optimal_at_the_root():
    result = BranchAndBound().solve(problems.QuadraticAssignment(np.ones((14, 14), int), np.ones((14, 14), int)), LONG)
    assert (result.value, result.status) == (196, "optimal")
    assert result.iterations == 1


@pytest.mark.slow
def test_integers_that_float64_cannot_hold_are_exact():
    rng = np.random.default_rng(0)
    flow, distance = rng.integers(0, 2**27, (2, 5, 5))
    problem = problems.QuadraticAssignment(flow, distance)
    optimum = min(naive_value(problem, p) for p in permutations(5, 5))
    assert optimum > 2**54
    result = BranchAndBound().solve(problem, LONG)
    assert (result.value, result.bound, result.status) == (optimum, optimum, "optimal")


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (problems.random_mixture(3, num_samples=3, seed=0, loss="bce"), "its value is not a sum over pairs of slots"),
        (problems.random_quadratic(200, seed=0), "a node would take 16,000,000 operations, 10,000,000 at most"),
        (problems.QuadraticAssignment([[0, 2**30], [1, 0]], [[0, 2**28], [1, 0]]), "overflows the arithmetic of"),
    ],
)
def test_it_says_what_it_cannot_take(problem, message):
    with pytest.raises(ValueError, match=f"BranchAndBound cannot take this .*{message}"):
        BranchAndBound().solve(problem, LONG)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 9), values=st.sampled_from([1, 3, 1000]))
def test_the_small_assignment_is_scipys_from_any_prices(seed, n, values):
    rng = np.random.default_rng(seed)
    cost = rng.integers(-values, values, (n + 3, n + 3)).astype(np.float64)
    duals = empty_duals(n + 3, np.float64)
    duals.column[:] = rng.integers(-values, values, n + 3)
    part = slice(2, 2 + n)
    total = assign(cost, 2, 2 + n, duals)
    rows, columns = linear_sum_assignment(cost[part, part])
    assert total == cost[part, part][rows, columns].sum()
    reduced = cost[part, part] - duals.row[part, None] - duals.column[None, part]
    assert reduced.min() >= 0
    assert total == duals.row[part].sum() + duals.column[part].sum()
    assert sorted(duals.column_of[part]) == list(range(2, 2 + n))


def test_stopped_early_it_has_the_semidefinite_bound(monkeypatch):
    # Of a grid, on which the bounds of the tree are far off; no time is left for the tree.
    monkeypatch.setattr(branch_and_bound, "SEMIDEFINITE_SHARE", 0.99)
    flow = np.triu(np.random.default_rng(0).integers(0, 6, (15, 15)), 1)
    problem = problems.QuadraticAssignment(flow, grid(3, 5))
    result = BranchAndBound().solve(problem, MaxRuntime(4.0))
    value = TabuSearch().solve(problem, MaxIterations(20_000)).value
    assert lower_bound(problem, 1.0) < result.bound <= min(value, result.value)
    # Iterations are no time that could be kept.
    assert BranchAndBound().solve(problem, MaxIterations(20)).bound < result.bound


@pytest.mark.parametrize("name", ["quadratic", "float", "pairwise"])
def test_threads_change_nothing(name, monkeypatch):
    # Rounds of some nodes, so that a small tree is split all the time, and the first incumbents come from the tree.
    monkeypatch.setattr(subtrees, "DIVE_OPERATIONS", 0)
    monkeypatch.setattr(subtrees, "ROUND_OPERATIONS", 20_000)
    monkeypatch.setattr(subtrees, "LEAST_FREE", 2)
    problem = {
        "quadratic": problems.random_quadratic(9, seed=1),
        "float": problems.random_quadratic(8, seed=2, integral=False, symmetric=False),
        "pairwise": problems.random_pairwise(8, 4, seed=3),
    }[name]
    optimum = Enumeration().solve(problem, LONG).value
    bounds = []
    for stop in (*map(MaxIterations, range(1, 200, 11)), LONG):
        first, second = (BranchAndBound(n_jobs=n_jobs).solve(problem, stop) for n_jobs in (1, 3))
        assert first.permutation.tolist() == second.permutation.tolist()
        assert (first.value, first.bound, first.iterations) == (second.value, second.bound, second.iterations)
        assert [point[1:] for point in first.trajectory] == [point[1:] for point in second.trajectory]
        assert first.bound <= optimum + 1e-9 * abs(optimum)
        bounds.append(first.bound)
    assert first.status == "optimal"
    assert first.value == pytest.approx(optimum, rel=1e-12)
    assert all(a <= b + 1e-9 * abs(b) for a, b in itertools.pairwise(bounds))


def test_ctrl_c_ends_all_threads_and_keeps_the_incumbent(monkeypatch):
    monkeypatch.setattr(subtrees, "DIVE_OPERATIONS", 0)
    # A slice as short as the first of one thread, so that incumbents are shown before the end.
    monkeypatch.setattr(branch_and_bound, "OPERATIONS_A_SECOND", 0)
    shown = []

    def interrupt(incumbent):
        shown.append(incumbent.value)
        if len(shown) == 3:
            raise KeyboardInterrupt

    problem = problems.random_quadratic(12, seed=0)
    result = BranchAndBound(n_jobs=2).solve(problem, LONG, on_improvement=interrupt)
    assert (result.status, result.value) == ("interrupted", problem.value(result.permutation))
    assert result.value <= shown[-1]
    assert result.bound <= result.value


def test_ctrl_c_while_the_tree_is_split_loses_no_child(monkeypatch):
    monkeypatch.setattr(subtrees, "DIVE_OPERATIONS", 0)
    split, waiting = subtrees.Part.split, []

    def interrupted(part, depth):
        waiting.append((part.tree.children, depth, part.tree.children[depth]))
        split(part, depth)
        raise KeyboardInterrupt

    monkeypatch.setattr(subtrees.Part, "split", interrupted)
    result = BranchAndBound().solve(problems.random_quadratic(12, seed=0), LONG)
    assert result.status == "interrupted"
    # Those of the part that was not taken in are still in the bound.
    children, depth, before = waiting[-1]
    assert children[depth] == before
