"""The matrix of all swap deltas stays what it is when computed afresh, whatever moves are committed."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from instances import INSTANCES, naive_value
from naive import swapped

from moe_search.problems import QuadraticAssignment, dense_quadratic, random_mixture
from moe_search.problems.kernels import compiled, kernel_for
from moe_search.problems.moves import commit_swap_and_deltas, fill_deltas, fill_potential, swap_delta


@compiled
def fill(state, matrix, block_size):
    fill_potential(state, matrix, 0, 2)
    fill_potential(state, matrix, 2, state.permutation.shape[0])
    fill_deltas(state, matrix, block_size, 0, 3)
    fill_deltas(state, matrix, block_size, 3, state.permutation.shape[0])


@compiled
def commit(state, matrix, block_size, a, b):
    commit_swap_and_deltas(state, matrix, block_size, a, b)


@compiled
def one_delta(state, a, b):
    return swap_delta(state, a, b)


def pairs(problem):
    for a in range(problem.size):
        for b in range(a + 1, (a // problem.block_size + 1) * problem.block_size):
            yield a, b


@pytest.mark.parametrize("name", INSTANCES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), moves=st.lists(st.integers(0, 10**6), max_size=6))
def test_every_delta_is_the_difference_of_naive_values(name, seed, moves):
    problem = INSTANCES[name](seed)
    p = problem.random_solution(np.random.default_rng(seed)).tolist()
    state, matrix = problem.state(p), problem.delta_matrix()
    kernel_for(state, fill)(state, matrix, problem.block_size)
    for move in moves:
        choices = list(pairs(problem))
        a, b = choices[move % len(choices)]
        kernel_for(state, commit)(state, matrix, problem.block_size, a, b)
        p = swapped(p, a, b)
    assert state.permutation.tolist() == p
    value = naive_value(problem, p)
    for a, b in pairs(problem):
        expected = naive_value(problem, swapped(p, a, b)) - value
        assert matrix.deltas[a, b] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert matrix.least[a] <= matrix.deltas[a, b]
        if problem.integral:
            assert matrix.deltas[a, b] == expected


@pytest.mark.parametrize("loss", ["squared", "bce", "cross_entropy"])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), moves=st.lists(st.integers(0, 10**6), min_size=1, max_size=12))
def test_correcting_sparse_mixtures_agrees_with_computing_them_afresh(loss, seed, moves):
    problem = random_mixture(12, 6, num_samples=20, seed=seed, k=2, loss=loss, num_selectors=2)
    p = problem.random_solution(np.random.default_rng(seed))
    state, matrix = problem.state(p)._replace(corrects=1), problem.delta_matrix()
    fill(state, matrix, problem.block_size)
    for move in moves:
        choices = list(pairs(problem))
        commit(state, matrix, problem.block_size, *choices[move % len(choices)])
    afresh_state, afresh = problem.state(state.permutation), problem.delta_matrix()
    fill(afresh_state, afresh, problem.block_size)
    for a, b in pairs(problem):
        assert matrix.deltas[a, b] == pytest.approx(afresh.deltas[a, b], rel=1e-9, abs=1e-12)
    assert not state.row.any()


def test_samples_with_weight_on_all_slots_are_not_corrected_for():
    dense, sparse = (random_mixture(64, num_samples=30, seed=0, k=k) for k in (None, 2))
    assert dense.state(range(64)).corrects == 0
    assert sparse.state(range(64)).corrects == 1
    assert sparse.sweep_cost < dense.sweep_cost / 50


def test_deltas_take_32_bits_only_where_no_potential_can_overflow_them():
    types = {name: INSTANCES[name](0).delta_matrix().deltas.dtype for name in INSTANCES}
    assert types["quadratic"] == np.int32
    assert types["quadratic, 64 bits"] == np.int64
    assert types["quadratic float"] == np.float64
    assert types["linear"] == np.int64
    costly = INSTANCES["quadratic with linear"](0)
    heavy = type(costly)(costly.flow, costly.distance, costly.linear * 10**8)
    assert heavy.state(range(6)).flow.dtype == np.int32
    assert heavy.delta_matrix().deltas.dtype == np.int64


# The largest numbers of each type, those of the second with nearly the largest sums of 32 bits.
@pytest.mark.parametrize(("dtype", "flows", "distances"), [(np.int8, 127, 127), (np.int16, 2**14 - 1, 2047)])
@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), moves=st.lists(st.integers(0, 10**6), max_size=4))
def test_large_problems_of_small_integers_are_held_in_fewer_bits(dtype, flows, distances, symmetric, seed, moves):
    rng = np.random.default_rng(seed)
    matrices = [rng.choice([-largest, 0, largest], (7, 7)) for largest in (flows, distances)]
    if symmetric:
        matrices = [np.tril(matrix) + np.tril(matrix, -1).T for matrix in matrices]
    wide = QuadraticAssignment(*matrices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_quadratic, "NARROW_FROM", 7)
        problem = QuadraticAssignment(*matrices)
    p = problem.random_solution(rng).tolist()
    state, matrix = problem.state(p), problem.delta_matrix()
    assert (state.flow.dtype, wide.state(p).flow.dtype) == (dtype, np.int32)
    fill(state, matrix, 7)
    for move in moves:
        a, b = list(pairs(problem))[move % 21]
        commit(state, matrix, 7, a, b)
        p = swapped(p, a, b)
    for a, b in pairs(problem):
        expected = problem.value(swapped(p, a, b)) - problem.value(p)
        assert matrix.deltas[a, b] == one_delta(state, a, b) == swap_delta(state, a, b) == expected
