import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from naive_subset import Instance

from moe_search.problems.expert_subset import ExpertSubset, subset_error

KINDS = (
    {"share": "chosen"},
    {"share": "kept"},
    {"share": "none"},
    {"share": "kept", "n": 8, "keep": 4, "num_groups": 4, "open_groups": 2},
    {"share": "chosen", "n": 8, "keep": 4, "num_groups": 2, "open_groups": 1, "group_depth": 2},
    {"share": "chosen", "n": 8, "keep": 4, "num_groups": 2},
)


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 10**6))
def test_value_and_kernel_are_the_error_of_the_rows_routed_anew(kind, seed):
    instance = Instance(seed, **kind)
    problem = instance.problem
    kept = problem.check_solution(problem.random_solution(np.random.default_rng(seed)))
    expected = instance.error(kept)
    assert problem.value(kept) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    mask = np.isin(np.arange(problem.num_experts), kept)
    room = np.empty(problem.k, dtype=np.int64), np.empty(problem.num_groups, dtype=np.bool_)
    assert subset_error(mask, problem.arrays(), *room) == pytest.approx(problem.value(kept), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("share", ["chosen", "kept", "none"])
def test_strengths_that_underflowed_share_nothing_out(share):
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    strengths = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    problem = ExpertSubset(scores, strengths, np.ones((2, 3, 3)), np.ones((2, 3)), [4.0, 4.0], keep=2, k=1, share=share)
    room = np.empty(1, dtype=np.int64), np.empty(1, dtype=np.bool_)
    # Both rows go without an answer, or the second alone does not.
    for kept, error in (([0, 1], 8.0), ([0, 2], 4.0 + 1.0 - 2.0 + 4.0)):
        assert problem.value(kept) == error
        assert subset_error(np.isin(np.arange(3), kept), problem.arrays(), *room) == error


def test_a_subset_is_told_and_drawn():
    problem = Instance(**KINDS[4]).problem
    assert repr(problem) == "ExpertSubset(4 of 8 experts, 20 rows, num_groups=2)"
    assert problem.num_subsets == 36
    drawn = {tuple(problem.random_solution(np.random.default_rng(seed))) for seed in range(300)}
    assert len(drawn) == 36
    assert problem.best_by([3, 9, 1, 2, 0, 0, 4, 1]).tolist() == [0, 1, 6, 7]
    assert problem.check_solution([7, 0, 1, 6]).tolist() == [0, 1, 6, 7]


@pytest.mark.parametrize(
    ("solution", "error", "message"),
    [
        ([0, 1], ValueError, r"solution must have shape \(4,\), got shape \(2,\)"),
        ([0.0, 1, 4, 5], TypeError, "solution must hold integers, got dtype float64"),
        ([0, 1, 4, 8], ValueError, r"solution must hold experts 0 \.\. 7, got 0 \.\. 8"),
        ([0, 1, 4, 4], ValueError, "solution must hold no expert twice"),
        ([0, 1, 2, 4], ValueError, r"solution must hold equally many experts of every group, got \[3, 1\]"),
    ],
)
def test_what_is_no_subset_is_refused(solution, error, message):
    with pytest.raises(error, match=message):
        Instance(**KINDS[4]).problem.check_solution(solution)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gram": np.zeros((20, 6))}, r"gram must have shape \(20, 6, 6\), got \(20, 6\)"),
        ({"strengths": -np.ones((20, 6))}, "strengths must not be negative, got -1"),
        ({"energies": np.full(20, np.nan)}, "energies must be finite, got 20 numbers that are not"),
        ({"keep": 6}, r"keep must be in 2 \.\. 5, got 6"),
        ({"keep": 1}, r"keep must be in 2 \.\. 5, got 1"),
        ({"num_groups": 4}, "num_groups must divide the number of experts, 6, got 4"),
        ({"num_groups": 2}, r"keep must be in 2 \.\. 5 and a multiple of num_groups, 2, got 3"),
        ({"num_groups": 3, "open_groups": 1}, "open_groups must have the 2 experts of a row among them, got 1 groups"),
        ({"num_groups": 3, "group_depth": 2}, "group_depth must be at most 1, the experts that stay of a group, got 2"),
        ({"share": "all"}, "share must be one of chosen, kept, none, got 'all'"),
    ],
)
def test_what_is_no_problem_is_refused(changes, message):
    problem = Instance().problem
    names = ("scores", "strengths", "gram", "products", "energies", "keep", "k", "share")
    with pytest.raises(ValueError, match=message):
        ExpertSubset(**{name: getattr(problem, name) for name in names} | changes)
