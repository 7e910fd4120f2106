import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from instances import INSTANCES, naive_value
from naive import permutations
from naive_placement import largest_load, placements
from qaplib_files import FOLDER, needs_qaplib

import moe_search as ms
from moe_search.problems import (
    Cluster,
    ExpertPlacement,
    PairwiseAssignment,
    PermutationProblem,
    QuadraticAssignment,
    read_qaplib,
)
from moe_search.solvers.bounds.convex_relaxation import convex_relaxation
from moe_search.solvers.bounds.gilmore_lawler import gilmore_lawler, pairwise_gilmore_lawler
from moe_search.solvers.bounds.lower_bounds import lower_bound


@pytest.mark.parametrize("name", [name for name in INSTANCES if name != "callable"])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10**6), seconds=st.sampled_from([0.0, 10.0]))
def test_no_permutation_is_below_the_bound(name, seed, seconds):
    problem = INSTANCES[name](seed)
    optimum = min(naive_value(problem, p) for p in permutations(problem.size, problem.block_size))
    bound = lower_bound(problem, seconds)
    assert isinstance(bound, int if problem.integral else float)
    assert bound <= optimum + 1e-9 * abs(optimum)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_gilmore_lawler_with_negative_entries_and_diagonals(seed):
    rng = np.random.default_rng(seed)
    problem = QuadraticAssignment(*rng.integers(-9, 10, (2, 5, 5)), rng.integers(-50, 50, (5, 5)))
    optimum = min(naive_value(problem, p) for p in permutations(5, 5))
    bound, rows = gilmore_lawler(problem.pair_costs())
    assert bound <= optimum
    assert rows.shape == (5, 5)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 5),
    symmetric=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    linear=st.booleans(),
    scale=st.sampled_from([1, 0.37]),
)
def test_no_permutation_is_below_the_bound_of_a_method(seed, size, symmetric, linear, scale):
    rng = np.random.default_rng(seed)
    matrices = [
        a + a.T if both else a for a, both in zip(rng.integers(-9, 30, (2, size, size)), symmetric, strict=True)
    ]
    problem = QuadraticAssignment(matrices[0] * scale, matrices[1], rng.integers(-90, 90, (size, size)) * int(linear))
    optimum = min(naive_value(problem, p) for p in permutations(size, size))
    for method in ("gilmore-lawler", "projection", "semidefinite"):
        bound = ms.lower_bound(problem, method, seconds=0.0)
        assert isinstance(bound, int if problem.integral else float)
        assert bound <= optimum, method
    quick = max(ms.lower_bound(problem, method) for method in ("gilmore-lawler", "projection"))
    assert quick <= ms.lower_bound(problem, "semidefinite", seconds=0.0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(2, 4))
def test_the_semidefinite_bound_of_pairs_in_a_table(seed, size):
    problem = PairwiseAssignment(np.random.default_rng(seed).integers(-20, 30, (size, size, size, size)))
    optimum = min(naive_value(problem, p) for p in permutations(size, size))
    assert problem.value_range()[0] <= ms.lower_bound(problem, "semidefinite", seconds=0.05) <= optimum


# Eigenvalues by hand: on vectors that sum to zero a path of three slots has 0, of (1, 0, -1), and -4/3, of (1, -2, 1);
# the matrix of ones off the diagonal has -1 twice.
def test_the_projection_bound_by_hand():
    path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    complete = 1 - np.eye(3, dtype=int)
    # All permutations have the value 4, which is also what the bound leaves: 4/3 + 2/3 * (4 * 2) - 4 * 6 / 9 = 4.
    assert ms.lower_bound(QuadraticAssignment(path, complete), "projection") == 4
    # The eigenvalues 0 and -4/3 give 0 at least; row sums (1, 2, 1) by (1, 2, 1): 2/3 * 5; less 16/9: 14/9, and even.
    assert ms.lower_bound(QuadraticAssignment(path, path), "projection") == 2
    assert ms.lower_bound(QuadraticAssignment(path * 1.0, path), "projection") == pytest.approx(14 / 9)


# Published projection bounds: K. M. Anstreicher, Mathematical Programming 97 (2003), 27-42, table 1.
@needs_qaplib
@pytest.mark.parametrize(("name", "published"), [("nug12", 472), ("nug15", 973), ("nug20", 2196), ("nug30", 5266)])
def test_projection_is_the_published_bound(name, published):
    problem = read_qaplib(FOLDER / f"{name}.dat")
    assert ms.lower_bound(problem, "projection") == published + published % 2
    assert ms.lower_bound(problem) == max(published + published % 2, ms.lower_bound(problem, "gilmore-lawler"))


