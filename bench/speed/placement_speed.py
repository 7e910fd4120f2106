"""Placements against EPLB's algorithm: milliseconds of processor time, and how evenly devices are loaded."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import moe_search as ms
from moe_search.bench.peers.eplb import packed_by_element, packed_by_layer
from moe_search.bench.speed.rounds import compared, in_turns
from moe_search.serving.greedy_eplb import Pack, eplb, packed

TITLE = "Placement of experts against EPLB's algorithm, milliseconds"
NOTES = """\
The peer is EPLB's algorithm in numpy, all layers at once; "by layer" packs one layer after the other in numpy, as vLLM
does, and "by element" tensors, element by element, as EPLB publishes it: each with how many times as fast ours is.
Balance is the mean load of a device over the largest, the mean over layers; at best is what the bound allows, and the
gap that of the worst layer. "Search" is what the solver reports as its runtime, on the clock.
Loads of real routers are read from the folder that MOE_SEARCH_ROUTING names.

"""
ROUNDS = 15


class Case(NamedTuple):
    """Loads of layers, a cluster, how many descents a layer gets, and the balance that was asked for."""

    name: str
    loads: Callable[[Path | None], np.ndarray[Any, Any] | None]
    devices: int
    slots: int
    turns: int
    bar: float
    groups: int = 0
    nodes: int = 1
    tolerance: float = 1e-3


def traced(folder: Path | None, file: str, windows: int) -> np.ndarray[Any, Any] | None:
    """Return the counts of a trace, summed over its first axes and all its layers; None without the file."""
    if folder is None or not (folder / file).is_file():
        return None
    with np.load(folder / file, allow_pickle=False) as arrays:
        return arrays["counts"].sum(axis=tuple(range(windows))).astype(np.float64)


def lognormal(folder: Path | None, layers: int, sigma: float) -> np.ndarray[Any, Any]:
    """Return loads of 256 experts."""
    return np.random.default_rng(0).lognormal(sigma=sigma, size=(layers, 256))


def zipf(folder: Path | None, layers: int, power: float) -> np.ndarray[Any, Any]:
    """Return loads of 256 experts that fall as a power, in random order."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(np.arange(1.0, 257.0) ** -power) for _ in range(layers)])


def one_task(folder: Path | None, task: int) -> np.ndarray[Any, Any] | None:
    """Return the counts of one task of the trace of DeepSeek-V2-Lite; None without the file."""
    if folder is None or not (folder / "deepseek_v2_lite_esft.npz").is_file():
        return None
    with np.load(folder / "deepseek_v2_lite_esft.npz", allow_pickle=False) as arrays:
        return arrays["counts"][task].sum(axis=0).astype(np.float64)


DEEPSEEK = partial(traced, file="deepseek_v2_lite_esft.npz", windows=2)
OLMOE = partial(traced, file="olmoe_routing.npz", windows=1)
CASES = (
    Case("DeepSeek-V2-Lite, 8 devices of 9", DEEPSEEK, 8, 72, 5, 0.999),
    Case("DeepSeek-V2-Lite, 8 devices of 10", DEEPSEEK, 8, 80, 5, 0.999),
    Case("DeepSeek-V2-Lite, 16 of 5", DEEPSEEK, 16, 80, 60, 0.999, tolerance=5e-4),
    Case("OLMoE, 16 of 5", OLMOE, 16, 80, 60, 0.999, tolerance=5e-4),
    Case("DeepSeek-V2-Lite, 16 of 4, no replicas", DEEPSEEK, 16, 64, 100, 0.997),
    Case("DeepSeek-V2-Lite, 32 of 3", DEEPSEEK, 32, 96, 100, 0.996),
    Case("lognormal 58 x 256, 32 of 9", partial(lognormal, layers=58, sigma=1.0), 32, 288, 2, 0.999),
    Case("zipf 1.5, 16 x 256, 64 of 5", partial(zipf, layers=16, power=1.5), 64, 320, 100, 0.99),
    Case(
        "lognormal .6, 16 x 256, 16 of 16, 2 nodes", partial(lognormal, layers=16, sigma=0.6), 16, 256, 30, 0.996, 8, 2
    ),
    Case("zipf 1, 16 x 256, 32 of 9, 4 nodes", partial(zipf, layers=16, power=1.0), 32, 288, 100, 0.77, 8, 4),
    # Nothing was asked for: an expert is above the mean of a device.
    Case("OLMoE, 16 of 4, no replicas", OLMOE, 16, 64, 100, math.nan),
    Case("OLMoE, 32 of 3", OLMOE, 32, 96, 100, 0.996),
    *(
        Case(f"DeepSeek-V2-Lite, {name} alone, 16 of 5", partial(one_task, task=task), 16, 80, 100, 0.999)
        for task, name in enumerate(("intent", "law", "summary", "translation"))
    ),
)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each case whose loads there are; after `seconds` of a case no further round begins."""
    named = os.environ.get("MOE_SEARCH_ROUTING")
    folder = None if named is None else Path(named)
    rows = []
    for case in CASES:
        load = case.loads(folder)
        if load is not None:
            rows.append(measure_case(case, load, seconds))
    return pd.DataFrame(rows)


def measure_case(case: Case, load: np.ndarray[Any, Any], seconds: float) -> dict[str, Any]:
    """Return the row of a case: times in turns, and balance."""
    cluster = ms.Cluster(case.devices, case.slots // case.devices, case.nodes)
    groups = case.groups or None
    solver, stop = ms.PlacementSearch(tolerance=case.tolerance), ms.MaxIterations(case.turns * len(load))
    searched: list[float] = []

    def ours() -> ms.Result:
        result = solver.solve(ms.ExpertPlacement(load, cluster, groups), stop)
        searched.append(1e3 * result.runtime)
        return result

    def theirs(pack: Pack) -> np.ndarray[Any, Any]:
        return eplb(load, case.slots, case.groups, case.nodes, case.devices, pack)

    result, peer = ours(), theirs(packed)  # compiles
    searched.clear()
    calls: list[Callable[[], object]] = [ours, partial(theirs, packed), partial(theirs, packed_by_layer)]
    *times, by_layer = in_turns([partial(milliseconds, call) for call in calls], ROUNDS, seconds)
    # It takes a second, and once is enough.
    by_element = [milliseconds(partial(theirs, packed_by_element))] * len(by_layer)
    problem = ms.ExpertPlacement(load, cluster, groups)
    best = load.sum(axis=1) / case.devices / problem.load_bounds
    balance = result.solution.balancedness
    return {
        "instance": case.name,
        **compared(*times),
        "by layer": float(np.median(by_layer)),
        "ratio by layer": compared(times[0], by_layer)["ratio"],
        "by element": by_element[0],
        "ratio by element": compared(times[0], by_element)["ratio"],
        "search": float(np.median(searched)),
        "balance": balance.mean(),
        "EPLB": float((load.sum(axis=1) / case.devices / problem.largest_loads(peer)).mean()),
        "at best": best.mean(),
        "gap": float((best / balance - 1).max()),
        "bar": case.bar,
        "met": None if math.isnan(case.bar) else bool(balance.mean() >= case.bar - 5e-4),
    }


def milliseconds(call: Callable[[], object]) -> float:
    """Return the milliseconds of processor time that a call takes."""
    before = time.thread_time()
    call()
    return 1e3 * (time.thread_time() - before)
