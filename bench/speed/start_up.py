"""Import to the first result in a process of its own, beside what Numba alone needs for one cached function."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import typer

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
    """Return one row a way to solve a random quadratic problem of 30 locations.

    Parameters
    ----------
    qaplib : Path or None
        Not needed.
    seconds : float
        Not needed: processes are counted, not seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        floor = Path(folder) / "floor.py"
        floor.write_text(TIMED.format(work=NUMBA_ALONE), encoding="utf-8")
        scripts = {name: Path(folder) / f"ours{number}.py" for number, name in enumerate(OURS)}
        for name, script in scripts.items():
            work = f"import moe_search as ms\nproblem = ms.random_quadratic(30, seed=0)\nms.{OURS[name]}"
            script.write_text(TIMED.format(work=work), encoding="utf-8")
        for script in (floor, *scripts.values()):
            first_result(script, Path(folder))
        rounds = [[first_result(script, Path(folder)) for script in (floor, *scripts.values())] for _ in range(ROUNDS)]
    alone, *ours = ([run[0] for run in column] for column in zip(*rounds, strict=True))
    heavy = [sorted({module for run in column for module in run[1]}) for column in zip(*rounds, strict=True)][1:]
    return pd.DataFrame(
        [
            {
                "way": name,
                "seconds": statistics.median(column),
                "least": min(column),
                "one cached Numba function": statistics.median(alone),
                "ratio": statistics.median(mine / floor for mine, floor in zip(column, alone, strict=True)),
                "bar": BAR,
                "met": "yes" if statistics.median(column) <= BAR else "no",
                "heavy modules loaded": ", ".join(modules) or "none",
            }
            for name, column, modules in zip(scripts, ours, heavy, strict=True)
        ]
    )


def first_result(script: Path, cache: Path) -> tuple[float, list[str]]:
    """Return the seconds that a script took in a new process, and the heavy modules it loaded.

    Raises
    ------
    subprocess.CalledProcessError
        If the script fails.
    """
    done = subprocess.run(
        [sys.executable, script],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache)},
    )
    taken, *modules = done.stdout.split()
    return float(taken), modules


def main() -> None:
    """Print the table."""
    typer.echo(measure(None, 1.0).to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
