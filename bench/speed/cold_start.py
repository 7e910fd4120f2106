"""The first solve after an installation, in a process that finds no compiled kernels, and that of the next process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd

import moe_search as ms

TITLE = "The first solve with no compiled kernels kept, and that of the next process; CPU seconds"
NOTES = """- The default is `ms.solve`, its bound included, for two seconds at most; the others are the solver alone.
- All end after 1,000 iterations. The import of the package is not counted; what a solver imports by itself is.
- Each row is one process in an empty folder of its own, and a second one that finds what the first has kept there.
"""
TIMED = """
import time
import moe_search as ms
problem = {problem}
started = time.process_time()
{solve}
print(time.process_time() - started)
"""
DEFAULT = "ms.solve(problem, stop=ms.AnyOf(ms.MaxIterations(1000), ms.MaxRuntime(2.0)))"
SOLVERS = {
    "Enumeration": "ms.Enumeration()",
    "BranchAndBound": "ms.BranchAndBound()",
    "CpSat": "ms.CpSat()",
    "Hungarian": "ms.Hungarian()",
    "MinCostFlow": "ms.MinCostFlow()",
    "Transport": "ms.Transport()",
    "TabuSearch": "ms.TabuSearch()",
    "BreakoutLocalSearch": "ms.BreakoutLocalSearch()",
    "MemeticSearch": "ms.MemeticSearch()",
    "LocalSearch": "ms.LocalSearch()",
    "LocalSearch, both": 'ms.LocalSearch("both")',
    "IteratedLocalSearch": "ms.IteratedLocalSearch()",
    "SimulatedAnnealing": "ms.SimulatedAnnealing()",
    "FrankWolfe": "ms.FrankWolfe()",
}
# Of a size that all solvers take; what is compiled does not depend on it.
PROBLEMS = {
    "linear": "ms.random_linear(8, seed=0)",
    "quadratic": "ms.random_quadratic(8, seed=0)",
    "quadratic, both asymmetric": "ms.random_quadratic(8, seed=0, symmetric=False)",
    "pairwise": "ms.random_pairwise(8, seed=0)",
    "mixture, squared": 'ms.random_mixture(8, num_samples=32, seed=0, k=2, loss="squared")',
    "mixture, cross-entropy": 'ms.random_mixture(8, num_samples=32, seed=0, k=2, loss="cross_entropy")',
    "load-limited quadratic": "ms.LoadLimited(ms.random_quadratic(8, seed=0), range(8), 8)",
}
# What the default solver takes depends on the size.
LARGER = {
    "linear of 2048 slots, 16 experts": "ms.random_linear(2048, 16, seed=0)",
    "quadratic of 11": "ms.random_quadratic(11, seed=0)",
    "quadratic of 12": "ms.random_quadratic(12, seed=0)",
    "quadratic of 30": "ms.random_quadratic(30, seed=0)",
    "pairwise of 16": "ms.random_pairwise(16, seed=0)",
    "mixture, squared, of 16": 'ms.random_mixture(16, num_samples=32, seed=0, k=2, loss="squared")',
    "mixture, cross-entropy, of 16": 'ms.random_mixture(16, num_samples=32, seed=0, k=2, loss="cross_entropy")',
    "load-limited quadratic of 16": "ms.LoadLimited(ms.random_quadratic(16, seed=0), range(16), 16)",
}


class Case(NamedTuple):
    """A solver on a problem, both by their names above."""

    solver: str
    problem: str


BARS = {
    Case("default", "quadratic"): 8.0,
    Case("default", "quadratic of 11"): 8.0,
    Case("default", "quadratic of 12"): 8.0,
    Case("default", "quadratic of 30"): 6.0,
    Case("Transport", "linear"): 4.0,
}


def cases() -> list[Case]:
    """Return the default solver on all problems, and every solver on each of those of one size that it takes."""
    problems = {name: eval(text, {"ms": ms}) for name, text in PROBLEMS.items()}
    solvers = {name: eval(text, {"ms": ms}) for name, text in SOLVERS.items()}
    return [Case("default", problem) for problem in PROBLEMS | LARGER] + [
        Case(name, problem)
        for name, solver in solvers.items()
        for problem, data in problems.items()
        if solver.reason_against(data) is None
    ]


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row for each solver and class of problems; processes are counted, not seconds."""
    rows = []
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (cpu_seconds(case, folder) for _ in range(2))
        bar = BARS.get(case)
        row = {"solver": case.solver, "problem": case.problem, "cold": cold, "next process": warm}
        rows.append(row | {"bar": bar, "met": None if bar is None else cold <= bar})
    return pd.DataFrame(rows)


def cpu_seconds(case: Case, folder: str) -> float:
    """Return the CPU seconds of a solve in a process of its own that keeps its kernels in a folder."""
    solver = SOLVERS.get(case.solver)
    solve = DEFAULT if solver is None else f"{solver}.solve(problem, ms.MaxIterations(1000))"
    text = TIMED.format(problem=(PROBLEMS | LARGER)[case.problem], solve=solve)
    environment = os.environ | {"NUMBA_CACHE_DIR": folder}
    command = [sys.executable, "-c", text]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
