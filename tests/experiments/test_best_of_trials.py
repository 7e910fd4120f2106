from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_search.experiments.best_of_trials import bootstrap_band, expected_best, trials_needed
from moe_search.experiments.budget_report import budget_figure, budget_table

LOSSES = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


@given(LOSSES)
def test_expected_best_is_the_mean_over_all_choices(losses):
    expected = [np.mean([min(chosen) for chosen in combinations(losses, r)]) for r in range(1, len(losses) + 1)]
    assert expected_best(losses) == pytest.approx(expected, abs=1e-9)


def test_expected_best_by_hand():
    # Two of 3, 1, 2: the best is 1 in two choices of three, and 2 in one.
    assert expected_best([3.0, 1.0, 2.0]) == pytest.approx([2.0, 4 / 3, 1.0])
    assert trials_needed([3.0, 1.0, 2.0], 1.4) == 2
    assert trials_needed([3.0, 1.0, 2.0], 2.0) == 1
    assert trials_needed([3.0, 1.0, 2.0], 0.9) is None


def test_five_hundred_trials_do_not_overflow():
    curve = expected_best(np.arange(500.0))
    assert curve[0] == pytest.approx(249.5)
    # The least of r numbers of 0 .. N - 1 is (N - r) / (r + 1) on average.
    assert curve[99] == pytest.approx(400 / 101)
    assert curve[-1] == 0.0


def test_bands_hold_the_curve_and_repeat():
    losses = np.random.default_rng(0).gamma(2.0, size=30)
    low, high = bootstrap_band(losses, seed=3, resamples=300)
    assert (low <= high).all()
    assert (low[:10] <= expected_best(losses)[:10]).all()
    assert (expected_best(losses)[:10] <= high[:10]).all()
    again = bootstrap_band(losses, seed=3, resamples=300)
    assert np.array_equal(low, again[0])
    one = bootstrap_band([2.0], resamples=5)
    assert [end.tolist() for end in one] == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([], r"losses must be a list of at least one, got shape \(0,\)"),
        ([[1.0]], r"losses must be a list of at least one, got shape \(1, 1\)"),
        ([1.0, np.nan], "losses must be finite, got NaN or infinite ones"),
    ],
)
def test_what_losses_may_be(losses, message):
    for function in (expected_best, bootstrap_band, lambda values: trials_needed(values, 0.0)):
        with pytest.raises(ValueError, match=message):
            function(losses)


def test_table_and_figure():
    losses = {"Top-k": {"none": [3.0, 1.0, 2.0], "search": [0.5, 0.5, 0.5]}, "COMET": {"none": [1.0], "search": [2.0]}}
    table = budget_table(losses)
    assert table.columns[:3] == ("gate, search", "best of 1", "best of 2")
    assert [row[0] for row in table.rows] == ["Top-k, none", "Top-k, search", "COMET, none", "COMET, search"]
    assert table.rows[0][2].startswith("1.333 (")
    assert [row[-1] for row in table.rows] == ["3", "1", "1", "more than 1"]
    assert table.rows[2][2] == "-"
    assert len(budget_figure(losses).axes) == 2
