import pytest

from moe_search.bench.speed import bound_gap, branch_and_bound_speed, faq_comparison, transport_speed
from moe_search.problems import random_quadratic, write_qaplib
from moe_search.solvers import Enumeration, MaxRuntime


def test_branch_and_bound_says_which_bars_are_met(tmp_path, monkeypatch):
    problem = random_quadratic(7, seed=0)
    for name in ("one", "two", "three"):
        write_qaplib(tmp_path / f"{name}.dat", problem)
    monkeypatch.setattr(branch_and_bound_speed, "BARS", {"one": 60.0, "two": 1e-9, "three": None})
    table = branch_and_bound_speed.measure(tmp_path, 1.0)
    assert table["met"].tolist() == [True, False, None]
    assert table["proved"].tolist() == [True, False, True]
    assert table["value"][0] == table["bound"][0] == Enumeration().solve(problem, MaxRuntime(60.0)).value
    assert branch_and_bound_speed.measure(None, 1.0)["instance"].tolist() == ["random 8", "random 10", "random 12"]


def test_transport_compares_in_turns_at_equal_optima(monkeypatch):
    cases = (transport_speed.Case(64, 4, False, 0.0), transport_speed.Case(64, 4, True, 1e9))
    monkeypatch.setattr(transport_speed, "CASES", cases)
    table = transport_speed.measure(None, 0.05)
    assert table["instance"].tolist() == ["64 x 4", "64 x 4, skewed"]
    assert table["met"].tolist() == [True, False]
    assert (table["ratio"] > 0).all()


def test_unequal_optima_are_an_error(monkeypatch):
    class Wrong(transport_speed.ms.MinCostFlow):
        def solve(self, problem, *arguments):
            return super().solve(type(problem)(2 * problem.cost), *arguments)

    monkeypatch.setattr(transport_speed, "CASES", (transport_speed.Case(8, 2, False, 0.0),))
    monkeypatch.setattr(transport_speed.ms, "MinCostFlow", Wrong)
    with pytest.raises(RuntimeError, match="the optima differ"):
        transport_speed.measure(None, 0.05)


def test_faq_gets_its_starts_and_we_get_its_time():
    table = faq_comparison.measure(None, 0.1)
    assert table["instance"].tolist() == ["random 12", "random 30"]
    assert (table["met"] == (table["ours"] <= table["peer"])).all()
    assert (table["seconds"] > 0).all()


def test_gaps_of_bounds(tmp_path, monkeypatch):
    assert bound_gap.measure(None, 1.0).empty
    problem = random_quadratic(6, seed=0)
    write_qaplib(tmp_path / "six.dat", problem)
    optimum = Enumeration().solve(problem, MaxRuntime(60.0)).value
    (tmp_path / "best_known.csv").write_text(f"name,best_known_value\nsix,{optimum}\n")
    monkeypatch.setattr(bound_gap, "BARS", {"six": 5.0})
    (row,) = bound_gap.measure(tmp_path, 0.1).to_dict("records")
    gaps = [row[name] for name in ("gilmore-lawler", "projection", "semidefinite")]
    assert row["best"] == min(gaps) >= 0.0
    assert row["met"] == (row["best"] <= 5.0)
