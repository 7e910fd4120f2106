"""What importing loads, which names there are, and what a second process finds in the cache."""

import importlib
import json
import os
import subprocess
import sys

import pytest

import moe_search as ms


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ | environment
    )
    return json.loads(done.stdout)


HEAVY = "('torch', 'ortools', 'matplotlib', 'sklearn', 'pandas')"


def test_import_loads_nothing_heavy():
    loaded = python(
        "import json, sys, moe_search; dir(moe_search);"
        f"print(json.dumps([name for name in (*{HEAVY}, 'numba', 'scipy') if name in sys.modules]))"
    )
    assert loaded == []


def test_a_heuristic_solve_loads_no_torch_ortools_or_matplotlib():
    loaded = python(
        "import json, sys, moe_search as ms;"
        "ms.solve(ms.random_quadratic(12, seed=0), stop=ms.MaxIterations(100));"
        f"print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    )
    assert loaded == []


def test_a_solve_declares_the_kernels_of_no_other_solver():
    loaded = python(
        "import json, sys, moe_search as ms;"
        "ms.solve(ms.random_quadratic(30, seed=0), stop=ms.MaxIterations(100));"
        "print(json.dumps([name for name in sys.modules if name.startswith('moe_search.solvers.')]))"
    )
    unused = {"branch_and_bound", "cp_sat", "descent", "expert_flow", "multi_start", "simulated_annealing", "transport"}
    assert "moe_search.solvers.heuristic.tabu_search" in loaded
    assert not unused & {name.split(".")[-1] for name in loaded}


@pytest.mark.parametrize("name", ms.solvers.__all__)
def test_every_solver_name_is_there(name):
    assert name in dir(ms.solvers)
    assert getattr(ms.solvers, name).__name__ == name


def test_an_unknown_solver_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"No moe_search\.solvers attribute AntColony"):
        _ = ms.solvers.AntColony
    with pytest.raises(ImportError, match="AntColony"):
        from moe_search.solvers import AntColony  # noqa: F401


def test_a_second_process_compiles_nothing(tmp_path):
    code = """
import json, moe_search as ms
from moe_search.solvers.exact import enumeration
from moe_search.solvers.heuristic import iterated_descent, tabu_search
for problem in (ms.random_quadratic(12, seed=0), ms.random_mixture(9, 12, seed=0), ms.random_pairwise(4, seed=0)):
    ms.solve(problem, stop=ms.MaxIterations(100))
ms.solve(ms.random_quadratic(12, seed=0), ms.IteratedLocalSearch(), ms.MaxIterations(100))
kernels = tabu_search.tabu_slice, tabu_search.fill_slice, iterated_descent.iterate_slice, enumeration.enumerate_slice
print(json.dumps([[sum(k.stats.cache_hits.values()), sum(k.stats.cache_misses.values())] for k in kernels]))
"""
    first = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    second = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert all(misses > 0 for _, misses in first)
    assert all(misses == 0 and hits > 0 for hits, misses in second)


@pytest.mark.parametrize("name", ms.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(ms, name)
    assert name in dir(ms)
    assert isinstance(value, str) or value.__doc__


def test_names_agree_with_their_packages():
    for home in ("gates", "layers", "problems", "solvers", "training"):
        package = importlib.import_module(f"moe_search.{home}")
        for name in package.__all__:
            if name in ms.__all__:
                assert getattr(ms, name) is getattr(package, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No moe_search attribute solver"):
        _ = ms.solver


def test_imports_run_one_way():
    # In a new process each, since this one has loaded everything.
    for package, forbidden in (("problems", "solvers"), ("solvers", "torch")):
        loaded = python(
            f"import json, sys, moe_search.{package};"
            f"print(json.dumps([m for m in sys.modules if m.split('.')[-1] == '{forbidden}' or 'bench' in m]))"
        )
        assert [name for name in loaded if name.startswith(("moe_search", "torch"))] == []
