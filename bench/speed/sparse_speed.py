"""Speed of searches where few flows are not zero: kernels over neighbors against those for dense matrices, one core."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pandas as pd
from scipy.sparse import csr_array

import moe_search as ms
from moe_search.bench.speed.rounds import compared, in_turns
from moe_search.problems.arrays import dense
from moe_search.problems.dense_quadratic import dense_arrays
from moe_search.problems.sparse_quadratic import SPARSE_FROM, SPARSE_SHARE

TITLE = "Sparse flows: kernels over neighbors against those for dense matrices, CPU seconds"
NOTES = f"""
Random integer flows, symmetric, to so many others on average; dense distances. An evaluation is the delta of a swap, a
move of tabu search brings those of all swaps up to date. Both find the same. Of `peer` the rates are those of the dense
kernels, which `QuadraticAssignment` takes below {SPARSE_FROM} facilities, or where more than a share of
{SPARSE_SHARE:g} of the flows is not zero.

"""
# Facilities, flows of each, and million evaluations a second asked for.
EVALUATIONS: tuple[tuple[int, int, float | None], ...] = (
    (256, 4, None),
    (512, 10, None),
    (1000, 20, None),
    (1000, 4, 15.0),
    (2000, 4, None),
    (5000, 4, None),
)
MOVES = ((256, 4), (1000, 4))
ROUNDS = 3


class DenseQuadratic(ms.QuadraticAssignment):
    """A quadratic assignment on the kernels for dense matrices, whatever they hold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        arrays = dense_arrays(dense(self.flow), self.distance, self.linear)
        object.__setattr__(self, "kernel_arrays", arrays)


def rate(solver: ms.Solver, problem: ms.QuadraticAssignment, seconds: float) -> float:
    """Return the iterations a second of processor time, that of the start left out."""
    result = solver.solve(problem, ms.MaxIterations(1), seed=0)
    started = time.process_time()
    solver.solve(problem, ms.MaxIterations(1), seed=0)
    start = time.process_time() - started
    started = time.process_time()
    # The start is what takes long of large problems.
    result = solver.solve(problem, ms.MaxRuntime(2 * result.runtime + seconds), seed=0)
    return (result.iterations - 1) / (time.process_time() - started - start)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each size and density."""
    rows = []
    searches = [
        *(("local search, M evaluations/s", ms.LocalSearch(), 1e6, case) for case in EVALUATIONS),
        *(("tabu search, moves/s", ms.TabuSearch(), 1.0, (*case, None)) for case in MOVES),
    ]
    for measurement, solver, unit, (size, flows, bar) in searches:
        ours = ms.random_quadratic(size, seed=0, density=flows / size)
        problems = (
            ms.QuadraticAssignment(csr_array(ours.flow), ours.distance),
            DenseQuadratic(ours.flow, ours.distance),
        )
        same = {solver.solve(each, ms.MaxIterations(200), seed=0).value for each in problems}
        if len(same) != 1:
            raise RuntimeError(f"the kernels disagree on {size} facilities of {flows} flows: {same}")
        rates = in_turns([partial(rate, solver, each, seconds / ROUNDS) for each in problems], ROUNDS)
        row = compared(*([each / unit for each in found] for found in rates), rates=True)
        met = None if bar is None else row["ours"] >= bar
        rows.append({"measurement": measurement, "n": size, "flows": flows} | row | {"bar": bar, "met": met})
    return pd.DataFrame(rows)
