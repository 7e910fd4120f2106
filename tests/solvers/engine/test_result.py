import json
import math
import platform

import matplotlib as mpl
import numpy as np
import pytest

from moe_search.problems import random_mixture, random_quadratic
from moe_search.solvers import LocalSearch, MaxIterations, Result
from moe_search.solvers.engine.result import relative_gap

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


def test_summary_plot_and_immutability():
    result = LocalSearch().solve(random_quadratic(8, seed=1), MaxIterations(2000), seed=4)
    assert f"value      {result.value:,}" in result.summary()
    assert "bound      none" in result.summary()
    assert f"versions   python {platform.python_version()}, moe-search " in result.summary()
    ax = result.plot()
    assert ax.get_xlabel() == "seconds"
    assert ax.lines[0].get_ydata()[-1] == result.value
    with pytest.raises(AttributeError):
        result.value = 3
    with pytest.raises(ValueError, match="read-only"):
        result.permutation[0] = 3
