import numpy as np
import pandas as pd
import pytest
from scipy import stats

from moe_search.bench.comparison.curves import excess_figure, performance_ratios, times_distribution
from moe_search.bench.comparison.scores import rank_solvers, signed_rank_p, wins_ties_losses

INF = np.inf


def shares(amounts, limit):
    """The share of the rows in which a solver's amount is at most `limit`, as its curve shows it."""
    return [times_distribution(column, 1e10).evaluate(limit) for column in np.transpose(amounts)]


def test_performance_ratios_by_hand():
    ratios = performance_ratios([[2.0, 4.0, INF], [3.0, 1.0, 1.0], [INF, INF, INF]])
    np.testing.assert_array_equal(ratios, [[1.0, 2.0, INF], [3.0, 1.0, 1.0], [INF, INF, INF]])
    np.testing.assert_allclose(shares(ratios, 1.0), [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(shares(ratios, 2.0), [1 / 3, 2 / 3, 1 / 3])
    np.testing.assert_allclose(shares(ratios, 1e9), [2 / 3, 2 / 3, 1 / 3])


@pytest.mark.parametrize("costs", [[[0.0, 1.0]], [[-1.0, 1.0]]])
def test_performance_ratios_refuse_costs_that_are_not_positive(costs):
    with pytest.raises(ValueError, match="costs must be positive"):
        performance_ratios(costs)


def test_performance_ratios_refuse_another_shape():
    with pytest.raises(ValueError, match=r"shape \(problems, solvers\), got shape \(2,\)"):
        performance_ratios([1.0, 2.0])


def test_shares_of_times_by_hand():
    times = [[0.1, INF], [0.5, 0.2], [2.0, INF], [INF, 0.3]]
    np.testing.assert_array_equal(shares(times, 0.5), [0.5, 0.5])
    np.testing.assert_array_equal(shares(times, 10.0), [0.75, 0.5])


@pytest.mark.parametrize("panels", range(1, 5))
def test_the_legend_fits_into_the_figure(panels):
    names = ["IteratedLocalSearch", "SimulatedAnnealing", "random permutations", "BranchAndBound", "a", "b", "c", "d"]
    excess = pd.DataFrame(0.1, index=[0.01, 1.0], columns=names)
    figure = excess_figure({f"Class{i}": excess for i in range(panels)}, {name: i for i, name in enumerate(names)})
    figure.draw_without_rendering()
    legend, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0 < legend.x1 <= page.x1
    assert all(axis.get_window_extent().height > 100 for axis in figure.axes if axis.get_visible())


def test_ranks_and_tests_of_a_clear_order():
    values = pd.DataFrame({"worst": np.arange(8) + 2.0, "best": np.arange(8) + 0.0, "middle": np.arange(8) + 1.0})
    ranking = rank_solvers(values)
    assert ranking.mean_ranks == {"best": 1.0, "middle": 2.0, "worst": 3.0}
    assert list(ranking.mean_ranks) == ["best", "middle", "worst"]
    # Complete agreement: the statistic is datasets * (solvers - 1) = 16 with 2 degrees of freedom.
    assert ranking.friedman == pytest.approx(stats.chi2.sf(16, 2))
    assert {(pair.better, pair.worse) for pair in ranking.pairs} == {
        ("best", "middle"),
        ("best", "worst"),
        ("middle", "worst"),
    }
    # All eight signs agree: 2 of 2^8 outcomes are as extreme.
    assert [pair.corrected for pair in ranking.pairs] == pytest.approx([3 * 2 / 256] * 3)
    assert "3 of 3 pairs apart" in ranking.sentences[1]


def test_equal_values_share_ranks_and_infinite_ones_are_the_worst():
    values = pd.DataFrame({"a": [1.0, 1.0, 1.0], "b": [1.0, 2.0, INF], "c": [INF, 2.0, INF]})
    ranking = rank_solvers(values)
    assert ranking.mean_ranks == pytest.approx({"a": 3.5 / 3, "b": 6.5 / 3, "c": 8.0 / 3})
    assert all(0 <= pair.p <= pair.corrected <= 1 for pair in ranking.pairs)


def test_signed_rank_of_no_difference_is_one():
    assert signed_rank_p(np.zeros(5)) == 1.0


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a": [1.0, 2.0]}, "one solver only"),
        ({"a": [1.0], "b": [2.0], "c": [3.0]}, "one data set only"),
        ({"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [1.0, 2.0]}, "equal values on every data set"),
        ({"a": [INF, INF], "b": [INF, INF]}, "equal values on every data set"),
        ({}, "No solver took every data set"),
    ],
)
def test_where_there_is_nothing_to_test_a_sentence_says_so(values, sentence):
    ranking = rank_solvers(pd.DataFrame(values))
    assert ranking.friedman is None
    assert ranking.pairs == ()
    assert any(sentence in each for each in ranking.sentences)
    assert not any("nan" in each for each in ranking.sentences)


def test_two_solvers_are_tested_without_friedman():
    ranking = rank_solvers(pd.DataFrame({"a": np.arange(6.0), "b": np.arange(6.0) + 1}))
    assert ranking.friedman is None
    assert ranking.pairs[0].p == pytest.approx(2 / 64)


def test_too_few_data_sets_are_told():
    values = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 3.0, 4.0], "c": [3.0, 4.0, 5.0]})
    assert "more data sets are needed" in rank_solvers(values).sentences[-1]


def test_wins_ties_and_losses_by_hand():
    values = pd.DataFrame({"a": [1.0, 2.0, INF, 5.0], "b": [2.0, 2.0, INF, 4.0]})
    assert wins_ties_losses(values) == {("a", "b"): (1, 2, 1), ("b", "a"): (1, 2, 1)}
