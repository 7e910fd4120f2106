"""Where a matrix is sparse, other kernels give the same numbers."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from instances import as_sparse
from scipy import sparse

from moe_search.problems import QuadraticAssignment, random_quadratic
from moe_search.problems.dense_quadratic import DenseArrays
from moe_search.problems.moves import commit_swap, commit_swap_and_deltas, fill_deltas, swap_delta
from moe_search.problems.sparse_quadratic import SparseArrays


@pytest.mark.parametrize(
    ("flow_symmetric", "distance_symmetric", "of_flow"), [*itertools.product((False, True), repeat=3)]
)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    linear=st.booleans(),
    diagonals=st.booleans(),
    unit=st.sampled_from([1, 0.25]),
    moves=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=3),
)
def test_all_numbers_are_those_of_the_dense_problem(
    flow_symmetric, distance_symmetric, of_flow, seed, linear, diagonals, unit, moves
):
    # Quarters are exact in floats, and kernels that are called here are plain Python.
    rng = np.random.default_rng(seed)
    flow, distance = rng.integers(-9, 10, (2, 9, 9))
    flow = flow * (rng.random((9, 9)) < 0.2)
    matrices = [m + m.T if twice else m for m, twice in ((flow, flow_symmetric), (distance, distance_symmetric))]
    for matrix in matrices:
        np.fill_diagonal(matrix, np.diagonal(matrix) * diagonals)
    matrices = [matrix * unit for matrix in matrices[:: 1 if of_flow else -1]]
    matrices += [rng.integers(-9, 10, (9, 9))] * linear
    dense, problem = QuadraticAssignment(*matrices), as_sparse(*matrices)
    assert isinstance(dense.kernel_arrays, DenseArrays)
    assert problem.kernel_arrays.of_flow == of_flow
    state, matrix = problem.state(rng.permutation(9)), problem.delta_matrix()
    other = problem.state(state.permutation)
    fill_deltas(state, matrix, 9, 0, 9)
    for a, b in [*moves, (3, 5)]:
        value = dense.value(state.permutation)
        for i, j in itertools.combinations_with_replacement(range(9), 2):
            swapped = state.permutation.copy()
            swapped[[i, j]] = swapped[[j, i]]
            assert swap_delta(state, i, j) == dense.value(swapped) - value
            assert matrix.deltas[i, j] == swap_delta(state, i, j) or i == j
            assert swap_delta(state, j, i) == swap_delta(state, i, j)
        if a != b:
            commit_swap_and_deltas(state, matrix, 9, min(a, b), max(a, b))
        commit_swap(other, a, b)
        for kept, slower, built in zip(state, other, problem.state(state.permutation), strict=True):
            assert np.array_equal(kept, built)
            assert np.array_equal(slower, built)
    assert not matrix.scratch[[0, 2]].any()


@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.coo_array, sparse.csc_matrix, sparse.lil_matrix])
@pytest.mark.parametrize("options", [{}, {"symmetric": False, "linear": True}, {"integral": False}])
def test_a_flow_of_scipy_makes_the_same_problem(kind, options):
    dense = random_quadratic(256, seed=1, density=0.008, **options)
    flow = kind(dense.flow)
    problem = QuadraticAssignment(flow, dense.distance, dense.linear)
    assert isinstance(problem.flow, sparse.csr_array)
    assert repr(problem) == repr(dense)
    assert all(map(np.array_equal, problem.pair_costs().factors, dense.pair_costs().factors))
    copied = pickle.loads(pickle.dumps(problem))
    for each in (problem, copied):
        p = each.random_solution(np.random.default_rng(2))
        assert each.value(p) == pytest.approx(dense.value(p), rel=1e-12)
        assert each.value_range() == pytest.approx(dense.value_range(), rel=1e-12)
        assert all(map(np.array_equal, each.kernel_arrays, dense.kernel_arrays))
    with pytest.raises(ValueError, match="read-only"):
        problem.flow.data[:] = 0


def test_entries_given_twice_are_added_up_and_zeros_are_none():
    flow = sparse.coo_array(([200, 100, 0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2), dtype=np.uint8)
    problem = QuadraticAssignment(flow, [[0, 1], [2, 0]])
    assert (problem.value([0, 1]), problem.flow.nnz, problem.integral) == (300, 1, True)
    assert QuadraticAssignment(sparse.csr_array((3, 3), dtype=int), np.ones((3, 3), int)).value([2, 0, 1]) == 0


@pytest.mark.parametrize(
    ("flow", "error", "message"),
    [
        (sparse.csr_array((3, 4)), ValueError, r"flow must be square, got shape \(3, 4\)"),
        (sparse.csr_array((0, 0)), ValueError, "flow must not be empty"),
        (sparse.csr_array([[0, np.nan], [0, 0]]), ValueError, r"flow must be finite, got nan at index \(0, 1\) \(1 "),
        (sparse.csr_array([[0, 1j], [0, 0]]), TypeError, "flow must hold integers or real numbers"),
        (sparse.csr_array([[0, 2**62], [1, 0]]), ValueError, "overflows 64-bit integers"),
    ],
)
def test_bad_flows(flow, error, message):
    with pytest.raises(error, match=message):
        QuadraticAssignment(flow, np.zeros((2, 2), dtype=int))


def test_only_the_flow_may_be_sparse():
    with pytest.raises(TypeError, match=r"distance must be a dense array, got a csr_array; pass its toarray\(\)"):
        QuadraticAssignment(np.ones((2, 2)), sparse.csr_array(np.ones((2, 2))))


def test_size_and_share_decide_on_the_kernels_and_range_on_their_types():
    def arrays(size, density, **options):
        return random_quadratic(size, seed=0, density=density, **options).kernel_arrays

    assert isinstance(arrays(256, 0.03), DenseArrays)
    assert isinstance(arrays(255, 0.01), DenseArrays)
    few = arrays(256, 0.01)
    assert isinstance(few, SparseArrays)
    assert (few.other.dtype, few.values.dtype, few.delta_dtype) == (np.int32, np.int64, np.int32)
    assert arrays(256, 0.01, integral=False).other.dtype == np.float64
    both = random_quadratic(256, seed=0, density=0.01)
    assert not QuadraticAssignment(both.distance, both.flow).kernel_arrays.of_flow
    heavy = QuadraticAssignment(both.flow, both.distance * 10**6).kernel_arrays
    assert (heavy.other.dtype, heavy.delta_dtype) == (np.int32, np.int64)
