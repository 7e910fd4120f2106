import pickle

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from instances import naive_value
from load_limits import INNER, limited, naive_excess
from naive import excess_load, loads_of_experts, permutations

from moe_search import problems
from moe_search.problems import InfeasibleLimitsError, LoadLimited, load_limits as starts
from moe_search.problems.load_limits import lowest_limit, lowest_multiple
from moe_search.problems.moves import commit_swap_and_deltas, fill_deltas, fill_potential, swap_delta

every_inner = pytest.mark.parametrize("build", INNER.values(), ids=INNER.keys())
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", ["quadratic", "linear", "mixture squared", "pairwise"])
@settings(max_examples=8, deadline=None)
@given(seed=seeds, floats=st.booleans())
def test_plain_kernels_agree_with_values(name, seed, floats):
    rng, problem = np.random.default_rng(seed), limited(INNER[name](seed), seed, floats=floats)
    p = problem.problem.random_solution(rng)
    state, matrix = problem.state(p), problem.delta_matrix()
    fill_potential.dispatch(type(state))(state, matrix, 0, problem.size)
    fill_deltas.dispatch(type(state))(state, matrix, problem.block_size, 0, problem.size)
    for _ in range(6):
        start = problem.block_size * int(rng.integers(problem.size // problem.block_size))
        a, b = sorted((start + rng.choice(problem.block_size, 2, replace=False)).tolist())
        before = problem.value(p)
        delta = swap_delta.dispatch(type(state))(state, a, b)
        assert matrix.deltas[a, b] == pytest.approx(delta, rel=1e-9, abs=1e-9)
        commit_swap_and_deltas.dispatch(type(state))(state, matrix, problem.block_size, a, b)
        p[[a, b]] = p[[b, a]]
        assert state.permutation.tolist() == p.tolist()
        assert problem.value(p) - before == pytest.approx(delta, rel=1e-9, abs=1e-6 * problem.barrier)
        if problem.integral:
            assert problem.value(p) - before == delta
        assert problem.loads(p) == pytest.approx(
            loads_of_experts(problem.slot_loads.tolist(), problem.num_experts, problem.block_size, p.tolist())
        )
        assert problem.feasible(p) == (naive_excess(problem, p.tolist()) <= 1e-9)


@every_inner
def test_values_lie_in_their_range(build):
    for seed in range(3):
        problem = build(seed)
        low, high = problem.value_range()
        values = [naive_value(problem, p) for p in permutations(problem.size, problem.block_size)]
        slack = 0 if problem.integral else 1e-9 * max(abs(low), abs(high))
        assert low - slack <= min(values) <= max(values) <= high + slack


@every_inner
def test_any_feasible_permutation_is_better_than_any_other(build):
    problem = limited(build(1), 4, slack=1.0)
    allowed, forbidden = [], []
    for p in permutations(problem.size, problem.block_size):
        (forbidden if naive_excess(problem, p) > 0 else allowed).append(problem.value(p))
    assert allowed
    assert max(allowed) < min(forbidden, default=np.inf)


def draw_loads(data, n, capacity, blocks):
    """Slots of a block, and the load of every slot of all blocks."""
    m = n * capacity
    assume(m * blocks <= 8)
    return m, data.draw(st.lists(st.integers(0, 12), min_size=m * blocks, max_size=m * blocks))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(1, 3), capacity=st.integers(1, 2), blocks=st.integers(1, 2))
def test_a_start_is_found_whenever_there_is_one(data, n, capacity, blocks):
    m, loads = draw_loads(data, n, capacity, blocks)
    limits = data.draw(st.lists(st.integers(0, 25), min_size=n, max_size=n))
    inner = problems.PairwiseAssignment(np.zeros((m * blocks, m * blocks, n, n)), block_size=m)
    exists = any(excess_load(loads, limits, m, p) == 0 for p in permutations(m * blocks, m))
    if not exists:
        with pytest.raises(
            InfeasibleLimitsError, match=r"limits must (sum to at least|hold one of at least|leave room)"
        ):
            LoadLimited(inner, loads, limits)
        return
    problem = LoadLimited(inner, loads, limits)
    rng = np.random.default_rng(0)
    for p in (problem.start, problem.random_solution(rng), problem.start_from(inner.random_solution(rng))):
        problem.check_solution(p)
        assert excess_load(loads, limits, m, p.tolist()) == 0
    assert problem.start_from(problem.start).tolist() == problem.start.tolist()


def test_depth_first_search_finds_what_greed_and_swaps_miss(monkeypatch):
    # 3 + 3 + 3 and 5 + 4 fill two experts of 9; longest processing time first puts 5 + 3 + 3 on one.
    inner = problems.LinearAssignment(np.zeros((6, 2)))
    loads, limits = [5, 4, 3, 3, 3, 0], [9, 9]
    monkeypatch.setattr(starts, "repair", lambda limits, permutation: np.arange(6))
    found = LoadLimited(inner, loads, limits).start
    assert excess_load(loads, limits, 6, found.tolist()) == 0
    monkeypatch.setattr(starts, "MOST_NODES", 3)
    with pytest.raises(ValueError, match="can be found, but none was, by greedy assignment, swaps and 3 steps"):
        LoadLimited(inner, loads, limits)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(1, 3), capacity=st.integers(1, 3), blocks=st.integers(1, 2))
