import numpy as np
import pytest

from moe_search.problems import LinearAssignment


def test_hand_computed():
    # Slots 0..3, experts 0 and 1 with seats {0, 1} and {2, 3}.
    problem = LinearAssignment([[1, 10], [2, 20], [3, 30], [4, 40]])
    assert problem.capacity == 2
    assert problem.value([0, 1, 2, 3]) == 1 + 2 + 30 + 40
    assert problem.value([3, 2, 1, 0]) == 10 + 20 + 3 + 4


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        (np.zeros((3, 2)), ValueError, r"multiple of n rows .* got shape \(3, 2\)"),
        (np.zeros(3), ValueError, r"cost must have 2 dimensions, got shape \(3,\)"),
        (np.zeros((0, 2)), ValueError, r"must not be empty, got shape \(0, 2\)"),
        ([[1.0, np.nan], [0.0, 0.0]], ValueError, r"cost must be finite, got nan at index \(0, 1\)"),
        ([[1.0, 0.0], [-np.inf, 0.0]], ValueError, r"cost must be finite, got -inf at index \(1, 0\)"),
        ([["a", "b"], ["c", "d"]], TypeError, "integers or real numbers"),
        (np.ones((2, 2), dtype=complex), TypeError, "integers or real numbers, got dtype complex"),
        (np.array([[2**63, 0], [0, 0]], dtype=np.uint64), ValueError, "below 2\\*\\*63"),
        (np.ma.array(np.ones((2, 2)), mask=np.eye(2)), ValueError, "a number everywhere, got a masked array"),
        ([[2**70, 0], [0, 0]], ValueError, "at most 64 bits"),
        ([[2**63, 0], [0, -1]], ValueError, "at most 64 bits"),
        ([[2**61, 0], [0, 0]], ValueError, "overflows 64-bit integers"),
        (
            np.full((2, 2), 1.7e308),
            ValueError,
            r"a sum of costs can reach 1.360e\+309, 1e\+300 at most fits in float64",
        ),
        ([[1.7e308, -1.7e308]] * 2, ValueError, "fits in float64 with room; scale the data down"),
    ],
)
def test_bad_costs(cost, error, message):
    with pytest.raises(error, match=message):
        LinearAssignment(cost)


def test_a_copy_is_kept():
    cost = np.zeros((2, 2))
    problem = LinearAssignment(cost)
    cost[:] = 7
    assert problem.value([0, 1]) == 0
