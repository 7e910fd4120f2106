from dataclasses import dataclass, field
from typing import NamedTuple

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
from moe_search.solvers import BreakoutLocalSearch, MaxIterations, MaxRuntime, MemeticSearch, TabuSearch, TargetValue
from moe_search.solvers.heuristic import tabu_search


class Pair(NamedTuple):
    first: int
    second: int


def naive_tabu(problem, p, iterations, tenures, aspiration):
    """Taillard's search in plain Python for one block with a seat for each slot; tenures come from an iterator."""
    p = list(p)
    until = first_until(p)
    value = best = problem.value(p)
    values = []
    for now in range(1, iterations + 1):
        moves = all_swaps(problem, p, value, until)
        improving = [m for m in moves if value + m[0] < best]
        forced = [m for m in moves if m[3] < now - aspiration]
        allowed = [m for m in moves if m[3] < now]
        candidates = improving or forced or allowed
        if candidates:
            delta, i, j, _ = min(candidates, key=lambda m: m[0])
            until[i][p[i]] = now + next(tenures)
            until[j][p[j]] = now + next(tenures)
            p[i], p[j] = p[j], p[i]
            value += delta
            best = min(best, value)
        values.append(value)
    return p, best, values


# The last tenure is beyond the 32 bits of a stamp.
@pytest.mark.parametrize(("tenure", "aspiration"), [(1.0, 2.0), (0.5, 0.3), (3.0, 100.0), (0.0, 1.0), (3.3e8, 100.0)])
@pytest.mark.parametrize("options", [{}, {"symmetric": False, "linear": True}])
def test_it_walks_as_the_naive_search(tenure, aspiration, options):
    # Without randomness in the tenure both must make the very same moves.
    problem = random_quadratic(8, seed=2, **options)
    initial = [3, 0, 6, 1, 7, 5, 2, 4]
    tenures = iter(lambda: int(tenure * 8), None)
    for iterations in (1, 2, 7, 60):
        _, best, _ = naive_tabu(problem, initial, iterations, tenures, int(aspiration * 64))
        solver = TabuSearch(tenure=(tenure, tenure), aspiration=aspiration)
        assert solver.solve(problem, MaxIterations(iterations), initial=initial).value == best


def test_slices_do_not_change_the_search(monkeypatch):
    problem = random_quadratic(12, seed=1, integral=False)
    whole = TabuSearch().solve(problem, MaxIterations(40_000), seed=2)
    monkeypatch.setattr("moe_search.solvers.engine.run.MAX_BUDGET", 777)
    monkeypatch.setattr("moe_search.solvers.engine.compiled_search.LOG_LENGTH", 1)
    sliced = TabuSearch().solve(problem, MaxIterations(40_000), seed=2)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert (sliced.iterations, sliced.moves) == (whole.iterations, whole.moves) == (40_000, whole.moves)
    assert [v for _, v in sliced.history] == [v for _, v in whole.history]


def test_stamps_that_run_out_are_set_back_without_a_trace(monkeypatch):
    problem = random_quadratic(12, seed=1)
    stop = MaxIterations(200_000)
    expected = TabuSearch(aspiration=0.5).solve(problem, stop, seed=3)
    monkeypatch.setattr("moe_search.solvers.heuristic.tabu_search.LAST_STAMP", 3 * tabu_search.REFILL_AFTER)
    again = TabuSearch(aspiration=0.5).solve(problem, stop, seed=3)
    assert again.permutation.tolist() == expected.permutation.tolist()
    assert again.moves == expected.moves


def test_slots_of_one_expert_are_never_swapped():
    # Swapping them changes nothing; the only real swaps lead away from the optimum and back.
    problem = LinearAssignment([[0, 9], [0, 9], [9, 0], [9, 0]])
    result = TabuSearch(tenure=(0.0, 0.0)).solve(problem, MaxIterations(50), initial=[0, 1, 2, 3])
    assert result.moves == 50
    assert result.value == 0


def test_rounding_never_takes_a_swap_out_of_its_block():
    # The total drifts a rounding error below the incumbent's, which made a swap of two slots of one expert improve.
    problem = random_mixture(4, 2, num_samples=9, seed=11, k=2, num_selectors=2).as_pairwise()
    result = TabuSearch().solve(problem, MaxIterations(70_000))
    assert result.value == problem.value(result.permutation)


def test_where_everything_is_tabu_time_passes():
    problem = random_quadratic(3, seed=0)
    result = TabuSearch(tenure=(50.0, 50.0), aspiration=1000.0).solve(problem, MaxIterations(100))
    assert 0 < result.moves < 10
    assert result.iterations == 100


