import numpy as np
import pytest
from qaplib_files import FOLDER, best_known, needs_qaplib
from scipy.optimize import quadratic_assignment

from moe_search import problems
from moe_search.solvers import FrankWolfe, MaxIterations, MaxRuntime, TargetValue


def test_the_first_start_is_scipys_barycenter():
    problem = problems.random_quadratic(9, seed=3, symmetric=False)
    options = {"rng": np.random.default_rng(5)}
    expected = quadratic_assignment(problem.flow, problem.distance, method="faq", options=options).fun
    # From the worst of a few, so that the start itself is what is returned.
    rng = np.random.default_rng(0)
    worst = max((problem.random_solution(rng) for _ in range(50)), key=problem.value)
    result = FrankWolfe().solve(problem, MaxIterations(1), initial=worst)
    assert result.value == expected
    assert isinstance(result.value, int)
    assert (result.iterations, result.restarts) == (1, 0)


@needs_qaplib
def test_many_starts_come_close_to_the_best_known_and_history_falls():
    problem = problems.read_qaplib(FOLDER / "nug12.dat")
    result = FrankWolfe().solve(problem, MaxIterations(40), seed=1)
    assert best_known()["nug12"] <= result.value <= 1.03 * best_known()["nug12"]
    assert len({value for _, value in result.history}) == len(result.history) > 1
    assert result.restarts == 39


def test_fewer_steps_do_less():
    problem = problems.random_quadratic(20, seed=0)
    values = [FrankWolfe(steps).solve(problem, MaxIterations(5), seed=0).value for steps in (1, 30)]
    assert values[1] < values[0]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("fill", [0, 7, 1.5])
def test_small_problems_and_equal_costs(n, fill):
    problem = problems.QuadraticAssignment(np.full((n, n), fill), np.full((n, n), fill))
    result = FrankWolfe().solve(problem, MaxIterations(3))
    assert result.value == (n * fill) ** 2


def test_it_stops_between_starts():
    problem = problems.random_quadratic(30, seed=0)
    result = FrankWolfe().solve(problem, MaxRuntime(0.1))
    assert result.iterations >= 1
    assert result.runtime < 5.0
    reached = FrankWolfe().solve(problem, TargetValue(float(result.value)), seed=0)
    assert reached.value <= result.value


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (problems.random_quadratic(4, seed=0, linear=True), "scipy's FAQ has no linear term"),
        (problems.random_linear(4, seed=0), "it solves QuadraticAssignment only"),
    ],
)
def test_it_says_what_it_cannot_take(problem, message):
    with pytest.raises(ValueError, match=f"FrankWolfe cannot take this .*{message}"):
        FrankWolfe().solve(problem, MaxRuntime(1.0))


@pytest.mark.parametrize(("steps", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_steps(steps, error):
    with pytest.raises(error, match="steps must be"):
        FrankWolfe(steps)
