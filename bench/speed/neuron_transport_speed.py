"""Speed of the transport solver on the neurons of a dense layer, against scipy's assignment on repeated columns."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linear_sum_assignment

import moe_search as ms
from moe_search.bench.speed.rounds import compared, in_turns
from moe_search.problems.neuron_partition import best_experts

TITLE = "Neurons to experts: Transport against scipy's linear_sum_assignment on repeated columns, seconds"
ROUNDS = 5
ROWS = 2000
BAR = 100.0


class Case(NamedTuple):
    """Neurons of a layer, experts of equal size, and how many of them every row runs."""

    neurons: int
    experts: int
    active: int


CASES = (Case(1536, 16, 4), Case(1536, 16, 8), Case(3072, 32, 8))


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each case, of at most five rounds; after `seconds` of a case no further round begins."""
    rows = []
    for case in CASES:
        row = compared(*seconds_to_optimum(case, seconds))
        instance = f"{case.neurons} neurons, {case.active} of {case.experts}"
        rows.append({"instance": instance} | row | {"bar": BAR, "met": row["ratio"] >= BAR})
    return pd.DataFrame(rows)


def made_cost(case: Case, rows: int = ROWS) -> npt.NDArray[np.float64]:
    """Return the costs of the first turn from a random division, of made rows whose neurons work together by topics."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((rows, 24)) @ rng.standard_normal((24, case.neurons))
    mass = np.square(np.maximum(topics + rng.standard_normal(topics.shape) - 2.0, 0.0))
    start = rng.permutation(np.arange(case.neurons) % case.experts)
    active = best_experts(mass @ (start[:, None] == np.arange(case.experts)), case.active)
    return -(mass.T @ active)


def seconds_to_optimum(case: Case, seconds: float) -> list[list[float]]:
    """Return the seconds of ours and of scipy's in every round; both must find the same optimum."""
    cost = made_cost(case)
    problem = ms.LinearAssignment(cost)
    optima = []

    def ours() -> float:
        result = ms.Transport().solve(problem, ms.MaxRuntime(3600.0))
        optima.append(result.value)
        return result.runtime

    def scipys() -> float:
        started = time.perf_counter()
        repeated = np.repeat(cost, case.neurons // case.experts, axis=1)
        neurons, places = linear_sum_assignment(repeated)
        spent = time.perf_counter() - started
        optima.append(repeated[neurons, places].sum())
        return spent

    times = in_turns([ours, scipys], ROUNDS, seconds)
    if max(optima) - min(optima) > 1e-9 * abs(optima[0]):
        raise RuntimeError(f"the optima differ on {case}: {min(optima)} and {max(optima)}")
    return times
