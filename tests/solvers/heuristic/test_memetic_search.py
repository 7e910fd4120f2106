import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from numba import typeof

from moe_search import problems
from moe_search.solvers import BreakoutLocalSearch, MaxIterations, MaxRuntime, MemeticSearch, TabuSearch
from moe_search.solvers.engine.random_state import random_state
from moe_search.solvers.heuristic import memetic_search

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))  # blocks, experts, capacity


def random_permutation(rng, blocks, block_size):
    return np.concatenate([t * block_size + rng.permutation(block_size) for t in range(blocks)])


def child_of(seed, first, second, capacity, block_size):
    child, *scratch = np.empty((3, first.size), dtype=np.int64)
    memetic_search.cross(random_state(seed), first, second, child, *scratch, capacity, block_size)
    return child


@settings(deadline=None, max_examples=200)
@given(shape=SHAPES, seed=st.integers(0, 10**6))
def test_a_child_is_a_permutation_with_what_its_parents_have_in_common(shape, seed):
    blocks, experts, capacity = shape
    block_size = experts * capacity
    rng = np.random.default_rng(seed)
    first, second = (random_permutation(rng, blocks, block_size) for _ in range(2))
    child = child_of(seed, first, second, capacity, block_size)
    assert sorted(child) == list(range(first.size))
    assert (child // block_size == np.arange(first.size) // block_size).all()
    one, other, made = (p // capacity for p in (first, second, child))
    assert (made[one == other] == one[one == other]).all()
    assert memetic_search.distance(first, second, capacity) == (one != other).sum()
    # Parents of one expert map have only children of it, whatever seats they take.
    assert (child_of(seed, first, first, capacity, block_size) // capacity == one).all()


def test_every_slot_takes_after_either_parent_and_mostly_after_one():
    first, second = np.arange(30), np.roll(np.arange(30), 1)
    children = np.array([child_of(seed, first, second, 1, 30) for seed in range(200)])
    from_first, from_second = (children == first).mean(axis=0), (children == second).mean(axis=0)
    assert (from_first > 0.3).all()
    assert (from_second > 0.3).all()
    assert (from_first + from_second).mean() > 0.75


@settings(deadline=None, max_examples=100)
@given(shape=SHAPES, seed=st.integers(0, 10**6), swaps=st.integers(0, 9))
def test_shakes_and_shuffles_stay_in_their_blocks(shape, seed, swaps):
    blocks, experts, capacity = shape
    block_size = experts * capacity
    p = random_permutation(np.random.default_rng(seed), blocks, block_size)
    shaken, rng = p.copy(), random_state(seed)
    memetic_search.shake(rng, shaken, block_size, swaps)
    assert (shaken != p).sum() <= 2 * swaps
    memetic_search.shuffle(rng, shaken, block_size)
    assert sorted(shaken) == list(range(p.size))
    assert (shaken // block_size == np.arange(p.size) // block_size).all()


def test_one_expert_map_on_other_seats_is_a_duplicate():
    members, values = np.array([[0, 1, 2, 3], [2, 3, 0, 1]]), np.array([5, 7])
    assert memetic_search.is_there(members, values, np.array([1, 0, 3, 2]), 5, 2)
    assert not memetic_search.is_there(members, values, np.array([1, 0, 3, 2]), 5, 1)
    assert not memetic_search.is_there(members, values, np.array([1, 0, 3, 2]), 6, 2)


def test_the_parents_are_two_and_the_first_is_the_better_of_two_draws():
    rng, values = random_state(0), np.array([3, 1, 2])
    drawn = [memetic_search.parents(rng, values) for _ in range(3000)]
    assert all(a != b for a, b in drawn)
    # The best is the first parent unless both draws miss it; the worst only if both hit it.
    shares = np.bincount([a for a, _ in drawn]) / 3000
    assert shares == pytest.approx([1 / 9, 5 / 9, 3 / 9], abs=0.04)


QUADRATIC = problems.random_quadratic(12, seed=1)
LARGER = {
    "integers": QUADRATIC,
    "floats": problems.random_quadratic(12, seed=1, integral=False),
    "two selectors, several slots an expert": problems.random_mixture(
        4, 2, num_samples=9, seed=3, k=2, num_selectors=2
    ),
    "load limits": problems.LoadLimited(problems.random_pairwise(8, 4, seed=0), np.arange(8), 8),
}


@pytest.mark.parametrize("name", LARGER)
def test_slices_do_not_change_the_search(name, monkeypatch):
    solver, problem = MemeticSearch(population=3, moves=4.0, patience=4), LARGER[name]
    whole = solver.solve(problem, MaxIterations(8000), seed=2)
    monkeypatch.setattr("moe_search.solvers.engine.run.MAX_BUDGET", 777)
    monkeypatch.setattr("moe_search.solvers.engine.compiled_search.LOG_LENGTH", 1)
    sliced = solver.solve(problem, MaxIterations(8000), seed=2)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert (sliced.moves, sliced.statistics) == (whole.moves, whole.statistics)
    assert [(p.value, p.iteration) for p in sliced.trajectory] == [(p.value, p.iteration) for p in whole.trajectory]
    assert whole.iterations == 8000
    assert whole.value == problem.value(whole.permutation)
    assert whole.statistics["populations shaken"] > 0
    assert whole.statistics["children taken"] < whole.statistics["children"]


def test_the_first_of_the_population_is_improved_as_by_the_improvement_alone():
    improvement = BreakoutLocalSearch(strength=0.5)
    solver, stop = MemeticSearch(moves=100.0, improvement=improvement), MaxIterations(1200)
    alone, first = (each.solve(QUADRATIC, stop, seed=4) for each in (improvement, solver))
    assert first.trajectory[-1][1:] == alone.trajectory[-1][1:]
    assert first.moves == alone.moves


def test_children_find_what_starts_do_not():
    problem = problems.random_quadratic(40, seed=7)
    stop = MaxIterations(60_000)
    memetic = MemeticSearch(population=8, moves=20.0)
    values = {
        solver: [solver.solve(problem, stop, seed=s).value for s in range(3)] for solver in (memetic, TabuSearch())
    }
    assert np.median(values[memetic]) <= np.median(values[TabuSearch()])
    assert memetic.solve(problem, stop, seed=0).statistics["children taken"] > 0


@pytest.mark.parametrize("problem", [problems.random_linear(1, seed=0), problems.random_linear(4, 1, seed=0)])
def test_a_problem_of_one_map_ends_at_once(problem):
    result = MemeticSearch().solve(problem, MaxRuntime(60.0))
    assert result.runtime < 30.0
    assert result.moves == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"population": 1}, ValueError, "population must be an integer >= 2, got 1"),
        ({"moves": 0}, ValueError, "moves must be a finite number > 0, got 0"),
        ({"patience": 0}, ValueError, "patience must be an integer >= 1, got 0"),
        ({"shake": "much"}, TypeError, "shake must be a number, got 'much'"),
        ({"improvement": TabuSearch()}, TypeError, "improvement must be a BreakoutLocalSearch, got TabuSearch"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        MemeticSearch(**arguments)


def test_numbers_of_any_type_and_size_are_those_of_one_kernel():
    problem = problems.random_quadratic(6, seed=0)
    types = set()
    for solver in (
        MemeticSearch(),
        MemeticSearch(patience=2**70, improvement=BreakoutLocalSearch(tenure=(1, 2), patience=2**70, directed=1)),
    ):
        run = solver.begin_run(problem, MaxIterations(1), 0, None, None)
        types.add(typeof(solver.prepare(run, problem.state(run.take_initial()))[1]))
    assert len(types) == 1
