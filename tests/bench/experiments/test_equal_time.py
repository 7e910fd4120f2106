from dataclasses import replace

import pytest
from toy_experiment import TOY, run_trial

from moe_search.bench.experiments import report as page
from moe_search.bench.experiments.paired_statistics import SHARES, TimedRun, equal_time_table
from moe_search.bench.experiments.report import read_finished, tables
from moe_search.bench.experiments.run import run_experiment

SLOW = TimedRun((0.0, 1.0, 2.0, 4.0), (3.0, 2.0, 2.5, 1.0))
FAST = TimedRun((0.0, 0.5, 2.0), (3.0, 1.5, 1.8))


def test_best_loss_by_a_time():
    assert [SLOW.best_by(time) for time in (0.0, 0.99, 1.0, 3.99, 4.0, 9.0)] == [3.0, 3.0, 2.0, 2.0, 1.0, 1.0]
    assert (SLOW.end, FAST.end) == (4.0, 2.0)


def test_a_pair_is_compared_where_the_one_that_ended_first_did():
    table = equal_time_table({"Top-k": [(SLOW, FAST)] * 2, "Hash": []}, "sinkhorn", "search")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert SHARES == (0.25, 0.5, 1.0)
    assert [row["gate, share of the time"] for row in rows] == ["Top-k, 25%", "Top-k, 50%", "Top-k, 100%"]
    assert [row["seconds"] for row in rows] == ["0.50", "1.00", "2.00"]
    assert [row["sinkhorn"] for row in rows] == ["3.000 ± 0.000", "2.000 ± 0.000", "2.000 ± 0.000"]
    assert [row["search"] for row in rows] == ["1.500 ± 0.000"] * 3
    assert [row["difference"] for row in rows] == ["-1.500 ± 0.000", "-0.500 ± 0.000", "-0.500 ± 0.000"]
    assert [row["lower in"] for row in rows] == ["2 of 2"] * 3


def test_the_test_is_wilcoxons_over_the_pairs():
    # Five differences of one sign, all unlike: 2 of the 32 signs are as extreme. Three rows are adjusted for.
    pairs = [(TimedRun((0.0, 1.0), (3.0, 3.0)), TimedRun((0.0, 1.0), (2.0 - i / 10, 5.0))) for i in range(5)]
    table = equal_time_table({"COMET": pairs}, "sinkhorn", "search")
    row = dict(zip(table.columns, table.rows[2], strict=True))
    assert (row["p"], row["Holm"], row["r"]) == ("0.0625", "0.1875", "-1.00")


@pytest.mark.parametrize(
    ("seconds", "losses", "message"),
    [
        ((0.0, 1.0), (1.0,), "there must be as many seconds as losses, got 2 and 1"),
        ((), (), r"seconds must rise from 0, got \[\]"),
        ((0.5, 1.0), (1.0, 1.0), r"seconds must rise from 0, got \[0.5, 1.0\]"),
        ((0.0, 2.0, 1.0), (1.0, 1.0, 1.0), r"seconds must rise from 0, got \[0.0, 2.0, 1.0\]"),
    ],
)
def test_what_timed_runs_may_be(seconds, losses, message):
    with pytest.raises(ValueError, match=message):
        TimedRun(seconds, losses)


def test_what_may_be_compared_at_equal_time():
    with pytest.raises(ValueError, match="a search of equal_time must be one of none, search, got 'sinkhorn'"):
        replace(TOY, equal_time=("sinkhorn", "search"))


def run_of_another_version(*arguments):
    return {name: value for name, value in run_trial(*arguments).items() if name != "cpu_seconds"}


@pytest.mark.parametrize(("run", "count"), [(run_trial, 4), (run_of_another_version, 3)])
def test_table_of_an_experiment(tmp_path, monkeypatch, run, count):
    timed = replace(TOY, equal_time=("none", "search"), run_trial=run)
    monkeypatch.setattr(page, "find_experiment", lambda name: timed)
    run_experiment(timed, tmp_path)
    (found,) = read_finished(tmp_path)
    shown = tables(found)
    assert len(shown) == count
    if count == 4:
        row = dict(zip(shown[-1].columns, shown[-1].rows[2], strict=True))
        assert (row["gate, share of the time"], row["pairs"], row["seconds"]) == ("Hash, 100%", "3", "8.00")
        assert (row["none"], row["search"]) == ("0.500 ± 0.000", "0.250 ± 0.000")
