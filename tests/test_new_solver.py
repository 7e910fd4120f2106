"""The example of a new solver runs, and is held to what every solver must do."""

import importlib
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from instances import INSTANCES, naive_value

import moe_search as ms

TEXT = (Path(__file__).parents[1] / "docs" / "new_solver.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "threshold_accepting.py"
    path.write_text(BLOCKS[0], encoding="utf-8")
    sys.path.insert(0, str(path.parent))
    yield vars(importlib.import_module(path.stem))
    sys.path.remove(str(path.parent))


def test_the_example_prints_what_it_found(names, capsys):
    scope = {}
    exec(BLOCKS[1], scope)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "iterations: ThresholdAccepting(" in lines[0]
    exec(BLOCKS[2], scope)
    assert scope["greedy"].threshold == 0.0


@pytest.mark.parametrize("name", ["linear", "quadratic general", "pairwise", "mixture squared"])
def test_the_example_is_a_good_solver(names, name):
    problem = INSTANCES[name](5)
    solver = names["ThresholdAccepting"]()
    best = ms.Enumeration().solve(problem, ms.MaxRuntime(60.0))
    shown = []
    start = problem.random_solution(np.random.default_rng(0))
    values = [
        solver.solve(problem, ms.MaxIterations(3000), seed, start, on_improvement=shown.append).value
        for seed in range(10)
    ]
    assert min(values) == pytest.approx(best.value, rel=1e-9)
    assert naive_value(problem, shown[-1].permutation) == pytest.approx(values[-1], rel=1e-9)
    first, second = (solver.solve(problem, ms.MaxIterations(700), seed=3) for _ in range(2))
    assert first.permutation.tolist() == second.permutation.tolist()
    kept = solver.solve(problem, ms.MaxIterations(1), initial=best.permutation)
    assert kept.value == pytest.approx(best.value, rel=1e-9)


def test_a_search_that_returns_no_result_is_told_so():
    class Forgetful(ms.Solver):
        def search(self, run):
            run.take_initial()

    problem = ms.random_linear(6, seed=0)
    for solve in (Forgetful().solve, ms.MultiStart(Forgetful(), runs=2).solve, partial(ms.solve, solver=Forgetful())):
        with pytest.raises(TypeError, match="Forgetful must return a Result, got NoneType"):
            solve(problem, stop=ms.MaxIterations(1))
