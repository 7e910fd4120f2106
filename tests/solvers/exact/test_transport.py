"""Transport beyond the contract: the optimum of two other solvers, duals, skew, ties, sizes, early stops."""

import itertools
import time

import numpy as np
import pytest
from ctrl_c import ctrl_c_after
from hypothesis import given, settings, strategies as st

from moe_search import problems
from moe_search.solvers import Hungarian, MaxIterations, MaxRuntime, MinCostFlow, Transport
from moe_search.solvers.exact.expert_flow import CONNECT, DONE, empty_flow, flow_slice, place_rest
from moe_search.solvers.exact.transport import sample_strides

LONG = MaxRuntime(120.0)


def skewed(m, n, seed, skew=1.5, integral=False):
    rng = np.random.default_rng(seed)
    cost = -rng.standard_normal((m, n)) - skew * rng.standard_normal(n)
    return problems.LinearAssignment((1000 * cost).astype(np.int64) if integral else cost)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    capacity=st.sampled_from([1, 2, 7, 40]),
    values=st.sampled_from([1, 2, 10, 10**6]),
    skew=st.sampled_from([0, 1, 30]),
)
def test_integers_have_the_optimum_of_the_flow(seed, n, capacity, values, skew):
    rng = np.random.default_rng(seed)
    cost = rng.integers(-values, values, (n * capacity, n)) + skew * np.arange(n)
    problem = problems.LinearAssignment(cost)
    result = Transport().solve(problem, LONG)
    assert result.value == result.bound == MinCostFlow().solve(problem, LONG).value
    assert result.status == "optimal"


@pytest.mark.filterwarnings("error")
def test_integers_beyond_the_precision_of_floats_keep_their_bound():
    cost = np.array([[8, 7, 7], [7, 0, 7], [8, 2, 1]])
    result = Transport().solve(problems.BalancedRouting(-cost - 2**54), MaxIterations(1))
    # Stopped early, it has a value that the nearest float is less than.
    assert result.value == result.bound == -3 * 2**54 - 22


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 9),
    capacity=st.sampled_from([1, 3, 40]),
    skew=st.sampled_from([0.0, 1.5, 20.0]),
)
def test_floats_have_the_optimum_of_scipy(seed, n, capacity, skew):
    problem = skewed(n * capacity, n, seed, skew)
    result = Transport().solve(problem, LONG)
    assert result.value == pytest.approx(Hungarian().solve(problem, LONG).value, rel=1e-10, abs=1e-10)
    assert (result.status, result.gap) == ("optimal", 0.0)


@pytest.mark.parametrize("integral", [True, False])
def test_prices_from_samples_do_not_change_the_optimum(integral):
    problem = skewed(4096, 8, 1, integral=integral)
    assert sample_strides(problem.cost) == [64, 8, 1]
    assert sample_strides(skewed(4096, 8, 1, skew=0.0).cost) == [1]
    value = MinCostFlow().solve(problem, LONG).value
    assert Transport().solve(problem, LONG).value == pytest.approx(value, rel=0 if integral else 1e-9)


@pytest.mark.parametrize("capacity", [1, 5])
def test_paths_alone_reach_the_optimum_and_the_prices_prove_it(capacity, monkeypatch):
    # From costs that leave all slots on one expert, without any rise of prices before.
    rng = np.random.default_rng(capacity)
    cost = rng.integers(0, 50, (12 * capacity, 12)) + 100 * np.arange(12)
    flow = empty_flow(cost, np.ones(len(cost), dtype=np.int64))
    while flow.counts[0].phase != DONE:
        flow_slice(flow, 1, capacity)
        if 0 < flow.counts[0].phase < CONNECT:
            flow.counts[0].phase, flow.counts[0].cursor = CONNECT, 0
    assert (flow.size == capacity).all()
    assert (flow.held.sum(axis=1) == 1).all()
    value = cost[flow.held].sum()
    assert value == MinCostFlow().solve(problems.LinearAssignment(cost), LONG).value
    reduced = cost + flow.price
    assert (reduced[flow.held] == reduced.min(axis=1)).all()


