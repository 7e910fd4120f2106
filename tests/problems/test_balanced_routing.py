"""BalancedRouting: its value, what it refuses, and its solutions."""

import pickle

import numpy as np
import pytest

import moe_search as ms

COST = [[0, 1, 5], [0, 2, 6], [0, 3, 4], [2, 2, 2]]


def test_value_by_hand_and_sizes():
    problem = ms.BalancedRouting(COST, k=2)
    assert (problem.num_rows, problem.num_experts, problem.k, problem.capacity, problem.integral) == (4, 3, 2, 3, True)
    solution = [[1, 0], [0, 1], [2, 0], [1, 2]]
    assert problem.value(solution) == (1 + 0) + (0 + 2) + (4 + 0) + (2 + 2)
    assert problem.check_solution(solution).tolist() == [[0, 1], [0, 1], [0, 2], [1, 2]]
    assert problem.value_range() == (1 + 2 + 3 + 4, 6 + 8 + 7 + 4)
    assert repr(problem) == "BalancedRouting(4 rows to 2 of 3 experts, capacity=3, integral)"
    assert repr(pickle.loads(pickle.dumps(problem))) == repr(problem)
    assert ms.BalancedRouting(COST, capacity=9).capacity == 4  # a row is taken once


def test_random_solutions_are_some_and_differ():
    rng = np.random.default_rng(0)
    for m, n, k in ((7, 5, 2), (1, 4, 4), (9, 3, 1)):
        problem = ms.BalancedRouting(rng.standard_normal((m, n)), k)
        drawn = [problem.random_solution(rng) for _ in range(20)]
        for each in [*drawn, problem.even_solution()]:
            assert np.array_equal(problem.check_solution(each), each)
            low, high = problem.value_range()
            assert low - 1e-9 <= problem.value(each) <= high + 1e-9
        assert k == n or len({each.tobytes() for each in drawn}) > 1


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ([[0], [1], [2], [0]], r"must have shape \(4, 2\), got shape \(4, 1\)"),
        ([[0, 1], [1, 2], [2, 0], [1, 3]], r"must hold experts 0 .. 2, got 0 .. 3"),
        ([[0, 1], [2, 2], [2, 0], [1, 0]], r"different experts in every row, got \[2, 2\] in row 1"),
        ([[0, 1], [1, 0], [2, 0], [1, 0]], r"an expert 3 rows at most, got 4 for expert 0"),
    ],
)
def test_what_is_no_solution(solution, message):
    with pytest.raises(ValueError, match=message):
        ms.BalancedRouting(COST, k=2).value(solution)
    with pytest.raises(TypeError, match="must hold integers, got dtype float64"):
        ms.BalancedRouting(COST, k=2).value(np.zeros((4, 2)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((COST, 4), "k must be at most the number of experts, 3, got 4"),
        ((COST, 2, 2), "capacity must be at least 3, for 3 experts to take 4 rows 2 times, got 2"),
        (([[1.0, np.nan]],), "cost must be finite"),
        (([[2**61, 0]],), "overflows 64-bit integers"),
    ],
)
def test_what_it_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ms.BalancedRouting(*arguments)
