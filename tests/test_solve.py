import math
import time

import joblib
import numpy as np
import pytest
from instances import INSTANCES, naive_value
from naive import permutations

import moe_search as ms
from moe_search.api import default_solver, has_distances, on_threads
from moe_search.problems.kernel_cache import compile_time
from moe_search.solvers.bounds.lower_bounds import lower_bound


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTANCES)
def test_every_class_gets_an_optimal_answer_by_default_when_small(name):
    problem = INSTANCES[name](7)
    optimum = min(naive_value(problem, p) for p in permutations(problem.size, problem.block_size))
    result = ms.solve(problem)
    assert result.value == pytest.approx(optimum, rel=1e-9)
    assert result.status == "optimal"
    assert result.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "problem",
    [
        ms.random_quadratic(30, seed=0),
        ms.random_quadratic(300, seed=0, symmetric=False),
        ms.random_pairwise(12, seed=0),
        ms.random_mixture(12, num_samples=40, seed=0, loss="cross_entropy"),
        ms.random_mixture(8, num_samples=40, seed=0, num_selectors=2),
    ],
)
def test_larger_ones_get_a_bound_and_a_gap(problem):
    result = ms.solve(problem, stop=ms.MaxRuntime(0.3), seed=1)
    assert result.solver.startswith("TabuSearch")
    assert result.bound <= result.value
    assert 0 <= result.gap < 1
    assert result.status in ("feasible", "optimal")
    # The time for the bound is part of the limit, and of the history.
    assert result.runtime >= result.history[-1][0] >= result.history[0][0] > 0


@pytest.mark.parametrize(
    "problem",
    [
        ms.random_quadratic(12, seed=0),
        ms.random_quadratic(10, seed=0, symmetric=False, linear=True),
        ms.random_quadratic(10, seed=0, integral=False),
        ms.random_pairwise(9, seed=0),
    ],
)
def test_small_quadratic_and_pairwise_problems_are_proved(problem):
    result = ms.solve(problem, stop=ms.MaxRuntime(30.0), seed=1)
    assert (result.solver, result.status) == ("BranchAndBound()", "optimal")
    heuristic = ms.solve(problem, ms.TabuSearch(), ms.MaxIterations(100_000), seed=2)
    assert result.value == pytest.approx(heuristic.value, rel=1e-9)
    hurried = ms.solve(problem, stop=ms.MaxRuntime(0.01), seed=1)
    assert hurried.bound <= result.value <= hurried.value


def test_large_linear_problems_are_solved_within_the_limit():
    exact = ms.solve(ms.random_linear(500, 50, seed=0))
    assert (exact.status, exact.gap) == ("optimal", 0.0)
    many = ms.solve(ms.random_linear(20_000, 10, seed=0))
    assert (many.solver, many.status, many.gap) == ("Transport()", "optimal", 0.0)
    # Scipy's would take too long, and cannot be stopped.
    hurried = ms.solve(ms.random_linear(1500, seed=0), stop=ms.MaxRuntime(0.02))
    assert hurried.solver == "Transport()"
    assert hurried.bound <= hurried.value


def test_the_default_depends_on_the_moves_that_time_allows():
    dense = ms.random_mixture(16, num_samples=256, seed=0)
    chosen = [default_solver(dense, seconds) for seconds in (0.01, 1.0, math.inf)]
    assert [type(solver) for solver in chosen] == [ms.IteratedLocalSearch, ms.TabuSearch, ms.TabuSearch]
    assert default_solver(ms.random_quadratic(100, seed=0), 0.05) == ms.TabuSearch()
    # Iterations alone are those of a tabu search, however many.
    quadratic = ms.random_quadratic(50, seed=0)
    chosen = [default_solver(quadratic, seconds) for seconds in (2.0, 2.1, 10.0, 100.0, math.inf)]
    assert [type(solver) for solver in chosen] == [ms.TabuSearch, *[ms.MemeticSearch] * 3, ms.TabuSearch]
    huge = ms.QuadraticAssignment(*np.zeros((2, 5000, 5000), dtype=np.int64))
    assert ms.TabuSearch().refuses(huge)
    assert default_solver(huge, 0.01) == ms.IteratedLocalSearch()