@needs_qaplib
def test_the_semidefinite_bound_is_close_and_gets_closer():
    problem = read_qaplib(FOLDER / "nug12.dat")
    first = ms.lower_bound(problem, "semidefinite", seconds=0.0)
    assert max(first, ms.lower_bound(problem, "gilmore-lawler")) < ms.lower_bound(problem, "semidefinite", 4.0) <= 578


@pytest.mark.parametrize(
    ("problem", "method", "message"),
    [
        (ms.random_linear(4, seed=0), "projection", "pairs cost products of two matrices"),
        (ms.random_linear(4, seed=0), "semidefinite", "linear ones are solved"),
        (ms.random_quadratic(31, seed=0), "semidefinite", "2 to 30 slots and as many experts, got 31 slots"),
        (
            ms.random_quadratic(4, seed=0),
            "best",
            "method must be one of auto, gilmore-lawler, projection",
        ),
    ],
)
def test_a_method_says_what_it_cannot_take(problem, method, message):
    with pytest.raises(ValueError, match=message):
        ms.lower_bound(problem, method)


# Published Gilmore-Lawler bounds of QAPLIB's page; the last is the bound of chr12a.
@needs_qaplib
@pytest.mark.parametrize(("name", "published"), [("nug12", 493), ("nug15", 963), ("nug20", 2057), ("nug30", 4539)])
def test_gilmore_lawler_is_the_published_bound(name, published):
    bound, _ = gilmore_lawler(read_qaplib(FOLDER / f"{name}.dat").pair_costs())
    assert bound in (published, published + 1)  # ours rounds up to the even value that all permutations have


def test_gilmore_lawler_is_exact_where_nothing_interacts():
    linear = [[4, 1, 3], [2, 0, 5], [3, 2, 2]]
    problem = QuadraticAssignment(np.zeros((3, 3), dtype=int), np.zeros((3, 3), dtype=int), linear)
    assert gilmore_lawler(problem.pair_costs())[0] == 5


def test_the_quick_pairwise_bound_is_the_weaker_one():
    problem = INSTANCES["pairwise float"](0)
    assert pairwise_gilmore_lawler(problem, 0.0) <= pairwise_gilmore_lawler(problem) + 1e-12


def test_the_convex_relaxation_is_tight_where_the_optimum_fits_exactly():
    # Targets are the mixture under one map, so the least squared loss is zero, which no bound may exceed.
    problem = INSTANCES["mixture squared"](1)
    p = np.array([2, 3, 0, 1, 6, 4, 7, 5])
    fitted = type(problem)(problem.slot_weights, problem.outputs, problem.predictions(p), "squared")
    assert -1e-6 <= convex_relaxation(fitted, 5.0) <= 1e-12


def test_longer_runs_of_the_relaxation_bound_better():
    problem = INSTANCES["mixture cross-entropy"](2)
    assert convex_relaxation(problem, 5.0) >= convex_relaxation(problem, 0.0) - 1e-12


def test_an_unknown_class_has_no_bound():
    class Unknown(PermutationProblem):
        size = 3
        integral = True

        def value(self, permutation):
            return 0

        def state(self, permutation):
            return None

    assert lower_bound(Unknown(), 1.0) is None


@pytest.mark.slow
def test_two_slots_a_device_are_bounded_by_numbers_of_replicas():
    rng = np.random.default_rng(0)
    closed = 0
    for _ in range(60):
        devices = int(rng.integers(2, 5))
        experts = int(rng.integers(2, min(2 * devices, 5) + 1))
        load = rng.integers(0, 60, experts) ** int(rng.integers(1, 3))
        load[0] += 1
        problem = ExpertPlacement(load, Cluster(devices, 2))
        optimum = min(largest_load(held, load.tolist()) for held in placements(experts, (2,) * devices))
        bound = lower_bound(problem, 10.0)
        assert problem.load_bounds[0] <= bound <= optimum * (1 + 1e-9)
        assert lower_bound(problem, 0.0) == problem.load_bounds[0]
        closed += bound > problem.load_bounds[0] * (1 + 1e-6)
    assert closed > 5
    # Of 256 experts it is another seven in a hundred.
    large = ExpertPlacement(np.arange(1.0, 257.0) ** -1.0, Cluster(160, 2))
    assert lower_bound(large, 10.0) > 1.07 * large.load_bounds[0]