def test_the_lowest_limit_is_kept_bounded_and_no_worse_than_before(data, n, capacity, blocks):
    m, loads = draw_loads(data, n, capacity, blocks)
    limits = starts.LoadLimits(np.array(loads), np.zeros(n, dtype=np.int64), m, capacity)
    every = list(permutations(m * blocks, m))
    near = np.array(every[data.draw(st.integers(0, len(every) - 1))])

    def highest(p):
        return max(loads_of_experts(loads, n, m, p))

    least = min(map(highest, every))
    assert starts.least_highest_load(limits) <= least
    limit, found = lowest_limit(limits, near)
    assert tuple(found.tolist()) in map(tuple, every)
    assert limit == highest(found.tolist())
    assert least <= limit <= highest(near.tolist())
    inner = problems.PairwiseAssignment(np.zeros((m * blocks, m * blocks, n, n)), block_size=m)
    assert LoadLimited(inner, loads, limit, start=found).start.tolist() == found.tolist()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(1, 3), capacity=st.integers(1, 3), blocks=st.integers(1, 2))
def test_lowest_limits_in_proportion_are_kept_bounded_and_no_worse_than_before(data, n, capacity, blocks):
    m, loads = draw_loads(data, n, capacity, blocks)
    limits = starts.LoadLimits(np.array(loads), np.zeros(n, dtype=np.int64), m, capacity)
    shares = data.draw(st.lists(st.floats(0.2, 3.0), min_size=n, max_size=n))
    every = list(permutations(m * blocks, m))
    near = every[data.draw(st.integers(0, len(every) - 1))]

    def multiple(p):
        return max(load / share for load, share in zip(loads_of_experts(loads, n, m, p), shares, strict=True))

    found_limits, found = lowest_multiple(limits, np.array(shares), np.array(near))
    assert tuple(found.tolist()) in map(tuple, every)
    assert min(map(multiple, every)) <= multiple(found.tolist()) <= multiple(near)
    borne = loads_of_experts(loads, n, m, found.tolist())
    for limit, load, share in zip(found_limits.tolist(), borne, shares, strict=True):
        assert load <= limit <= multiple(found.tolist()) * share * (1 + 1e-9) + 1e-9


def test_lowest_limits_in_proportion_by_hand():
    # Expert 0 may bear twice as much: 8 + 4 against 6 is a multiple of 6, and no less is possible.
    limits = starts.LoadLimits(np.array([8, 4, 6, 0]), np.zeros(2, dtype=np.int64), 4, 2)
    found_limits, found = lowest_multiple(limits, np.array([2.0, 1.0]), np.array([2, 3, 0, 1]))
    assert found_limits.tolist() == [12, 6]
    assert sorted(found[:2].tolist()) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_limit_is_exact_where_one_slot_decides(seed):
    rng = np.random.default_rng(seed)
    loads = np.concatenate([[1000], rng.integers(10, 20, 63)])
    limits = starts.LoadLimits(loads, np.zeros(8, dtype=np.int64), 64, 8)
    lightest = 1000 + int(np.sort(loads)[:7].sum())
    assert lowest_limit(limits, rng.permutation(64))[0] == starts.least_highest_load(limits) == lightest


@pytest.mark.parametrize("seed", range(5))
def test_the_lowest_limit_is_near_the_mean_where_no_slot_is_heavy(seed):
    rng = np.random.default_rng(seed)
    loads = rng.integers(0, 100, 64)
    limits = starts.LoadLimits(loads, np.zeros(8, dtype=np.int64), 64, 8)
    assert lowest_limit(limits, rng.permutation(64))[0] <= 1.02 * loads.sum() / 8


def test_the_given_start_is_tried_first():
    inner = problems.LinearAssignment(np.zeros((4, 2)))
    assert LoadLimited(inner, [3, 3, 1, 1], 4, start=[1, 2, 3, 0]).start.tolist() == [1, 2, 3, 0]
    repaired = LoadLimited(inner, [3, 3, 1, 1], 4, start=[0, 1, 2, 3])
    assert not repaired.feasible([0, 1, 2, 3])
    assert sum(a != b for a, b in zip(repaired.start.tolist(), [0, 1, 2, 3], strict=True)) == 2
    with pytest.raises(ValueError, match=r"start must have shape \(4,\), got shape \(3,\)"):
        LoadLimited(inner, [3, 3, 1, 1], 4, start=[0, 1, 2])


