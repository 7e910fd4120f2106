import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from instances import INSTANCES, naive_value
from naive import inserted, swapped
from qaplib_files import FOLDER, best_known, needs_qaplib

from moe_search.problems import random_linear, random_mixture, random_quadratic, read_qaplib
from moe_search.solvers import LocalSearch, MaxIterations, MaxRuntime
from moe_search.solvers.engine.compiled_search import REFRESH_AFTER


def neighbors(problem, p, neighborhood):
    for start in range(0, problem.size, problem.block_size):
        block = range(start, start + problem.block_size)
        for a in block:
            for b in block:
                if neighborhood in ("swap", "both") and a < b:
                    yield swapped(p, a, b)
                if neighborhood in ("insertion", "both") and a != b:
                    yield inserted(p, a, b)


@pytest.mark.parametrize("name", ["linear", "quadratic general", "pairwise", "mixture squared"])
@pytest.mark.parametrize("neighborhood", ["swap", "insertion", "both"])
@pytest.mark.parametrize("improvement", ["first", "best"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_one_descent_ends_at_a_local_optimum(name, neighborhood, improvement, seed):
    problem = INSTANCES[name](seed)
    result = LocalSearch(neighborhood, improvement, restarts=False).solve(problem, MaxRuntime(60.0), seed=seed)
    p = result.permutation.tolist()
    value = naive_value(problem, p)
    least = min(naive_value(problem, q) for q in neighbors(problem, p, neighborhood))
    assert least >= value - 1e-9
    assert result.restarts == 0


def test_best_improvement_commits_the_best_neighbor():
    problem = random_quadratic(7, seed=3)
    p = np.arange(7)
    one = LocalSearch("swap", "best", restarts=False).solve(problem, MaxIterations(21), initial=p)
    # 21 pairs, one whole pass, one move.
    assert one.moves == 1
    assert one.value == min(problem.value(q) for q in neighbors(problem, p.tolist(), "swap"))
    slid = LocalSearch("insertion", "best", restarts=False).solve(problem, MaxIterations(10**6), initial=p)
    path = [value for _, value in slid.history]
    assert path[1] == min(problem.value(q) for q in neighbors(problem, p.tolist(), "insertion"))


def test_first_improvement_commits_the_first_one_met():
    problem = random_quadratic(7, seed=3)
    p = list(range(7))
    improving = next(q for q in neighbors(problem, p, "swap") if problem.value(q) < problem.value(p))
    result = LocalSearch(restarts=False).solve(problem, MaxRuntime(60.0), initial=p)
    assert result.history[1][1] == problem.value(improving)


@pytest.mark.parametrize("neighborhood", ["swap", "insertion", "both"])
def test_slices_do_not_change_the_search(neighborhood, monkeypatch):
    problem = random_quadratic(12, seed=1)
    whole = LocalSearch(neighborhood).solve(problem, MaxIterations(20_000), seed=2)
    for module, name, tiny in (("run", "MAX_BUDGET", 7), ("compiled_search", "LOG_LENGTH", 2)):
        monkeypatch.setattr(f"moe_search.solvers.engine.{module}.{name}", tiny)
    sliced = LocalSearch(neighborhood).solve(problem, MaxIterations(20_000), seed=2)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert (sliced.iterations, sliced.moves, sliced.restarts) == (whole.iterations, whole.moves, whole.restarts)
    assert [v for _, v in sliced.history] == [v for _, v in whole.history]


def test_floats_are_built_afresh_before_rounding_errors_add_up():
    problem = random_mixture(4, num_samples=12, seed=1)
    result = LocalSearch().solve(problem, MaxIterations(600_000), seed=2)
    # Enough restarts for the state to have been built afresh at least once.
    assert result.restarts * problem.size > REFRESH_AFTER
    assert result.history[-1][1] == result.value == problem.value(result.permutation)


def test_a_single_permutation_ends_at_once():
    result = LocalSearch().solve(random_linear(1, seed=0), MaxRuntime(60.0))
    assert result.runtime < 30.0
    assert result.iterations == 0


def test_equal_costs_everywhere_are_a_local_optimum():
    problem = type(random_quadratic(5, seed=0))(np.ones((5, 5)), np.ones((5, 5)))
    result = LocalSearch("both", restarts=False).solve(problem, MaxRuntime(60.0))
    assert (result.moves, result.value) == (0, 25.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("swaps",), ValueError, "neighborhood must be one of swap, insertion, both, got 'swaps'"),
        (("swap", "last"), ValueError, "improvement must be one of first, best, got 'last'"),
        (("swap", "first", 3), TypeError, "restarts must be True or False, got 3"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        LocalSearch(*arguments)


@pytest.mark.slow
@needs_qaplib
def test_published_optima_in_a_second():
    known = best_known()
    exact = [name for name in known if read_qaplib(FOLDER / f"{name}.dat").size <= 15]
    assert len(exact) == 12
    LocalSearch().solve(read_qaplib(FOLDER / "nug12.dat"), MaxRuntime(0.01))  # compiles
    for name in exact:
        result = LocalSearch().solve(read_qaplib(FOLDER / f"{name}.dat"), MaxRuntime(1.0), seed=0)
        assert result.value == known[name], name
    for name in ("nug30", "tai30a", "sko42", "wil50"):
        result = LocalSearch().solve(read_qaplib(FOLDER / f"{name}.dat"), MaxRuntime(1.0), seed=0)
        assert result.value <= 1.015 * known[name], name


@pytest.mark.parametrize("name", ["quadratic general", "pairwise", "mixture squared"])
def test_all_insertions_of_a_slot_take_one_delta_each(name):
    # One slide up and one down from its seat: m - 1 deltas for the m - 1 places a slot can go.
    problem = INSTANCES[name](2)
    best = LocalSearch("insertion", restarts=False).solve(problem, MaxRuntime(60.0), seed=0)
    still = LocalSearch("insertion", restarts=False).solve(problem, MaxRuntime(60.0), initial=best.permutation)
    assert still.moves == 0
    assert still.statistics["insertions evaluated"] == problem.size * (problem.block_size - 1)
    both = LocalSearch("both", restarts=False).solve(problem, MaxRuntime(60.0), seed=1)
    assert both.statistics["swaps evaluated"] > 0
    assert both.statistics["insertions evaluated"] >= problem.size * (problem.block_size - 1)
