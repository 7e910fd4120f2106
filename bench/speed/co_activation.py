"""Devices a token goes to, on documents that the plan has not seen, and how evenly devices are loaded meanwhile."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import moe_search as ms

TITLE = "Experts of a token on few devices: planned with the first half of a text, measured on the second"
NOTES = """\
DeepSeek-V2-Lite, three layers of 64 experts, six a token, on 8 devices of 8; 1,024 tokens of each task, read from the
folder that MOE_SEARCH_ROUTING names. Balance is the mean load of a device over the largest, the mean over layers; that
of batches is the mean over 128 consecutive tokens each. Fewer devices a token balance small batches worse.

"""
CLUSTER = ms.Cluster(num_devices=8, slots_per_device=8)
BATCH = 128
TURNS = 1000
TOLERANCES = (0.01, 0.05, 0.2)
# On the task "law", at the least tolerance.
BAR = 0.15


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each task and way of planning; none without the file."""
    named = os.environ.get("MOE_SEARCH_ROUTING")
    if named is None or not (Path(named) / "deepseek_v2_lite_esft_tokens.npz").is_file():
        return pd.DataFrame()
    with np.load(Path(named) / "deepseek_v2_lite_esft_tokens.npz", allow_pickle=False) as arrays:
        tasks = dict(zip(arrays["tasks"].tolist(), arrays["experts"].astype(np.int64), strict=True))
    return pd.DataFrame([row for task, tokens in tasks.items() for row in measure_task(task, tokens, TURNS)])


def measure_task(task: str, tokens: np.ndarray[Any, Any], turns: int) -> list[dict[str, Any]]:
    """Return the rows of a task, whose tokens are of shape (layers, tokens, chosen)."""
    layers, half = len(tokens), tokens.shape[1] // 2
    planned, held_out = ms.CoActivation(CLUSTER, tokens[:, :half]), ms.CoActivation(CLUSTER, tokens[:, half:])
    methods: dict[str, ms.Problem] = {"balance alone": planned.placement}
    methods |= {
        f"tokens, within {100 * tolerance:g} %": ms.CoActivation(CLUSTER, planned.tokens, tolerance=tolerance)
        for tolerance in TOLERANCES
    }
    methods["pairs, within 1 %"] = ms.CoActivation(CLUSTER, pairs=pairs_of(planned), load=planned.load)
    rows: list[dict[str, Any]] = []
    for method, problem in methods.items():
        before = time.process_time()
        result = ms.solve(problem, stop=ms.MaxIterations(turns * layers))
        spent = time.process_time() - before
        devices = float(held_out.units(result.solution).mean())
        rows.append(
            {
                "task": task,
                "plan": method,
                "devices planned": float(planned.units(result.solution).mean()),
                "devices": devices,
                "fewer": 1 - devices / (rows[0]["devices"] if rows else devices),
                "balance planned": float(result.solution.balancedness.mean()),
                "balance": balance(tokens[:, half:], result.solution),
                "of batches": balance_of_batches(tokens[:, half:], result.solution),
                "seconds": spent,
            }
        )
    return rows


def pairs_of(problem: ms.CoActivation) -> np.ndarray[Any, Any]:
    """Return how many tokens chose both of two experts, shape (layers, experts, experts)."""
    assert problem.tokens is not None
    chosen = (problem.tokens[..., None] == np.arange(problem.cluster.num_slots)).any(axis=2).astype(np.int64)
    pairs: np.ndarray[Any, Any] = chosen.transpose(0, 2, 1) @ chosen
    return pairs


def balance(tokens: np.ndarray[Any, Any], placement: ms.Placement) -> float:
    """Return the mean load of a device over the largest, where tokens are the load; the mean over layers."""
    chosen = np.stack([np.bincount(layer.ravel(), minlength=CLUSTER.num_slots) for layer in tokens])
    seen = ms.ExpertPlacement(chosen.astype(np.float64), CLUSTER)
    return float(seen.placed(placement.physical_to_logical).balancedness.mean())


def balance_of_batches(tokens: np.ndarray[Any, Any], placement: ms.Placement) -> float:
    """Return the mean balance of batches of consecutive tokens."""
    batches = np.split(tokens, range(BATCH, tokens.shape[1], BATCH), axis=1)
    return float(np.mean([balance(batch, placement) for batch in batches]))
