"""Distributions over runs, counted by hand."""

import numpy as np
import pytest

import moe_search as ms
from moe_search.analysis import run_time_distribution, solution_quality_distribution


def run(*points, runtime=10.0, iterations=100):
    """A run that found (seconds, value, iteration) after another."""
    trajectory = tuple(ms.TrajectoryPoint(*point) for point in points) if points else ()
    value = points[-1][1]
    return ms.Result([0], value, None, "feasible", trajectory, iterations, 0, 0, runtime, 0, "Made()")


RUNS = [
    run((0.0, 90, 0), (1.0, 60, 5), (3.0, 50, 30)),
    run((0.0, 70, 0), (2.0, 55, 20)),
    run((0.0, 80, 0), (4.0, 50, 40)),
    run((0.0, 50, 0)),
]


@pytest.mark.parametrize("unit", ["seconds", "iterations"])
@pytest.mark.parametrize("target", [49, 50, 55, 60, 95])
def test_the_share_of_runs_at_the_target_by_a_time(unit, target):
    reached = run_time_distribution(RUNS, target, unit)
    for time in (0, 0.5, 1, 2, 3, 5, 20, 30, 39, 40, 1000):
        by_then = [
            any(
                p.value <= target and (p.seconds if unit == "seconds" else p.iteration) <= time for p in each.trajectory
            )
            for each in RUNS
        ]
        assert reached.evaluate(time) == pytest.approx(np.mean(by_then))


def test_a_run_that_ended_early_counts_up_to_its_end():
    # Kaplan and Meier: after the first of three runs, two are left; one of these ends, so half of the rest is one run.
    runs = [run((0.0, 9, 0), (1.0, 5, 1)), run((0.0, 9, 0), runtime=2.0), run((0.0, 9, 0), (3.0, 5, 9))]
    reached = run_time_distribution(runs, 5)
    assert reached.evaluate([0.5, 1.0, 2.5, 3.0]).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1.0])


def test_the_quality_by_a_time():
    quality = solution_quality_distribution(RUNS, 2.0, 50)
    assert quality.quantiles.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.6])
    assert quality.probabilities.tolist() == [0.25, 0.5, 0.75, 1.0]
    later = solution_quality_distribution(RUNS, 40, 50, "iterations")
    assert later.evaluate([0.0, 0.1]).tolist() == [0.75, 1.0]
    assert solution_quality_distribution(RUNS, 0.0, -50).quantiles.min() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run_time_distribution([], 1), "results must hold at least one run, got none"),
        (lambda: run_time_distribution(RUNS, 1, "hours"), "unit must be one of seconds, iterations, got 'hours'"),
        (lambda: run_time_distribution(RUNS, float("nan")), "target must be a finite number, got nan"),
        (lambda: solution_quality_distribution(RUNS, 1.0, 0), "reference must not be 0"),
        (lambda: solution_quality_distribution(RUNS, 1.0, float("nan")), "reference must be a finite number, got nan"),
        (
            lambda: solution_quality_distribution([run((1.0, 5, 0))], 0.5, 5),
            "leave every run an incumbent, got 0.5 sec",
        ),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
