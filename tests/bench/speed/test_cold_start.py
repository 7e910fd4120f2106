"""The benchmark of first solves: what it takes up, and a row of it."""

from moe_search.bench.speed import cold_start
from moe_search.bench.speed.cold_start import Case


def test_every_solver_is_measured_on_every_class_that_it_takes(monkeypatch):
    cases = cold_start.cases()
    assert len(set(cases)) == len(cases)
    assert set(cold_start.BARS) <= set(cases)
    assert {case.solver for case in cases} == {"default", *cold_start.SOLVERS}
    assert Case("Hungarian", "linear") in cases
    assert Case("Hungarian", "quadratic") not in cases
    hungarian = Case("Hungarian", "linear")
    monkeypatch.setattr(cold_start, "cases", lambda: [hungarian])
    monkeypatch.setitem(cold_start.BARS, hungarian, 0.0)
    row = cold_start.measure(None, seconds=0.01).iloc[0]
    assert (row["solver"], row["problem"], row["met"]) == ("Hungarian", "linear", False)
    assert min(row["cold"], row["next process"]) > 0
