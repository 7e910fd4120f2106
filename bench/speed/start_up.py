"""Import to the first result in a process of its own, beside what Numba alone needs for one cached function."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import pandas as pd

from moe_search.bench.speed.rounds import in_turns

TITLE = "Import to the first result, in a process of its own with a warm cache; median of the rounds"
BAR = 0.8
ROUNDS = 7
TIMED = """
import sys, time
started = time.perf_counter()
{work}
seconds = time.perf_counter() - started
print(seconds, *[name for name in ("torch", "ortools", "matplotlib") if name in sys.modules])
"""
NUMBA_ALONE = """
import numba, numpy
@numba.njit(cache=True)
def total(values):
    result = 0.0
    for i in range(values.size):
        result += values[i]
    return result
total(numpy.zeros(3))
"""
OURS = {
    "default solve()": "solve(problem, stop=ms.MaxIterations(1000))",
    "solve(LocalSearch())": "solve(problem, ms.LocalSearch(), ms.MaxIterations(1000))",
    "LocalSearch().solve()": "LocalSearch().solve(problem, ms.MaxIterations(1000))",
}


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row a way to solve a random quadratic problem of 30 locations; processes are counted, not seconds."""
    loaded: dict[str, set[str]] = defaultdict(set)
    with tempfile.TemporaryDirectory() as folder:

        def first_result(name: str, work: str) -> float:
            script = Path(folder) / f"{name}.py"
            script.write_text(TIMED.format(work=work), encoding="utf-8")
            environment = os.environ | {"NUMBA_CACHE_DIR": folder}
            done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, env=environment)
            taken, *modules = done.stdout.split()
            loaded[name].update(modules)
            return float(taken)

        problem = "import moe_search as ms\nproblem = ms.random_quadratic(30, seed=0)\nms."
        works = {"floor": NUMBA_ALONE} | {name: problem + way for name, way in OURS.items()}
        ways = [partial(first_result, name, work) for name, work in works.items()]
        in_turns(ways, 1)  # compiles
        alone, *ours = in_turns(ways, ROUNDS)
    return pd.DataFrame(
        [
            {
                "way": name,
                "seconds": statistics.median(taken),
                "least": min(taken),
                "one cached Numba function": statistics.median(alone),
                "ratio": statistics.median(mine / floor for mine, floor in zip(taken, alone, strict=True)),
                "bar": BAR,
                "met": statistics.median(taken) <= BAR,
                "heavy modules loaded": ", ".join(sorted(loaded[name])) or "none",
            }
            for name, taken in zip(OURS, ours, strict=True)
        ]
    )