def test_the_rest_finds_room():
    cost = np.zeros((6, 3), dtype=np.int64)
    cost[:, 1] = 5
    cost[:, 2] = 9
    flow = empty_flow(cost, np.ones(len(cost), dtype=np.int64))
    while flow.counts[0].phase == 0:
        flow_slice(flow, 1, 2)
    assert flow.size.tolist() == [6, 0, 0]
    place_rest(flow, 2)
    assert flow.held.sum(axis=0).tolist() == flow.size.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "cost", [np.zeros((2000, 8), int), np.ones((2000, 2)), np.full((60, 60), 7), [[3]], [[1], [2]]]
)
def test_equal_costs_huge_capacities_and_one_expert(cost):
    problem = problems.LinearAssignment(cost)
    result = Transport().solve(problem, LONG)
    assert result.value == np.asarray(cost).sum() / problem.num_experts
    assert (result.status, result.gap) == ("optimal", 0.0)


def test_integers_at_the_edge_of_64_bits():
    # Both assignments are equal in float64, and all sums come close to overflow.
    cost = np.array([[2**59 + 1, 0], [0, -(2**59)]])
    problem = problems.LinearAssignment(cost)
    assert Transport().solve(problem, LONG).value == min(problem.value([0, 1]), problem.value([1, 0]))
    rng = np.random.default_rng(0)
    large = rng.integers(-(2**55), 2**55, (16, 4))
    exact = Transport().solve(problems.LinearAssignment(large), LONG)
    assert exact.bound == exact.value
    # Small changes of large numbers still decide.
    assert Transport().solve(problems.LinearAssignment(large * 4 + np.eye(16, 4, dtype=int)), LONG).gap == 0


@pytest.mark.parametrize("integral", [True, False])
def test_an_early_stop_gives_a_bound_and_something_feasible(integral):
    problem = skewed(400, 16, 0, integral=integral)
    optimum = Transport().solve(problem, LONG)
    bounds = []
    for iterations in range(1, optimum.iterations, 7):
        result = Transport().solve(problem, MaxIterations(iterations))
        assert result.value == pytest.approx(problem.value(result.permutation))
        assert result.value >= optimum.value - 1e-9
        if result.bound is not None:
            assert result.bound <= optimum.value + 1e-9
            bounds.append(result.bound)
    assert bounds
    assert bounds[-1] > optimum.value - abs(optimum.value) / 20


def test_a_time_limit_is_kept_and_slices_do_not_change_the_result(monkeypatch):
    problem = skewed(40_000, 64, 0)
    initial = np.arange(problem.size)
    Transport().solve(problem, MaxRuntime(0.01), initial=initial)  # compiles
    overruns = []
    for _ in range(3):
        used = time.thread_time()
        result = Transport().solve(problem, MaxRuntime(0.03), initial=initial)
        overruns.append(time.thread_time() - used - 0.03)
    assert min(overruns) <= 0.05
    assert result.value <= problem.value(initial)
    whole = Transport().solve(problem, LONG)
    monkeypatch.setattr("moe_search.solvers.engine.run.MAX_BUDGET", 30_000)
    sliced = Transport().solve(problem, LONG)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert sliced.iterations == whole.iterations


def test_ctrl_c_returns_something_feasible(monkeypatch):
    monkeypatch.setattr("moe_search.solvers.engine.run.MAX_BUDGET", 100)  # slow enough to be met
    problem = skewed(40_000, 64, 0)
    initial = np.arange(problem.size)
    Transport().solve(problem, MaxRuntime(0.01))  # compiles
    with ctrl_c_after(0.05):
        result = Transport().solve(problem, LONG, initial=initial)
    assert result.status == "interrupted"
    assert result.value <= problem.value(initial)


