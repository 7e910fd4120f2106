import numpy as np
import pytest

from moe_search.problems import QuadraticAssignment


def test_hand_computed():
    # All ordered pairs, the diagonal included: 1*5 + 2*6 + 3*7 + 4*8 at the identity.
    flow, distance = [[1, 2], [3, 4]], [[5, 6], [7, 8]]
    assert QuadraticAssignment(flow, distance).value([0, 1]) == 70
    # Exchanged, distance[p][:, p] = [[8, 7], [6, 5]].
    assert QuadraticAssignment(flow, distance).value([1, 0]) == 1 * 8 + 2 * 7 + 3 * 6 + 4 * 5
    assert QuadraticAssignment(flow, distance, [[1, 10], [100, 1000]]).value([1, 0]) == 60 + 10 + 100


def test_small_integers_are_held_in_32_bits_or_fewer_and_large_ones_in_64():
    small = QuadraticAssignment([[0, 9], [9, 0]], [[0, 9], [9, 0]])
    large = QuadraticAssignment([[0, 10**6], [10**6, 0]], [[0, 10**6], [10**6, 0]])
    assert small.state([0, 1]).flow.dtype == np.int32
    assert large.state([0, 1]).flow.dtype == np.int64
    assert large.value([0, 1]) == 2 * 10**12
    for size, most, dtype in ((511, 1, np.int32), (512, 127, np.int8), (512, 128, np.int16), (512, 2**14, np.int32)):
        many = QuadraticAssignment(np.full((size, size), most), np.ones((size, size), dtype=int))
        assert many.state(range(size)).flow.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((3, 4)), np.zeros((3, 4))), ValueError, r"flow must be square, got shape \(3, 4\)"),
        ((np.zeros((3, 3)), np.zeros(3)), ValueError, r"distance must be square, got shape \(3,\)"),
        ((np.zeros((3, 3)), np.zeros((2, 2))), ValueError, "must have one shape"),
        ((np.zeros((0, 0)), np.zeros((0, 0))), ValueError, "must not be empty"),
        ((np.zeros((2, 2)), [[0, np.nan], [0, 0]]), ValueError, "distance must be finite"),
        ((np.zeros((2, 2)), [[0, np.inf], [0, 0]]), ValueError, "distance must be finite, got inf"),
        ((np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((3, 3))), ValueError, "linear must have the shape of flow"),
        (([[0, 2**40], [2**40, 0]], [[0, 2**40], [2**40, 0]]), ValueError, "overflows 64-bit integers"),
        (([[0, -(2**40)], [1, 0]], [[0, 2**40], [1, 0]]), ValueError, "overflows 64-bit integers"),
        (([[0, -(2**63)], [1, 0]], [[0, 1], [1, 0]]), ValueError, "overflows 64-bit integers"),
        (([[0, 1e200], [1, 0]], [[0, 1e200], [1, 0]]), ValueError, r"can reach 1.600e\+401, 1e\+300 at most fits"),
        ((np.zeros((2, 2)), np.zeros((2, 2)), np.full((2, 2), 1.7e308)), ValueError, r"can reach 6.800e\+308"),
        ((np.full((2, 2), 1e-300), np.full((2, 2), 1.7e308)), ValueError, r"a sum of distances can reach 2.720e\+309"),
        ((np.full((2, 2), 1.7e308), np.zeros((2, 2))), ValueError, r"a sum of flows can reach 2.720e\+309"),
        ((np.full((2, 2), 2**62), np.zeros((2, 2), int)), ValueError, "a sum of flows .* overflows 64-bit integers"),
        (([["x", "y"], ["z", "w"]], [[0, 1], [1, 0]]), TypeError, "integers or real numbers"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        QuadraticAssignment(*arguments)


@pytest.mark.parametrize("size", [1, 2])
def test_the_smallest_sizes(size):
    problem = QuadraticAssignment(np.ones((size, size), dtype=int), np.ones((size, size), dtype=int))
    assert problem.value(np.arange(size)) == size**2