def on_points(rng, size, density=1.0):
    """Return a problem of random flows between random points of the plane."""
    points = rng.random((size, 2))
    flow = rng.random((size, size)) * (rng.random((size, size)) < density)
    return ms.QuadraticAssignment(flow, np.hypot(*(points[:, None] - points).transpose(2, 0, 1)))


def test_what_looks_like_distances():
    rng = np.random.default_rng(0)
    points, sparse = on_points(rng, 100), on_points(rng, 100, 0.05)
    turned = ms.QuadraticAssignment(points.distance, points.flow)
    assert all(map(has_distances, (points, sparse, turned)))
    uniform = ms.random_quadratic(100, seed=0)
    one_magnitude = ms.QuadraticAssignment(*rng.uniform(50, 100, (2, 100, 100)))  # keeps the triangle inequality
    others = (
        uniform,
        one_magnitude,
        ms.QuadraticAssignment(-points.flow, -points.distance),
        ms.QuadraticAssignment(np.ones((100, 100)), np.zeros((100, 100))),
        ms.random_pairwise(9, seed=0),
        ms.random_mixture(9, num_samples=5, seed=0),
        ms.LoadLimited(points, np.ones(100), 1),
    )
    assert not any(map(has_distances, others))
    assert default_solver(points, 1.0) == ms.SimulatedAnnealing()
    assert [default_solver(problem, 1.0) for problem in (uniform, one_magnitude)] == [ms.TabuSearch()] * 2
    assert default_solver(points, 0.01) == ms.TabuSearch()
    assert default_solver(points, 30.0) == ms.MemeticSearch(moves=100.0)
    assert default_solver(uniform, 30.0) == ms.MemeticSearch()


SMALL = [
    ms.QuadraticAssignment([[3]], [[4]]),
    ms.random_quadratic(2, seed=0),
    ms.QuadraticAssignment(np.ones((12, 12), int), np.ones((12, 12), int)),
    ms.random_linear(1, seed=0),
    ms.random_linear(60, 1, seed=0),  # one expert of capacity 60
    ms.LinearAssignment(np.full((40, 2), 7)),
    ms.random_pairwise(2, seed=0),
    ms.random_pairwise(24, 1, seed=0),
    ms.random_mixture(1, num_samples=5, seed=0),
    ms.random_mixture(24, 2, num_samples=5, seed=0),
]
HEURISTICS = [ms.LocalSearch("both"), ms.TabuSearch(), ms.IteratedLocalSearch("both"), ms.SimulatedAnnealing(), None]


@pytest.mark.slow
@pytest.mark.parametrize("solver", HEURISTICS, ids=lambda solver: type(solver).__name__)
@pytest.mark.parametrize("problem", SMALL, ids=range(len(SMALL)))
def test_tiny_flat_and_roomy_problems_are_solved(problem, solver):
    result = ms.solve(problem, solver, ms.MaxRuntime(0.05))
    assert result.value == pytest.approx(problem.value(result.permutation), rel=1e-9)
    if problem.size <= 2 or problem.capacity == problem.block_size:
        assert result.value == pytest.approx(
            ms.solve(problem, ms.Enumeration()).value if problem.size < 9 else problem.value(np.arange(problem.size)),
            rel=1e-9,
        )


def _of_every_quadratic_class(n):
    for integral in (True, False):
        yield ms.random_quadratic(n, seed=n, integral=integral)
        yield ms.random_quadratic(n, seed=n, integral=integral, symmetric=False, linear=True)
        yield ms.random_quadratic(n, seed=n, integral=integral, density=0.0)
        yield ms.random_pairwise(n, seed=n, integral=integral)
    yield ms.random_mixture(n, num_samples=5, seed=n)
    yield ms.QuadraticAssignment(np.full((n, n), 3), np.full((n, n), 2))
    yield ms.QuadraticAssignment(np.full((n, n), -3), np.full((n, n), 2))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_the_gap_is_never_empty(n, seconds):
    for problem in _of_every_quadratic_class(n):
        for solver in (None, ms.LocalSearch(), ms.Enumeration(), ms.BranchAndBound()):
            result = ms.solve(problem, solver, ms.MaxRuntime(seconds))
            assert result.bound <= result.value + 1e-9 * abs(result.value)
            assert result.gap >= 0
            if n <= 2 and seconds > 0:
                assert result.status == "optimal"


