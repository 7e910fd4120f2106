"""The suites have enough data sets for their tests, and end in time."""

import re
from collections import defaultdict
from itertools import product

import pytest
import yaml

from moe_search.bench.comparison.dataset_files import DATASETS
from moe_search.bench.comparison.run_log import RunLog, duration, plan, skips
from moe_search.bench.comparison.scores import LEVEL
from moe_search.bench.comparison.settings import SUITES
from moe_search.bench.comparison.solvers import SOLVERS


def problems_of(suite):
    """The problems of the patterns of a suite, by class."""
    found = defaultdict(list)
    for pattern in SUITES[suite].datasets:
        name, _, chosen = pattern.partition("[")
        values = dict(DATASETS[name].parameters)
        for key, text in re.findall(r"(\w+)=(\[[^]]*\]|[^,\]]+)", chosen):
            value = yaml.safe_load(text)
            values[key] = value if isinstance(value, list) else [value]
        for each in product(*values.values()):
            problem = DATASETS[name].load(**dict(zip(values, each, strict=True)))["problem"]
            found[type(problem).__name__].append(problem)
    return found


def test_the_default_suite_can_tell_pairs_apart_and_ends_in_a_quarter_of_an_hour():
    suite, runs = SUITES["small"], 0
    for name, problems in problems_of("small").items():
        takes = {solver: [make().refuses(problem) is None for problem in problems] for solver, make in SOLVERS.items()}
        runs += sum(map(sum, takes.values()))
        judged = sum(map(all, takes.values()))
        # All signs agree: no p-value is smaller. Holm multiplies it by the number of pairs.
        assert 2.0 ** (1 - len(problems)) * judged * (judged - 1) / 2 <= LEVEL / 2, name
    # A second core halves it; to start a run takes about as long as the run.
    assert runs * suite.repetitions * suite.seconds <= 7 * 60


CELLS = [
    {"dataset": dataset, "solver": solver, "reason": reason}
    for dataset, solver, reason in (
        ("one", "a", None),
        ("one", "b", "it has 12 slots, 10 at most"),
        ("two", "a", None),
        ("two", "b", "it has 1,000 slots, 10 at most"),
        ("three", "a", None),
        ("three", "b", None),
    )
]


def test_one_line_says_what_a_solver_skips_and_why():
    assert skips(CELLS) == ["b skips 2 of 3 data sets: it has 12 slots, 10 at most"]


def test_the_plan_states_the_arithmetic():
    assert plan(CELLS, 5, 30.0, 2).startswith(
        "2 solvers, 3 data sets: 4 pairs x 5 repetitions x 30 s / 2 at a time = 5 min 0 s"
    )


def test_the_log_has_a_line_for_each_data_set_one_for_each_failure_and_a_total(capsys):
    log = RunLog(CELLS, 2)
    for repetition in range(2):
        log.take("three", "a", repetition, None, is_cached=False)
        log.take("one", "a", repetition, None, is_cached=repetition == 0)
        log.take("three", "b", repetition, "no luck" if repetition else None, is_cached=False)
        log.take("two", "a", repetition, None, is_cached=False)
    log.end()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "6 of 8  one: 2 done, 1 from the cache",
        "failed: b on three, repetition 1: no luck",
        "7 of 8  three: 3 done, 1 failed",
        "8 of 8  two: 2 done",
    ]
    assert re.fullmatch(r"8 runs in \d s: 7 done, 1 failed, 1 from the cache", lines[4])
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (303, "5 min 3 s"), (3900, "1 h 5 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