def test_a_start_on_a_large_instance_with_tight_limits():
    rng = np.random.default_rng(0)
    inner = problems.random_linear(2000, 20, seed=0)
    loads = rng.integers(0, 100, 2000)
    problem = LoadLimited(inner, loads, int(loads.sum() / 20 * 1.001) + 1)
    for p in (problem.start, problem.random_solution(rng)):
        assert problem.loads(p).max() <= problem.limits[0]


def test_sums_of_floats_do_not_depend_on_their_order():
    loads = [0.1, 0.2, 0.3, 0.6]
    inner = problems.LinearAssignment(np.zeros((4, 2)))
    for limit in (0.1 + 0.2 + 0.3, 0.3 + 0.2 + 0.1, 0.6):
        problem = LoadLimited(inner, [*loads[:3], 0.0], limit)
        assert problem.feasible([0, 1, 2, 3])
    assert not LoadLimited(inner, loads, [0.7, 0.6]).feasible([2, 0, 3, 1])


LINEAR = problems.LinearAssignment([[1, 2], [3, 4], [5, 6], [7, 8]])


@pytest.mark.parametrize(
    ("inner", "loads", "limits", "error", "fault"),
    [
        (None, [1], 1, TypeError, "whose solutions are permutations, such as LinearAssignment, got NoneType"),
        (problems.BalancedRouting([[0.5, 1]], k=1), [1], 1, TypeError, "such as LinearAssignment, got BalancedRouting"),
        (LINEAR, [1, 1, 1], 9, ValueError, r"slot_loads must have shape \(4,\), got shape \(3,\)"),
        (INNER["pairwise"](0), [1], 9, ValueError, r"slot_loads must have shape \(4,\) or \(8,\), got shape \(1,\)"),
        (LINEAR, [1, 1, 1, -1], 9, ValueError, "slot_loads must not be negative, got -1"),
        (LINEAR, [1, 1, 1, np.nan], 9, ValueError, "slot_loads must be finite, got nan"),
        (LINEAR, ["a"] * 4, 9, TypeError, "slot_loads must hold integers or real numbers"),
        (LINEAR, [1, 1, 1, 1], [1, 2, 3], ValueError, r"limits must be a number or have shape \(2,\), .* \(3,\)"),
        (LINEAR, [1, 1, 1, 1], [9, -9], ValueError, "limits must not be negative, got -9"),
        (LINEAR, [1, 1, 1, 1], np.inf, ValueError, "limits must be finite, got inf"),
        (LINEAR, [5, 2, 2, 2], 5, ValueError, "limits must sum to at least the 11 of slot_loads, got 10"),
        (LINEAR, [5, 0, 0, 0], 4, ValueError, "limits must hold one of at least 5, the load of slot 0, got 4 at most"),
        (LINEAR, [3, 3, 3, 0], 5, ValueError, "limits must leave room for a permutation, but each puts"),
        (LINEAR, [2**62] * 4, 2**62, ValueError, "a sum of slot_loads can reach"),
        (LINEAR, [1e308] * 4, 1.7e308, ValueError, r"a sum of slot_loads can reach 8.000e\+308, 1e\+300 at most"),
    ],
)
def test_what_is_refused(inner, loads, limits, error, fault):
    with pytest.raises(error, match=fault):
        LoadLimited(inner, loads, limits)


def test_limits_on_limits_and_classes_without_a_range_are_refused():
    with pytest.raises(TypeError, match="must know the range of its values, but LoadLimited"):
        LoadLimited(LoadLimited(LINEAR, [1] * 4, 2), [1] * 4, 2)


def test_penalties_that_overflow_are_refused():
    inner = problems.LinearAssignment(np.array([[0, 2**60 - 1], [0, 0]]))
    with pytest.raises(ValueError, match=r"beyond the limits can reach .* overflows 64-bit integers"):
        LoadLimited(inner, [1, 2], 2)
    inner = problems.LinearAssignment([[0.0, 1e299], [0.0, 0.0]])
    with pytest.raises(ValueError, match=r"beyond the limits can reach 2.400e\+300, 1e\+300 at most fits in float64"):
        LoadLimited(inner, [1, 2], 2)


def test_a_copy_for_another_process_starts_where_it_did():
    inner = problems.LinearAssignment([[0, 9], [0, 9], [9, 0], [9, 0]])
    limited = problems.LoadLimited(inner, slot_loads=[3, 3, 1, 1], limits=4, start=[3, 1, 2, 0])
    assert limited.start.tolist() == [3, 1, 2, 0]
    assert pickle.loads(pickle.dumps(limited)).start.tolist() == [3, 1, 2, 0]
