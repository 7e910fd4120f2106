"""The example of a new problem runs, and its class is held to what every class must do."""

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import moe_search as ms
from moe_search.solvers.bounds.lower_bounds import lower_bound

TEXT = (Path(__file__).parents[1] / "docs" / "new_problem.md").read_text(encoding="utf-8")
TRIED, FILE, CHECKED, SOLVED = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def linear_ordering(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "linear_ordering.py"
    path.write_text(FILE, encoding="utf-8")
    sys.path.insert(0, str(path.parent))
    yield importlib.import_module(path.stem)
    sys.path.remove(str(path.parent))


def naive_value(cost, p):
    return sum(cost[i][j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])


def test_the_examples_run_and_agree(linear_ordering, capsys):
    scope = {}
    exec(TRIED, scope)
    exec(CHECKED, {})
    solved = {}
    exec(SOLVED, solved)
    lines = capsys.readouterr().out.splitlines()
    assert sum("above the optimum" in line for line in lines) == 3
    assert "BranchAndBound" in "".join(lines)
    best = ms.BranchAndBound().solve(solved["small"], ms.MaxRuntime(60.0))
    assert best.status == "optimal"
    assert best.value <= scope["tried"].value
    assert best.value == naive_value(scope["cost"].tolist(), best.permutation.tolist())


@pytest.mark.parametrize("floats", [False, True])
def test_all_kinds_of_solvers_find_the_optimum(linear_ordering, floats):
    cost = np.random.default_rng(3).integers(-50, 50, (6, 6)) * (0.5 if floats else 1)
    problem = linear_ordering.LinearOrdering(cost)
    values = [naive_value(cost.tolist(), p) for p in itertools.permutations(range(6))]
    low, high = problem.value_range()
    assert low <= min(values) <= max(values) <= high
    assert lower_bound(problem, 1.0) <= min(values)
    for solver in (ms.Enumeration(), ms.BranchAndBound(), ms.CpSat()):
        result = solver.solve(problem, ms.MaxRuntime(60.0))
        assert (result.value, result.status) == (pytest.approx(min(values), rel=1e-9), "optimal")
    for solver in (ms.TabuSearch(), ms.LocalSearch("both", "best")):
        assert solver.solve(problem, ms.MaxIterations(3000)).value == pytest.approx(min(values), rel=1e-9)


def test_a_program_without_the_class_still_finds_its_kernels(linear_ordering):
    problem = linear_ordering.LinearOrdering(np.arange(9).reshape(3, 3))
    ms.Enumeration().solve(problem, ms.MaxRuntime(60.0))
    code = "import moe_search as ms; print(ms.solve(ms.random_linear(3, seed=0), ms.Enumeration()).status)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "optimal"


def test_load_limits_can_be_put_on_it(linear_ordering):
    cost = np.random.default_rng(5).integers(0, 50, (5, 5))
    limited = ms.LoadLimited(linear_ordering.LinearOrdering(cost), [9, 1, 1, 1, 1], [1, 1, 9, 1, 1])
    values = [naive_value(cost.tolist(), p) for p in itertools.permutations(range(5)) if p[0] == 2]
    for solver in (ms.Enumeration(), ms.CpSat()):
        assert solver.solve(limited, ms.MaxRuntime(60.0)).value == min(values)
