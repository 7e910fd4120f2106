import numpy as np
import pytest
from naive_swaps import all_swaps, first_until
from qaplib_files import FOLDER, best_known, needs_qaplib

from moe_search.problems import (
    LinearAssignment,
    QuadraticAssignment,
    random_linear,
    random_mixture,
    random_quadratic,
    read_qaplib,
)
from moe_search.solvers import BreakoutLocalSearch, MaxIterations, MaxRuntime
from moe_search.solvers.heuristic import breakout_local_search, tabu_search


def naive_breakout(problem, p, iterations, moves, tenure):
    """The search in plain Python, all perturbations directed and none long, for a block with a seat for each slot."""
    n = len(p)
    p = list(p)
    until = first_until(p)
    value = best = problem.value(p)
    left, length, last, perturbations = 0, moves, 0, 0
    for now in range(1, iterations + 1):
        swaps = all_swaps(problem, p, value, until)
        delta, i, j, _ = min(swaps, key=lambda swap: swap[0])
        if left == 0 and delta >= 0:
            length = min(length + 1, n) if value == last else moves
            left, last = length, value
            perturbations += 1
            continue
        if left > 0:
            left -= 1
            allowed = [swap for swap in swaps if swap[3] < now]
            if value + delta >= best:
                if not allowed:
                    continue
                delta, i, j, _ = min(allowed, key=lambda swap: swap[0])
        until[i][p[i]] = until[j][p[j]] = now + tenure
        p[i], p[j] = p[j], p[i]
        value += delta
        best = min(best, value)
    return best, perturbations


@pytest.mark.parametrize("tenure", [0.0, 0.75, 2.0])
@pytest.mark.parametrize("options", [{}, {"symmetric": False, "linear": True}])
def test_it_walks_as_the_naive_search(tenure, options):
    problem = random_quadratic(8, seed=2, **options)
    solver = BreakoutLocalSearch(tenure=(tenure, tenure), directed=1.0)
    for iterations in (1, 2, 7, 30, 90):
        best, perturbations = naive_breakout(problem, range(8), iterations, 5, int(8 * tenure))
        result = solver.solve(problem, MaxIterations(iterations), initial=list(range(8)))
        assert result.value == best
        assert result.statistics["perturbations"] == perturbations


def test_slices_do_not_change_the_search(monkeypatch):
    problem = random_quadratic(12, seed=1, integral=False)
    solver = BreakoutLocalSearch(patience=20)
    whole = solver.solve(problem, MaxIterations(40_000), seed=2)
    monkeypatch.setattr("moe_search.solvers.engine.run.MAX_BUDGET", 777)
    monkeypatch.setattr("moe_search.solvers.engine.compiled_search.LOG_LENGTH", 1)
    sliced = solver.solve(problem, MaxIterations(40_000), seed=2)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert (sliced.iterations, sliced.moves) == (whole.iterations, whole.moves)
    assert [v for _, v in sliced.history] == [v for _, v in whole.history]


def test_stamps_that_run_out_are_set_back_without_a_trace(monkeypatch):
    problem = random_quadratic(12, seed=1)
    expected = BreakoutLocalSearch().solve(problem, MaxIterations(100_000), seed=3)
    monkeypatch.setattr(tabu_search, "LAST_STAMP", 3 * tabu_search.REFILL_AFTER)
    again = BreakoutLocalSearch().solve(problem, MaxIterations(100_000), seed=3)
    assert again.permutation.tolist() == expected.permutation.tolist()
    assert again.moves == expected.moves


def test_the_oldest_swap_is_of_two_experts():
    masks = np.full((4, 4), 9, dtype=np.int32)
    masks[0, 1], masks[2, 3] = 5, 4
    assert breakout_local_search.oldest_swap(masks, 2) == (2, 3)
    masks[0, 1] = masks[2, 3] = breakout_local_search.NEVER
    assert breakout_local_search.oldest_swap(masks, 2) == (-1, -1)


def test_descents_never_swap_two_slots_of_one_expert():
    problem = LinearAssignment([[0, 9], [0, 9], [9, 0], [9, 0]])
    result = BreakoutLocalSearch(tenure=(0.0, 0.0), directed=1.0).solve(problem, MaxIterations(50), initial=range(4))
    assert result.value == 0
    assert result.statistics["perturbations"] + result.moves == 50


def test_rounding_ends_no_descent_and_takes_no_swap_out_of_its_block():
    problem = random_mixture(4, 2, num_samples=9, seed=11, k=2, num_selectors=2).as_pairwise()
    result = BreakoutLocalSearch().solve(problem, MaxIterations(70_000))
    assert result.value == problem.value(result.permutation)


@pytest.mark.parametrize("problem", [random_linear(1, seed=0), random_linear(4, 1, seed=0)])
def test_a_problem_of_one_map_ends_at_once(problem):
    result = BreakoutLocalSearch().solve(problem, MaxRuntime(60.0))
    assert result.runtime < 30.0
    assert result.moves == 0


def test_equal_costs_everywhere():
    problem = QuadraticAssignment(np.ones((5, 5)), np.ones((5, 5)))
    assert BreakoutLocalSearch(patience=3).solve(problem, MaxIterations(1000)).value == 25.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strength": 0}, ValueError, "strength must be a finite number > 0, got 0"),
        ({"tenure": (1.1, 0.9)}, ValueError, r"tenure must be 0 <= low <= high, got \(1.1, 0.9\)"),
        ({"tenure": 1.0}, TypeError, "tenure must be two numbers"),
        ({"patience": 0}, ValueError, "patience must be an integer >= 1, got 0"),
        ({"directed": 1.5}, ValueError, "directed must be a probability, got 1.5"),
        ({"oldest": "much"}, TypeError, "oldest must be a number, got 'much'"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        BreakoutLocalSearch(**arguments)


@needs_qaplib
def test_published_optima():
    known = best_known()
    for name in ("nug30", "sko42", "bur26a", "tai25b"):
        result = BreakoutLocalSearch().solve(read_qaplib(FOLDER / f"{name}.dat"), MaxIterations(100_000), seed=1)
        assert result.value <= 1.001 * known[name], name
