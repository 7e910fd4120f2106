"""What `solve` takes by default against every candidate, at equal time: the measurements behind its choice."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import moe_search as ms
from moe_search.bench.datasets.qaplib import best_known_values

TITLE = "What solve takes by default, and every candidate: median gaps in percent"
NOTES = """- Gaps are to the best known value, or where none is known to the best that any of the runs has found.
- Each is the median of three seeds; runs end at the best known value. The time of `solve` includes its bound.
- The choice and the parameters were tuned on the instances marked so, on other grids of our making, and on no others.
- *as good*: whether the gap of the default is that of the best candidate, up to 0.05 points.
"""
SEEDS = 3
# The limits of time, in units of `seconds`.
LIMITS = (1.0, 10.0)
AS_GOOD = 0.05
CANDIDATES: dict[str, ms.Solver] = {
    "tabu": ms.TabuSearch(),
    "annealing": ms.SimulatedAnnealing(),
    "iterated": ms.IteratedLocalSearch(),
    "breakout": ms.BreakoutLocalSearch(),
    "memetic": ms.MemeticSearch(),
}
QAPLIB = {
    "uniform": ("tai30a", "tai50a", "tai100a"),
    "grid": ("nug30", "sko42", "sko72", "tho40", "wil50"),
    "real-like": ("tai50b", "ste36a", "kra30a", "bur26a", "esc32a", "lipa20a", "chr15a"),
}
TUNED_ON = ("tai50a", "tai100a", "sko72", "wil50")


class Case(NamedTuple):
    """An instance, and the best value that is known of it."""

    kind: str
    instance: str
    problem: ms.PermutationProblem
    known: int | None = None


def random_grid(size: int, seed: int) -> ms.QuadraticAssignment:
    """Return random flows between the cells of a grid as near to a square as the size allows, Manhattan distances."""
    rng = np.random.default_rng(seed)
    rows = next(rows for rows in range(int(size**0.5), 0, -1) if size % rows == 0)
    cells = np.stack(np.divmod(np.arange(size), size // rows), axis=1)
    flow = np.triu(rng.integers(0, 10, (size, size)), 1)
    return ms.QuadraticAssignment(flow + flow.T, np.abs(cells[:, None] - cells[None]).sum(axis=2))


def made() -> Iterator[Case]:
    """Yield instances of our own."""
    for size in (100, 150, 256):
        yield Case("grid, ours", f"grid of {size}", random_grid(size, seed=0))
    for size in (24, 40):
        yield Case("pairwise", f"pairwise of {size}", ms.random_pairwise(size, seed=0))
    mixtures = [
        ms.random_mixture(16, num_samples=128, seed=0),
        ms.random_mixture(32, 16, num_samples=256, seed=0, k=2, loss="cross_entropy"),
    ]
    for mixture in mixtures:
        yield Case("mixture", f"{mixture.loss} of {mixture.size}", mixture)
    loads = np.random.default_rng(0).integers(1, 9, 32)
    limited = ms.LoadLimited(mixtures[1], loads, int(np.ceil(1.2 * loads.sum() / 16)) + 4)
    yield Case("load-limited", "cross_entropy of 32", limited)


def of_qaplib(folder: Path) -> Iterator[Case]:
    """Yield the instances of a folder of QAPLIB files."""
    known = best_known_values(folder)
    for kind, names in QAPLIB.items():
        for name in names:
            yield Case(kind, name, ms.read_qaplib(folder / f"{name}.dat"), known.get(name))


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each instance and limit of time, `seconds` and ten times as many; without files ours alone."""
    cases = [*(() if qaplib is None else of_qaplib(qaplib)), *made()]
    return pd.DataFrame([row for case in cases for row in rows_of(case, seconds)])


def rows_of(case: Case, seconds: float) -> list[dict[str, object]]:
    """Return the rows of an instance, one a limit."""
    limits = [limit * seconds for limit in LIMITS]
    solvers: dict[str, ms.Solver | None] = {**CANDIDATES, "solve": None}
    results = {
        (name, limit): [run(case, solver, limit, seed) for seed in range(SEEDS)]
        for limit in limits
        for name, solver in solvers.items()
        if solver is None or solver.refuses(case.problem) is None
    }
    found = min(result.value for each in results.values() for result in each)
    best = found if case.known is None else case.known
    rows: list[dict[str, object]] = []
    for limit in limits:
        gaps = {
            name: 100.0 * (statistics.median(result.value for result in results[name, limit]) - best) / (abs(best) or 1)
            for name in solvers
            if (name, limit) in results
        }
        taken = results["solve", limit][0].solver.split("(")[0]
        rows.append(
            {"kind": case.kind, "instance": case.instance, "tuned": case.instance in TUNED_ON, "seconds": limit}
            | {name: gaps.get(name, np.nan) for name in CANDIDATES}
            | {"solve": gaps["solve"], "solve takes": taken}
            | {"as good": gaps["solve"] <= min(gaps[name] for name in gaps if name != "solve") + AS_GOOD}
        )
    return rows


def run(case: Case, solver: ms.Solver | None, seconds: float, seed: int) -> ms.Result:
    """Return what a solver, or `solve` by default, finds within a time, kernels compiled before."""
    stop: ms.StoppingCriterion = ms.MaxRuntime(seconds)
    if case.known is not None:
        stop = ms.AnyOf(stop, ms.TargetValue(case.known))
    return ms.solve(case.problem, stop=stop, seed=seed) if solver is None else solver.solve(case.problem, stop, seed)
