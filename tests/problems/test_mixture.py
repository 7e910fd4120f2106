import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from moe_search.problems import MixtureAssignment, random_mixture


def test_hand_computed():
    # One sample, weights 3/4 and 1/4, experts answer 1 and 5, target 0: mixture 2, or 4 when exchanged.
    problem = MixtureAssignment([[[0.75, 0.25]]], [[[1.0], [5.0]]], [[0.0]], "squared")
    assert problem.value([0, 1]) == 4.0
    assert problem.value([1, 0]) == 16.0
    bce = MixtureAssignment([[[1.0, 0.0]]], [[[0.0], [5.0]]], [[1.0]], "bce")
    assert bce.value([0, 1]) == pytest.approx(np.log(2))
    entropy = MixtureAssignment([[[1.0, 0.0]]], [[[0.0, np.log(3)], [0.0, 0.0]]], [1], "cross_entropy")
    assert entropy.value([0, 1]) == pytest.approx(-np.log(0.75))
    assert entropy.value([1, 0]) == pytest.approx(-np.log(0.5))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), selectors=st.integers(1, 2), capacity=st.integers(1, 2))
def test_as_pairwise_has_the_same_values(seed, selectors, capacity):
    problem = random_mixture(2 * capacity, 2, num_samples=6, seed=seed, num_selectors=selectors)
    pairwise = problem.as_pairwise()
    p = problem.random_solution(np.random.default_rng(seed))
    assert pairwise.value(p) == pytest.approx(problem.value(p), rel=1e-9)


def test_only_a_squared_loss_is_pairwise():
    with pytest.raises(ValueError, match="only a squared loss"):
        random_mixture(3, num_samples=4, seed=0, loss="bce").as_pairwise()


def test_zero_weights_take_no_room():
    with pytest.raises(ValueError, match="k must be at most num_slots, 8, got 9"):
        random_mixture(8, num_samples=50, seed=0, k=9)
    with pytest.raises(ValueError, match="must not be empty"):
        random_mixture(8, 0, num_samples=50, seed=0)
    assert random_mixture(8, num_samples=50, seed=0, k=2).state(np.arange(8)).sample.size == 100


GOOD = {
    "slot_weights": np.full((4, 1, 2), 0.5),
    "outputs": np.zeros((4, 2, 3)),
    "targets": np.zeros((4, 3)),
    "loss": "squared",
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "loss must be one of squared, bce, cross_entropy, got 'hinge'"),
        ({"slot_weights": np.full((4, 2), 0.5)}, ValueError, "slot_weights must have 3 dimensions"),
        ({"slot_weights": np.zeros((0, 1, 2))}, ValueError, "slot_weights must not be empty"),
        ({"slot_weights": np.full((4, 1, 2), -0.5)}, ValueError, "slot_weights must not be negative, got -0.5"),
        ({"slot_weights": np.full((4, 1, 3), 0.5)}, ValueError, "got 3 slots .* and 2 experts"),
        ({"outputs": np.zeros((3, 2, 3))}, ValueError, "must have one batch size"),
        ({"outputs": np.full((4, 2, 3), np.inf)}, ValueError, "outputs must be finite"),
        (
            {"outputs": np.full((4, 2, 3), 1e200)},
            ValueError,
            r"a sum of squared mixtures can reach 3.840e\+402, 1e\+300",
        ),
        ({"outputs": np.full((4, 2, 3), -1e200), "loss": "bce"}, ValueError, "fits in float64 with room"),
        ({"slot_weights": np.full((4, 1, 2), 1e200)}, ValueError, "fits in float64 with room"),
        ({"targets": np.full((4, 3), 1e200)}, ValueError, "fits in float64 with room"),
        ({"sample_weights": np.full(4, 1.7e308)}, ValueError, "fits in float64 with room"),
        ({"targets": np.zeros((4, 2))}, ValueError, r"targets must have shape \(4, 3\)"),
        ({"targets": np.full((4, 3), 2.0), "loss": "bce"}, ValueError, r"targets of bce must lie in \[0, 1\]"),
        ({"targets": np.zeros(4), "loss": "cross_entropy"}, TypeError, "integer class indices"),
        ({"targets": np.array([0, 1, 2, 3]), "loss": "cross_entropy"}, ValueError, "classes 0 .. 2, got 0 .. 3"),
        ({"targets": np.zeros((4, 2), dtype=int), "loss": "cross_entropy"}, ValueError, "a divisor of the 3 outputs"),
        ({"sample_weights": np.ones(3)}, ValueError, r"sample_weights must have shape \(4,\)"),
        ({"sample_weights": -np.ones(4)}, ValueError, "sample_weights must not be negative"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        MixtureAssignment(**(GOOD | change))


def test_large_logits_do_not_overflow():
    bce = MixtureAssignment([[[1.0]]], [[[1000.0]]], [[0.0]], "bce")
    assert bce.value([0]) == pytest.approx(1000.0)
    entropy = MixtureAssignment([[[1.0]]], [[[1000.0, 0.0]]], [1], "cross_entropy")
    assert entropy.value([0]) == pytest.approx(1000.0)
