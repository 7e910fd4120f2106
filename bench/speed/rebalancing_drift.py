"""Rebalancing as traffic drifts: balance on the next window against migrations, beside EPLB's algorithm run anew."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import moe_search as ms
from moe_search.bench.peers.eplb import packed_by_layer
from moe_search.serving.greedy_eplb import Pack, eplb, packed

TITLE = "Rebalancing at every window: balance on the next one, migrations as part of EPLB's, milliseconds"
NOTES = """\
Every method plans with the windows seen last and is judged on the next, which it has not seen: balance that was planned
flatters. Drift: every load is multiplied by a lognormal number of this sigma from window to window. Of single tasks,
whose traffic is stationary, "as planned" is the balance of the windows planned with; a budget of 2 % of all slots is
shared by the layers, and a balance of .96 as planned was asked of it. EPLB's algorithm is timed in numpy for all layers
at once, and by layer, as vLLM packs.

"""
LAST = 4
TOLERANCES = (0.01, 0.02, 0.05)


def windows_of_trace(folder: Path) -> np.ndarray[Any, Any]:
    """Return the windows of all tasks of the trace, one after the other."""
    with np.load(folder / "deepseek_v2_lite_esft.npz", allow_pickle=False) as arrays:
        counts = arrays["counts"].astype(np.float64)
    return counts.reshape(-1, *counts.shape[2:])


def drifting(layers: int, experts: int, sigma: float, windows: int) -> np.ndarray[Any, Any]:
    """Return lognormal loads, of sigma 1, that drift."""
    rng = np.random.default_rng(0)
    steps = rng.normal(scale=sigma, size=(windows, layers, experts))
    steps[0] = rng.normal(size=(layers, experts))
    return np.exp(steps.cumsum(axis=0))


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each stream and method."""
    named = os.environ.get("MOE_SEARCH_ROUTING")
    streams = {"lognormal 58 x 256, drift .1, 32 of 9": (drifting(58, 256, 0.1, 12), 32, 288)}
    if named is not None:
        streams["DeepSeek-V2-Lite, 8 of 9"] = (windows_of_trace(Path(named))[: LAST + 20], 8, 72)
    rows = []
    for name, (windows, devices, slots) in streams.items():
        methods = {"static": keep, "EPLB anew": anew(slots, devices)}
        methods["EPLB anew, by layer"] = anew(slots, devices, packed_by_layer)
        methods |= {f"tolerance {100 * tolerance:g} %": near(tolerance) for tolerance in TOLERANCES}
        judged = {method: run(windows, devices, slots, plan) for method, plan in methods.items()}
        whole = judged["EPLB anew"]["migrations"]
        rows += [
            {"stream": name, "method": method} | row | {"of EPLB's": row["migrations"] / whole}
            for method, row in judged.items()
        ]
    if named is not None:
        rows += stationary(Path(named))
    return pd.DataFrame(rows)


def stationary(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of single tasks of the trace, whose traffic does not drift: one budget for all layers."""
    with np.load(folder / "deepseek_v2_lite_esft.npz", allow_pickle=False) as arrays:
        tasks = dict(zip(arrays["tasks"].tolist(), arrays["counts"].astype(np.float64), strict=True))
    policy = ms.serving.Policy
    policies = (
        *(policy("static", last=LAST), policy("eplb", last=LAST), policy(budget=0.02, last=LAST)),
        *(policy("eplb", last=None), policy(budget=0.02, last=None)),
    )
    rows = []
    for task, windows in tasks.items():
        played = ms.serving.simulate(windows, ms.Cluster(8, 9), policies)
        whole = played.outcomes[1].migrations.mean()
        for outcome in played.outcomes:
            told = str(outcome.policy) if outcome.policy.last else f"{outcome.policy}, all windows"
            migrations = float(outcome.migrations.mean())
            rows.append(
                {
                    "stream": f"DeepSeek-V2-Lite, {task} alone, 8 of 9",
                    "method": told,
                    "balance": float(outcome.balance.mean()),
                    "as planned": float(outcome.planned.mean()),
                    "migrations": migrations,
                    "of EPLB's": migrations / whole,
                }
            )
    return rows


Plan = Callable[[ms.ExpertPlacement, np.ndarray[Any, Any]], np.ndarray[Any, Any]]


def keep(problem: ms.ExpertPlacement, old: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Change nothing."""
    return old


def anew(slots: int, devices: int, pack: Pack = packed) -> Plan:
    """Return the plan of EPLB, whatever was before."""
    return lambda problem, old: eplb(problem.load, slots, 1, 1, devices, pack)


def near(tolerance: float) -> Plan:
    """Return the plan of few migrations within a tolerance."""

    def plan(problem: ms.ExpertPlacement, old: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        stop = ms.MaxIterations(len(problem.load))
        result = ms.PlacementSearch().solve(ms.Rebalancing(problem, old, tolerance=tolerance), stop)
        return result.solution.physical_to_logical

    return plan


def run(windows: np.ndarray[Any, Any], devices: int, slots: int, plan: Plan) -> dict[str, float]:
    """Return the mean balance on the next window, the migrations of a rebalance, and its milliseconds."""
    cluster = ms.Cluster(devices, slots // devices)
    old = eplb(windows[:LAST].sum(axis=0), slots, 1, 1, devices)
    balance, migrations, spent = [], [], []
    for problem, following in _pairs(windows, cluster):
        before = time.thread_time()
        new = plan(problem, old)
        spent.append(1e3 * (time.thread_time() - before))
        migrations.append(int((problem.held(new) & ~problem.held(old)).sum()))
        old = new
        balance.append((following.load.sum(axis=1) / devices / following.largest_loads(new)).mean())
    return {
        "balance": float(np.mean(balance)),
        "migrations": float(np.mean(migrations)),
        "milliseconds": float(np.median(spent)),
    }


def _pairs(
    windows: np.ndarray[Any, Any], cluster: ms.Cluster
) -> Iterator[tuple[ms.ExpertPlacement, ms.ExpertPlacement]]:
    for last in range(LAST, len(windows)):
        yield ms.ExpertPlacement(windows[last - LAST : last], cluster), ms.ExpertPlacement(windows[last], cluster)
