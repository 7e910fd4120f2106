import numpy as np
import pytest

from moe_search.problems import PairwiseAssignment, QuadraticAssignment


def test_hand_computed():
    cost = np.arange(16).reshape(2, 2, 2, 2)
    # Identity: experts (0, 1): cost[0,0,0,0] + cost[0,1,0,1] + cost[1,0,1,0] + cost[1,1,1,1].
    assert PairwiseAssignment(cost).value([0, 1]) == 0 + 5 + 10 + 15
    # Exchanged, experts (1, 0): cost[0,0,1,1] + cost[0,1,1,0] + cost[1,0,0,1] + cost[1,1,0,0].
    assert PairwiseAssignment(cost).value([1, 0]) == 3 + 6 + 9 + 12


def test_a_quadratic_assignment_is_a_pairwise_one():
    rng = np.random.default_rng(0)
    flow, distance = rng.integers(0, 9, (2, 5, 5))
    pairwise = PairwiseAssignment(flow[:, :, None, None] * distance)
    quadratic = QuadraticAssignment(flow, distance)
    for _ in range(10):
        p = rng.permutation(5)
        assert pairwise.value(p) == quadratic.value(p)


@pytest.mark.parametrize(
    ("shape", "block_size", "message"),
    [
        ((2, 3, 2, 2), 0, r"shape \(m, m, n, n\)"),
        ((2, 2, 2), 0, "must have 4 dimensions"),
        ((3, 3, 2, 2), 0, "multiple of the 2 experts, got 0"),
        ((4, 4, 2, 2), 3, "divide the 4 slots .* got 3"),
        ((4, 4, 2, 2), 1, "multiple of the 2 experts, got 1"),
        ((4, 4, 2, 2), -2, "got -2"),
    ],
)
def test_bad_shapes(shape, block_size, message):
    with pytest.raises(ValueError, match=message):
        PairwiseAssignment(np.zeros(shape), block_size=block_size)
    with pytest.raises(TypeError, match=r"block_size must be an integer, got 2\.0"):
        PairwiseAssignment(np.zeros((4, 4, 2, 2)), block_size=2.0)


def test_bad_numbers():
    with pytest.raises(ValueError, match="cost must be finite"):
        PairwiseAssignment(np.full((2, 2, 2, 2), np.nan))
    with pytest.raises(ValueError, match="overflows 64-bit integers"):
        PairwiseAssignment(np.full((2, 2, 2, 2), 2**60))
    with pytest.raises(ValueError, match=r"the value of a permutation can reach 5.440e\+309, 1e\+300 at most fits"):
        PairwiseAssignment(np.full((2, 2, 2, 2), -1.7e308))