@pytest.mark.parametrize("unit", [1e-140, 1e-30, 1e-9, 1.0, 1e140])
def test_what_is_optimal_does_not_depend_on_the_unit(unit):
    flow, distance = np.random.default_rng(0).integers(0, 90, (2, 12, 12))
    problem = ms.QuadraticAssignment(flow * unit, distance.astype(float))
    for solver in (ms.LocalSearch(), ms.TabuSearch()):
        result = ms.solve(problem, solver, ms.MaxIterations(2000), seed=1)
        exact = ms.solve(ms.QuadraticAssignment(flow, distance), solver, ms.MaxIterations(2000), seed=1)
        assert result.status == exact.status == "feasible"
        assert result.gap == pytest.approx(exact.gap, rel=1e-6)
        assert result.value == pytest.approx(exact.value * unit, rel=1e-9)


def test_a_perfect_fit_is_optimal_up_to_rounding():
    rng = np.random.default_rng(0)
    weights, outputs = rng.random((60, 1, 9)), 1e-3 * rng.standard_normal((60, 9, 4))
    targets = np.einsum("bs,bsd->bd", weights[:, 0], outputs)
    problem = ms.MixtureAssignment(weights, outputs, targets, "squared")
    result = ms.solve(problem, ms.TabuSearch(), ms.MaxRuntime(30.0), initial=np.roll(np.arange(9), 2))
    assert result.permutation.tolist() == list(range(9))
    assert result.status == "optimal"
    assert result.runtime < 20.0


def test_a_value_that_meets_the_bound_ends_the_search():
    # Without interaction the Gilmore-Lawler bound is the optimum.
    rng = np.random.default_rng(0)
    problem = ms.QuadraticAssignment(np.zeros((12, 12), int), np.zeros((12, 12), int), rng.integers(0, 9, (12, 12)))
    result = ms.solve(problem, stop=ms.MaxRuntime(60.0))
    assert result.status == "optimal"
    assert result.runtime < 30


def test_the_larger_of_two_bounds_is_kept():
    problem = ms.random_quadratic(6, seed=0)
    solver = ms.MultiStart(ms.BranchAndBound(), 2)
    result = ms.solve(problem, solver, ms.MaxIterations(10_000))
    assert (result.bound, result.gap, result.status) == (result.value, 0.0, "optimal")
    # After one node branch and bound has proved less than Gilmore and Lawler's bound of the whole, or as much.
    early = ms.solve(problem, solver, ms.MaxIterations(1))
    assert early.bound == max(lower_bound(problem, 1.0), solver.solve(problem, ms.MaxIterations(1)).bound)


def test_without_a_limit_of_seconds_a_bound_takes_what_the_search_took(monkeypatch):
    problem, stop = ms.random_linear(12, seed=0), ms.MaxIterations(100)
    solution = ms.solve(problem, ms.LocalSearch(), stop).permutation.tolist()
    given = []

    def better_every_time(problem, seconds):
        given.append(seconds)
        return -100 + len(given)

    monkeypatch.setattr("moe_search.api.lower_bounds.lower_bound", better_every_time)
    assert (ms.solve(problem, ms.LocalSearch(), stop).bound, given) == (-99, [0.3])
    monkeypatch.setattr("moe_search.api.FIRST_BOUND_SECONDS", 0.0)
    slow = ms.solve(problem, ms.LocalSearch(), stop, on_improvement=lambda incumbent: time.sleep(0.001))
    assert (slow.bound, slow.permutation.tolist()) == (-97, solution)
    assert 0.0 == given[1] < given[2] <= 0.1 * slow.runtime
    # One that is wrong is left out, as one that was there before.
    monkeypatch.setattr("moe_search.api.lower_bounds.lower_bound", lambda problem, seconds: 10**6 if seconds else 0)
    with pytest.warns(RuntimeWarning, match="the bound 1000000 is left out"):
        wrong = ms.solve(problem, ms.LocalSearch(), stop, on_improvement=lambda incumbent: time.sleep(0.001))
    assert (wrong.bound, wrong.status) == (None, "feasible")


def test_initial_and_seed_are_passed_on():
    problem = ms.random_quadratic(20, seed=0)
    first, second = (ms.solve(problem, stop=ms.MaxIterations(5000), seed=9) for _ in range(2))
    assert first.permutation.tolist() == second.permutation.tolist()
    assert first.seed == 9
    again = ms.solve(problem, stop=ms.MaxIterations(1), initial=first.permutation)
    assert again.value <= first.value