@pytest.mark.parametrize("problem", [random_linear(1, seed=0), random_linear(4, 1, seed=0)])
def test_a_problem_of_one_map_ends_at_once(problem):
    result = TabuSearch().solve(problem, MaxRuntime(60.0))
    assert result.runtime < 30.0
    assert result.moves == 0


def test_equal_costs_everywhere():
    problem = QuadraticAssignment(np.ones((5, 5)), np.ones((5, 5)))
    assert TabuSearch().solve(problem, MaxIterations(1000)).value == 25.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tenure": (1.1, 0.9)}, ValueError, r"tenure must be 0 <= low <= high, got \(1.1, 0.9\)"),
        ({"tenure": (-1, 2)}, ValueError, "tenure must be a finite number >= 0, got -1"),
        ({"tenure": 1.0}, TypeError, "tenure must be two numbers"),
        ({"tenure": "08"}, TypeError, "tenure must be two numbers"),
        ({"tenure": ("0", "8")}, TypeError, "tenure must be a number, got '0'"),
        ({"aspiration": "5"}, TypeError, "aspiration must be a number, got '5'"),
        ({"aspiration": 0}, ValueError, "aspiration must be a number > 0, got 0"),
        ({"aspiration": "much"}, TypeError, "aspiration must be a number, got 'much'"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        TabuSearch(**arguments)


@pytest.mark.slow
@needs_qaplib
def test_published_optima():
    known = best_known()
    for name in ("nug30", "sko42", "bur26a", "tai25b", "kra30a"):
        result = TabuSearch().solve(read_qaplib(FOLDER / f"{name}.dat"), MaxIterations(100_000), seed=1)
        assert result.value <= 1.001 * known[name], name


def test_a_list_of_tenures_is_a_tuple():
    listed = TabuSearch(tenure=list(np.linspace(0.0, 8.0, 2)))
    assert listed == TabuSearch()
    assert hash(listed) == hash(TabuSearch())
    assert repr(listed) == repr(TabuSearch())


def test_a_class_of_a_user_may_have_fields_of_its_own():
    @dataclass(frozen=True)
    class Mine(TabuSearch):
        pair: Pair = field(default_factory=lambda: Pair(1, 2))
        cache: dict = field(init=False, repr=False)

        def __post_init__(self):
            super().__post_init__()
            object.__setattr__(self, "cache", {})

    assert Mine(aspiration=np.int64(7)).pair.second == 2
    assert repr(Mine(aspiration=np.int64(7)).aspiration) == "7"
    assert Mine().cache == {}


@pytest.mark.parametrize("solver", [TabuSearch(), BreakoutLocalSearch(), MemeticSearch(population=2, moves=1.0)])
def test_before_a_long_fill_every_swap_is_tried_once(solver, monkeypatch):
    problem = random_quadratic(12, seed=1)
    initial = problem.random_solution(np.random.default_rng(0))
    p, moves = initial.copy(), 0
    for i in range(12):
        for j in range(i + 1, 12):
            q = p.copy()
            q[[i, j]] = q[[j, i]]
            if problem.value(q) < problem.value(p):
                p, moves = q, moves + 1
    after = solver.solve(problem, MaxIterations(50), seed=2, initial=p)
    # An update takes 144 operations, the fill 172.
    monkeypatch.setattr(tabu_search, "MOVE_OPERATIONS", 150)
    for budget in (5, 1 << 40):
        monkeypatch.setattr("moe_search.solvers.engine.run.MAX_BUDGET", budget)
        descent = solver.solve(problem, TargetValue(problem.value(p)), seed=2, initial=initial)
        assert descent.permutation.tolist() == p.tolist()
        assert (descent.iterations, descent.moves) == (0, moves)
        whole = solver.solve(problem, MaxIterations(50), seed=2, initial=initial)
        assert [value for _, value in whole.history][: moves + 1] == [value for _, value in descent.history]
        assert (whole.permutation.tolist(), whole.iterations) == (after.permutation.tolist(), 50)
        assert whole.moves == moves + after.moves


@pytest.mark.parametrize("solver", [TabuSearch(), BreakoutLocalSearch(), MemeticSearch()])
def test_a_limit_too_short_for_the_fill_gives_a_descent(solver):
    problem = random_quadratic(600, seed=1)
    initial = np.arange(600)
    result = solver.solve(problem, TargetValue(problem.value(initial) - 1), initial=initial)
    assert (result.iterations, result.moves) == (0, 1)
