import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from toy_experiment import TOY, run_trial

from moe_search.bench.experiments import report as page
from moe_search.bench.experiments.paired_statistics import (
    SHARES,
    TimedRun,
    compare_differences,
    compare_ratios,
    equal_time_table,
    holm,
)
from moe_search.bench.experiments.report import read_finished, tables
from moe_search.bench.experiments.run import run_experiment

SLOW = TimedRun((0.0, 1.0, 2.0, 4.0), (3.0, 2.0, 2.5, 1.0))
FAST = TimedRun((0.0, 0.5, 2.0), (3.0, 1.5, 1.8))


def naive_p(differences, alternative):
    """Wilcoxon's p by trying all signs of the midranks."""
    differences = [d for d in differences if d != 0]
    sizes = [abs(d) for d in differences]
    ranks = [sum(s < size for s in sizes) + (1 + sum(s == size for s in sizes)) / 2 for size in sizes]
    seen = sum(r for r, d in zip(ranks, differences, strict=True) if d > 0)
    all_sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    less = np.mean([s <= seen + 1e-9 for s in all_sums])
    greater = np.mean([s >= seen - 1e-9 for s in all_sums])
    return less if alternative == "less" else min(1.0, 2 * min(less, greater))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=8))
def test_p_against_all_signs(differences):
    baseline = [100.0] * len(differences)
    got = compare_differences(baseline, [100.0 + d for d in differences])
    expected = naive_p(differences, "two-sided") if any(differences) else 1.0
    assert got.p == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
def test_p_of_ratios_against_all_signs(exponents):
    # The baseline is 2**exponent times the other, and the claim is more than 2**4 times.
    other = [3.0] * len(exponents)
    got = compare_ratios([3.0 * 2.0**e for e in exponents], other, factor=2.0**4.5)
    assert got.p == pytest.approx(naive_p([4.5 - e for e in exponents], "less"), abs=1e-9)


def test_ten_seeds_all_better_are_significant_also_when_tied():
    got = compare_ratios([600.0] * 10, [5.0] * 10, factor=10.0)
    assert got.p == pytest.approx(1 / 1024)
    assert math.exp(-got.mean) == pytest.approx(120.0)
    assert (got.lower, got.pairs, got.rank_biserial) == (10, 10, -1.0)


def test_numbers_by_hand():
    got = compare_differences([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 3.0, 1.0])  # differences 1, 2, 0, -3
    assert got.mean == 0.0
    spread = math.sqrt((1 + 4 + 0 + 9) / 3)
    assert got.error == pytest.approx(spread / 2)
    assert got.standardized == 0.0
    assert got.rank_biserial == 0.0  # ranks 1 and 2 up, rank 3 down
    assert got.lower == 1
    one = compare_differences([1.0], [0.5])
    assert one.mean == -0.5
    assert math.isnan(one.error)
    assert math.isnan(one.standardized)


def test_no_difference_at_all():
    got = compare_differences([1.0, 2.0], [1.0, 2.0])
    assert (got.p, got.rank_biserial, got.mean) == (1.0, 0.0, 0.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(values):
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for done, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[index] * (len(values) - done) > level:
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(values)) if p <= level} == rejected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare_differences([1.0], [1.0, 2.0]), r"must come in pairs, .* got shapes \(1,\) and \(2,\)"),
        (lambda: compare_differences([], []), "must come in pairs, at least one"),
        (lambda: compare_differences([math.nan], [1.0]), "must be finite"),
        (lambda: compare_ratios([0.0], [1.0]), "ratios need positive numbers, got 0.0"),
        (lambda: compare_ratios([1.0], [1.0], factor=0.0), "factor must be a positive number, got 0.0"),
        (lambda: holm([1.5]), r"p-values must lie in \[0, 1\], got \[1.5\]"),
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


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
        assert (row["gate, share of the time"], row["seconds"]) == ("Hash, 100%", "8.00")
        assert (row["none"], row["search"]) == ("0.500 ± 0.000", "0.250 ± 0.000")