def test_it_says_what_it_cannot_take():
    with pytest.raises(
        ValueError, match="Transport cannot take this QuadraticAssignment: it solves LinearAssignment and Balanced"
    ):
        Transport().solve(problems.random_quadratic(3, seed=0), LONG)


routings = given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 90),
    n=st.integers(1, 8),
    k=st.integers(1, 8),
    room=st.sampled_from([0, 0, 1, 7]),
    values=st.sampled_from([1, 3, 10**6]),
    skew=st.sampled_from([0, 1, 30]),
)


@settings(max_examples=120, deadline=None)
@routings
def test_routings_of_integers_have_the_optimum_of_the_flow(seed, m, n, k, room, values, skew):
    k = min(k, n)
    cost = np.random.default_rng(seed).integers(-values, values, (m, n)) + skew * np.arange(n)
    problem = problems.BalancedRouting(cost, k, -(-m * k // n) + room)
    result = Transport().solve(problem, LONG)
    assert result.value == result.bound == MinCostFlow().solve(problem, LONG).value
    assert result.value == problem.value(result.solution)
    assert result.status == "optimal"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    m=st.integers(1, 4),
    n=st.integers(1, 4),
    k=st.integers(1, 3),
    room=st.integers(0, 2),
)
def test_routings_have_the_least_of_all_values(seed, m, n, k, room):
    k = min(k, n)
    cost = np.random.default_rng(seed).standard_normal((m, n))
    problem = problems.BalancedRouting(cost, k, -(-m * k // n) + room)
    values = []
    for choice in itertools.product(itertools.combinations(range(n), k), repeat=m):
        if np.bincount(np.ravel(choice)).max() <= problem.capacity:
            values.append(sum(cost[row, e] for row, experts in enumerate(choice) for e in experts))
    assert Transport().solve(problem, LONG).value == pytest.approx(min(values), abs=1e-12)
    assert MinCostFlow().solve(problem, LONG).value == pytest.approx(min(values), abs=1e-12)


@pytest.mark.parametrize("factor", [1.0, 1.25])
@pytest.mark.parametrize("k", [1, 3])
def test_large_skewed_routings_and_their_early_stops(k, factor):
    cost = skewed(4104, 8, 1, skew=1.5 * k).cost[:4099]
    problem = problems.BalancedRouting(cost, k, int(factor * -(-4099 * k // 8)))
    assert len(sample_strides(cost, k)) == 3
    optimum = Transport().solve(problem, LONG)
    assert optimum.value == pytest.approx(MinCostFlow().solve(problem, LONG).value, rel=1e-9)
    bounds = []
    for iterations in range(1, optimum.iterations, optimum.iterations // 7):
        result = Transport().solve(problem, MaxIterations(iterations))
        assert result.value == pytest.approx(problem.value(result.solution))
        assert result.value >= optimum.value - 1e-9
        if result.bound is not None:
            assert result.bound <= optimum.value + 1e-9 * abs(optimum.value)
            bounds.append(result.bound)
    assert bounds


@pytest.mark.parametrize("capacity", [2, 5])
def test_paths_alone_reach_the_optimum_of_routings(capacity):
    rng = np.random.default_rng(capacity)
    cost = rng.integers(0, 50, (6 * capacity, 12)) + 100 * np.arange(12)
    flow = empty_flow(cost, np.full(len(cost), 2))
    while flow.counts[0].phase != DONE:
        flow_slice(flow, 1, capacity)
        if 0 < flow.counts[0].phase < CONNECT:
            flow.counts[0].phase, flow.counts[0].cursor = CONNECT, 0
    assert (flow.held.sum(axis=0) == capacity).all()
    assert (flow.held.sum(axis=1) == 2).all()
    assert cost[flow.held].sum() == MinCostFlow().solve(problems.BalancedRouting(cost, 2), LONG).value
    reduced = np.sort(cost + flow.price, axis=1)[:, :2]
    assert ((cost + flow.price)[flow.held].reshape(-1, 2).sum(axis=1) == reduced.sum(axis=1)).all()
