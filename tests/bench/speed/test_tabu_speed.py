import numpy as np
import pytest

from moe_search.bench.peers.textbook import advance, textbook_tabu
from moe_search.bench.speed import tabu_gap, tabu_speed
from moe_search.problems import random_quadratic, write_qaplib
from moe_search.solvers import MaxIterations, TabuSearch


@pytest.mark.slow
@pytest.mark.parametrize("solver", [TabuSearch(), TabuSearch((0.5, 0.7), 0.4)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_textbook_makes_the_same_moves(solver, symmetric):
    problem = random_quadratic(11, seed=3, symmetric=symmetric)
    initial = problem.random_solution(np.random.default_rng(1))
    twin = textbook_tabu(problem, initial, seed=8)
    best = [advance(twin, iterations, solver) for iterations in (1, 9, 90, 900)]
    ours = [solver.solve(problem, MaxIterations(total), 8, initial).value for total in (1, 10, 100, 1000)]
    assert best == ours
    assert twin.totals[0] == problem.value(twin.permutation)


def test_measure_compares_in_turns_and_says_which_bars_are_met(monkeypatch):
    monkeypatch.setattr(tabu_speed, "BARS", {10: 0.0, 12: 1e9})
    table = tabu_speed.measure(None, 0.05)
    assert table["met"].tolist() == [True, False]
    assert (table["ours"] > 0).all()
    assert (table["peer"] > 0).all()


def test_gaps_need_the_best_known_values(tmp_path, monkeypatch):
    assert tabu_gap.measure(None, 1.0).empty
    problem = random_quadratic(6, seed=0)
    write_qaplib(tmp_path / "six.dat", problem)
    best = TabuSearch().solve(problem, MaxIterations(500)).value
    (tmp_path / "best_known.csv").write_text(f"name,best_known_value\nsix,{best}\n")
    monkeypatch.setattr(tabu_gap, "BARS", (tabu_gap.Bar("six", 2, 0.0),))
    (row,) = tabu_gap.measure(tmp_path, 0.02).to_dict("records")
    assert row == {"instance": "six", "seconds": 0.04, "gap": 0.0, "best": 0.0, "worst": 0.0, "bar": 0.0, "met": True}
