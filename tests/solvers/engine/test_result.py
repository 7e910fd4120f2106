import json
import math
import platform
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from moe_search.problems import random_mixture, random_quadratic
from moe_search.solvers import LocalSearch, MaxIterations, Result
from moe_search.solvers.engine.result import Incumbent, met, relative_gap

mpl.use("agg")


@pytest.mark.parametrize("problem", [random_quadratic(8, seed=1), random_mixture(6, num_samples=20, seed=1)])
def test_json_round_trip_loses_nothing(problem):
    result = LocalSearch().solve(problem, MaxIterations(2000), seed=4)
    again = Result.from_json(result.to_json())
    for name in Result.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name), err_msg=name)
    assert type(again.value) is type(result.value)


@pytest.mark.parametrize("text", ["[]", "{}", '{"value": 1}', "no json"])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"a result is a JSON object|Expecting value"):
        Result.from_json(text)


def test_an_unknown_status_is_refused():
    data = json.loads(LocalSearch().solve(random_quadratic(4, seed=1), MaxIterations(10)).to_json())
    with pytest.raises(ValueError, match="status must be one of optimal, feasible, interrupted, got 'great'"):
        Result.from_json(json.dumps(data | {"status": "great"}))


@pytest.mark.parametrize(
    ("value", "bound", "gap"),
    [(10, 8, 0.2), (10, 10, 0.0), (10, 11, 0.0), (-10, -12, 0.2), (0, -1, math.inf), (0, 0, 0.0), (10, None, None)],
)
def test_gap(value, bound, gap):
    assert relative_gap(value, bound) == gap


def test_summary_and_immutability():
    result = LocalSearch().solve(random_quadratic(8, seed=1), MaxIterations(2000), seed=4)
    assert f"value      {result.value:,}" in result.summary()
    assert "bound      none" in result.summary()
    assert f"versions   python {platform.python_version()}, moe-search " in result.summary()
    with pytest.raises(AttributeError):
        result.value = 3
    with pytest.raises(ValueError, match="read-only"):
        result.permutation[0] = 3


def test_a_result_is_shown_in_one_line_and_in_a_table():
    found = LocalSearch().solve(random_quadratic(12, seed=1), MaxIterations(2000), seed=4)
    result = replace(found, value=578, bound=493, iterations=1234, runtime=0.51234, solver="Mine(name='<b>')")
    assert repr(result) == (
        "Result(value=578, bound=493, gap=14.7%, status='feasible', iterations=1234, runtime=0.512, seed=4,"
        " solver=\"Mine(name='<b>')\")"
    )
    assert repr(replace(result, bound=None)).startswith("Result(value=578, bound=None, gap=None, status=")
    assert result.outcome() == "feasible: value 578, bound 493, gap 14.706 %"
    table = result._repr_html_()
    for text in ("14.706 %", "1,234", "Mine(name=&#x27;&lt;b&gt;&#x27;)"):
        assert f">{text}</td></tr>" in table
    incumbent = Incumbent(0.5, 12, 578, found.permutation)
    assert repr(incumbent) == "Incumbent(seconds=0.5, iterations=12, value=578)"


def test_the_plot_shows_value_and_bound_over_the_logarithm_of_time():
    found = LocalSearch().solve(random_quadratic(8, seed=1), MaxIterations(2000), seed=4)
    result = replace(found, bound=1, trajectory=(found.trajectory[0]._replace(seconds=0.0), *found.trajectory[1:]))
    ax = result.plot()
    assert (ax.get_xlabel(), ax.get_xscale(), ax.get_title()) == ("seconds", "log", result.outcome())
    value, bound = ax.lines
    assert min(value.get_xdata()) > 0
    assert value.get_ydata().tolist() == [*(point.value for point in result.trajectory), result.value]
    assert set(bound.get_ydata()) == {1}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["LocalSearch", "bound"]
    # However short a run is, at least a whole decade is shown, and only decades are labelled.
    short = replace(result, trajectory=(found.trajectory[0]._replace(seconds=1.2e-4),), runtime=1.3e-4).plot()
    assert short.get_xlim() == pytest.approx((1e-4, 1e-3))
    short.figure.canvas.draw()
    assert {text.get_text() for text in short.get_xticklabels(minor=True)} <= {""}
    # On axes of the caller's, what stands there stays.
    ax.set_title("mine")
    assert replace(result, solver="Other()").plot(ax).get_title() == "mine"
    plt.close("all")


class Magnitude:
    """A problem of floats, of which only the size of an ordinary value matters."""

    integral = False

    def __init__(self, ordinary):
        self.ordinary = ordinary

    def ordinary_value(self):
        return self.ordinary


@pytest.mark.parametrize(
    ("bound", "ordinary", "slack"),
    [
        (10.0, 1e12, 1.0),  # costs that forbid: the rounding of sums with them
        (1e9, 1.0, 1e-5),  # a part that nothing can be done about: as far as its own rounding
        (10.0, 20.0, 1e-8),
        (0.0, 5.0, 5e-12),
    ],
)
def test_a_bound_is_met_up_to_the_lesser_of_it_and_an_ordinary_value(bound, ordinary, slack):
    assert met(bound, Magnitude(ordinary)) - bound == pytest.approx(slack, rel=0.05)
