"""What importing loads, and what a second process finds in the cache."""

import json
import os
import subprocess
import sys


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
    unused = {
        "branch_and_bound",
        "cp_sat",
        "local_search",
        "expert_flow",
        "multi_start",
        "simulated_annealing",
        "transport",
    }
    assert "moe_search.solvers.heuristic.tabu_search" in loaded
    assert not unused & {name.split(".")[-1] for name in loaded}


SOLVES = """
import json, moe_search as ms
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    stop = ms.MaxIterations(100)
    for problem in {problems}:
        for solver in {solvers}:
            ms.solve(problem, solver, stop)
print(json.dumps(sorted({{each.data["dispatcher"].py_func.__name__ for _, each in recorder.buffer}})))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    one = SOLVES.format(problems="[ms.random_pairwise(4, seed=0)]", solvers="[ms.Enumeration()]")
    assert "enumerate_slice" in python(one, NUMBA_CACHE_DIR=str(tmp_path))
    # The first process compiles what no other test has needed before, into the cache of all tests.
    code = SOLVES.format(
        problems="(ms.random_quadratic(12, seed=0), ms.random_mixture(12, num_samples=9, seed=0),"
        " ms.random_pairwise(4, seed=0))",
        solvers="(None, ms.TabuSearch(), ms.LocalSearch(), ms.IteratedLocalSearch(), ms.SimulatedAnnealing())",
    )
    python(code)
    assert python(code) == []