def test_what_uses_several_threads():
    runs = ms.MultiStart(ms.TabuSearch(), runs=3, share_every=9)
    for solver, on_two in (
        (ms.TabuSearch(), ms.MultiStart(ms.TabuSearch(), runs=2, n_jobs=2)),
        (ms.PlacementSearch(), ms.MultiStart(ms.PlacementSearch(), runs=2, n_jobs=2)),
        (runs, ms.MultiStart(ms.TabuSearch(), runs=3, n_jobs=2, share_every=9)),
        (ms.BranchAndBound(), ms.BranchAndBound(n_jobs=2)),
        (ms.Enumeration(), ms.Enumeration()),
    ):
        assert on_threads(solver, 1) is solver
        assert on_threads(solver, 2) == on_two
    processors = joblib.cpu_count()
    everywhere = ms.MultiStart(ms.TabuSearch(), runs=processors, n_jobs=-1) if processors > 1 else ms.TabuSearch()
    assert on_threads(ms.TabuSearch(), -1) == everywhere


@pytest.mark.parametrize("problem", [ms.random_quadratic(20, seed=0), ms.random_quadratic(10, seed=0)])
def test_threads_run_the_default_side_by_side(problem):
    shown, stop = [], ms.MaxIterations(3000)
    first, second = (ms.solve(problem, None, stop, 9, n_jobs=2, on_improvement=shown.append) for _ in range(2))
    expected = on_threads(default_solver(problem, math.inf), 2).solve(problem, stop, 9)
    for result in (first, second):
        assert result.permutation.tolist() == expected.permutation.tolist()
        assert (result.iterations, result.solver, result.seed) == (expected.iterations, expected.solver, 9)
        assert lower_bound(problem, 1.0) <= result.bound <= result.value
    assert shown[-1].value == first.value


def test_ctrl_c_ends_all_threads():
    def interrupt(incumbent):
        raise KeyboardInterrupt

    result = ms.solve(ms.random_quadratic(20, seed=0), stop=ms.MaxRuntime(60), on_improvement=interrupt, n_jobs=2)
    assert (result.status, result.runtime < 30) == ("interrupted", True)
    assert result.gap > 0


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_what_the_bound_compiles_is_off_the_clock_and_told(monkeypatch, n_jobs):
    clock, ahead = time.perf_counter, 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead)

    def compiled_bound(problem, seconds):
        nonlocal ahead
        with compile_time():
            ahead += 1000.0

    monkeypatch.setattr("moe_search.api.lower_bounds.lower_bound", compiled_bound)
    stop = ms.AnyOf(ms.MaxRuntime(500), ms.MaxIterations(1000))
    result = ms.solve(ms.random_quadratic(20, seed=0), ms.LocalSearch(), stop, n_jobs=n_jobs)
    assert result.runtime < 500 < 1000 <= result.compile_seconds < 1500
    assert result.iterations == n_jobs * 1000


def test_every_improvement_is_shown_with_the_seconds_of_the_whole():
    shown = []
    result = ms.solve(ms.random_quadratic(40, seed=0), stop=ms.MaxRuntime(0.2), on_improvement=shown.append)
    assert shown[-1].value == result.value
    assert {incumbent.seconds for incumbent in shown} <= {point.seconds for point in result.trajectory}
    small = []
    exact = ms.solve(ms.random_quadratic(5, seed=0), on_improvement=small.append)
    assert small[-1].value == exact.value


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"problem": [[1]]}, TypeError, "problem must be a Problem"),
        ({"solver": "local-search"}, TypeError, r"solver must be a Solver such as LocalSearch\(\), got str"),
        ({"solver": ms.Hungarian()}, ValueError, "Hungarian cannot take this QuadraticAssignment"),
        ({"on_improvement": "print"}, TypeError, "on_improvement must be a function of an Incumbent, got str"),
        ({"stop": 3}, TypeError, "stop must be a stopping criterion"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be positive, or negative to count .*, got 0"),
        ({"n_jobs": None}, TypeError, "n_jobs must be an integer, got None"),
        ({"initial": [0, 0, 0, 0]}, ValueError, "initial must hold every seat once"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ms.solve(**({"problem": ms.random_quadratic(4, seed=0)} | arguments))
