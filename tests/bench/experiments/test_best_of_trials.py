import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from moe_search.bench.experiments.best_of_trials import (
    bootstrap_band,
    budget_figure,
    budget_table,
    expected_best,
    fewer_trials,
    fewer_trials_table,
    others_reached,
)

LOSSES = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


@given(LOSSES)
def test_expected_best_is_the_mean_over_all_choices(losses):
    expected = [np.mean([min(chosen) for chosen in combinations(losses, r)]) for r in range(1, len(losses) + 1)]
    assert expected_best(losses) == pytest.approx(expected, abs=1e-9)


def test_expected_best_by_hand():
    # Two of 3, 1, 2: the best is 1 in two choices of three, and 2 in one.
    assert expected_best([3.0, 1.0, 2.0]) == pytest.approx([2.0, 4 / 3, 1.0])


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
    for function in (expected_best, bootstrap_band, lambda values: fewer_trials(values, values, 1)):
        with pytest.raises(ValueError, match=message):
            function(losses)


@given(st.data(), st.integers(2, 8), st.integers(0, 2**31))
def test_trials_that_a_search_saves_are_counted_on_the_mean_over_all_choices(data, count, seed):
    # Hundredths: two means are the same, or differ by more than rounding.
    losses, other = (
        np.array(data.draw(st.lists(st.integers(-1000, 1000), min_size=count, max_size=count))) / 100 for _ in range(2)
    )
    budget = data.draw(st.integers(1, count))
    saved = fewer_trials(losses, other, budget, seed=seed, resamples=20)
    target = np.mean([min(chosen) for chosen in combinations(losses, budget)])
    means = [np.mean([min(chosen) for chosen in combinations(other, r)]) for r in range(1, count + 1)]
    tolerance = 1e-9
    if saved.needed is None:
        assert means[-1] > target - tolerance
        assert saved.times == 0.0
    else:
        # The curve of means, straight between whole numbers, first comes down to the target there.
        there = np.interp(saved.needed, np.arange(1, count + 1), means)
        assert there <= target + tolerance if saved.needed == 1.0 else there == pytest.approx(target, abs=tolerance)
        assert all(mean > target - tolerance for mean in means[: math.ceil(saved.needed) - 1])
        assert saved.times == budget / saved.needed
    assert 0 <= saved.low <= saved.high <= budget


def test_what_a_search_saves_by_hand():
    # The best of two without is 1/3 on average, which a single trial with it reaches in every sample.
    saved = fewer_trials([0.0, 1.0, 1.0], [0.0, 0.0, 0.0], 2, resamples=50)
    assert (saved.needed, saved.times, saved.low, saved.high) == (1, 2.0, 2.0, 2.0)
    # The best of two of 3, 1, 2 is 4/3. With a quarter more each, two give 19/12 and three 5/4.
    saved = fewer_trials([3.0, 1.0, 2.0], [3.25, 1.25, 2.25], 2, resamples=50)
    assert (saved.needed, saved.times) == pytest.approx((2.75, 2 / 2.75))
    assert fewer_trials([1.0, 1.0], [2.0, 2.0], 1, resamples=5).needed is None


def test_a_search_that_changes_nothing_saves_nothing():
    losses = np.random.default_rng(0).gamma(2.0, size=40)
    for budget in (2, 10, 30):
        saved = fewer_trials(losses, losses.copy(), budget)
        assert (saved.needed, saved.times, saved.low, saved.high) == (budget, 1.0, 1.0, 1.0)


def test_twice_as_many_draws_by_half_the_trials():
    # With the search, a draw is as good as the better of two without.
    pairs = np.random.default_rng(1).random((400, 2))
    saved = fewer_trials(pairs[:, 0], pairs.min(axis=1), 20)
    assert saved.low <= 2.0 <= saved.high
    assert saved.times == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize(
    ("losses", "other", "budget", "message"),
    [
        ([1.0, 2.0], [1.0], 1, "losses must be of the same draws, got 2 without and 1 with search"),
        ([1.0, 2.0], [1.0, 2.0], 0, "budget must be between 1 and 2, the number of draws, got 0"),
        ([1.0, 2.0], [1.0, 2.0], 3, "budget must be between 1 and 2, the number of draws, got 3"),
        ([1.0], [np.inf], 1, "losses must be finite, got NaN or infinite ones"),
    ],
)
def test_what_may_be_saved(losses, other, budget, message):
    with pytest.raises(ValueError, match=message):
        fewer_trials(losses, other, budget)


@given(st.integers(0, 2**31))
def test_trials_that_reach_the_others_are_counted_on_the_mean_over_all_choices(seed):
    generator = np.random.default_rng(seed)
    losses = {name: (generator.integers(0, 100, 6) / 10).tolist() for name in "abcd"}
    for own, found in others_reached(losses, resamples=20).items():
        best = [np.mean([min(some) for some in combinations(losses[name], 3)]) for name in losses if name != own]
        means = [np.mean([min(some) for some in combinations(losses[own], r)]) for r in range(1, 7)]
        reached = [r for r, mean in enumerate(means, start=1) if mean <= np.median(best) + 1e-9]
        if found.needed is None:
            assert not reached
            assert found.times == 0
        else:
            assert math.ceil(found.needed - 1e-9) == reached[0]
            assert found.times == pytest.approx(3 / found.needed)
        assert 0 <= found.low <= found.high <= found.budget == 3


def test_trials_that_reach_the_others_by_hand():
    found = others_reached(
        {"a": [1.0, 1.0, 1.0, 1.0], "b": [2.0, 2.0, 2.0, 2.0], "c": [2.0, 2.0, 2.0, 2.0]}, resamples=9
    )
    assert (found["a"].needed, found["a"].times, found["a"].low) == (1.0, 2.0, 2.0)
    # The median of 1 and 2 is 1.5, which no draw of b is.
    assert (found["b"].needed, found["b"].times, found["b"].high) == (None, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"of the same two draws or more, of two searches or more, got \[2, 1\] draws"):
        others_reached({"a": [1.0, 2.0], "b": [1.0]})


def test_table_and_figure():
    losses = {"Top-k": {"none": [3.0, 1.0, 2.0], "search": [0.5, 0.5, 0.5]}, "COMET": {"none": [1.0], "search": [2.0]}}
    table = budget_table(losses)
    assert table.columns == ("gate, search", "best of 1", "best of 2")
    assert [row[0] for row in table.rows] == ["Top-k, none", "Top-k, search", "COMET, none", "COMET, search"]
    assert table.rows[0][2].startswith("1.333 (")
    assert table.rows[2][2] == "-"
    assert len(budget_figure(losses).axes) == 2


def test_table_of_the_trials_that_a_search_saves():
    losses = {
        "Top-k": {"none": [3.0, 1.0, 2.0], "search": [0.5, 0.5, 0.5]},
        "COMET": {"none": [1, 1], "search": [2, 2]},
    }
    table = fewer_trials_table(losses)
    assert table.columns == ("gate, search", "2")
    assert table.rows == (
        ("Top-k, search", "1.0: 2.00 times fewer (2.00 to 2.00)"),
        ("COMET, search", "none: 0.00 times fewer (0.00 to 0.00)"),
    )
