"""Speed of the mixture layer: every dispatch against each other, and against two published layers.

All layers of a row have the same widths, inputs and routing weights, and take turns in one run. On a CPU times are of
one core, in the time that it works for us: other processes of the machine change them less than the clock. For single
cases, or another device, call `measure_case`.

Times are medians of the rounds in which all take turns. The ratio of "auto" to the best takes more: rounds of "auto"
and the close ones alone, half of which say which one is best, the other half what the median ratio of a round to it is.
The least of several noisy medians would be too low for any of them, "auto" taking the same path included.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap
from torch import Tensor, nn

import moe_search as ms
from moe_search.bench.experiments.training import one_thread
from moe_search.bench.speed.dispatch_cases import PEERS, Case, cases, our_layer, peer_layer, refuses
from moe_search.layers.device_dispatch import chosen_path, most_experts
from moe_search.layers.dispatch import DISPATCHES, fastest_dispatch

TITLE = "Mixture layer: dispatch by size against dense, sorted and grouped, and against published layers"
NOTES = """\
- Times are medians of the rounds in which all take turns. The ratio of "auto" to the best is of other rounds, of "auto"
  and the close ones alone: it is not the quotient of two times of its row, which may be of a slower minute.
- Where the chosen dispatch is the best one, what exceeds 1 is the time of choosing, and noise: see the standard error,
  by bootstrap of rounds, which knows nothing of a machine that is slower for many of them.
- The ratios of peers are quotients of the medians, without an error of their own.
"""
BAR = 1.1
LEAST_ROUNDS = 5
"""Rounds in which all take turns; of the close ones alone there are at least four times as many."""

CLOSE = 1.3
"""Times of the best up to which a dispatch may still turn out to be the best."""

WARMED_BELOW = 0.02
"""Seconds of a step below which it is run once more before it is timed."""


def measure_case(case: Case, seconds: float, device: str = "cpu") -> dict[str, Any]:
    """Return one row: medians of milliseconds, ratios, and why a layer was left out.

    Parameters
    ----------
    case : Case
    seconds : float
        Time for the rounds of all, of which there are at least 5, after one to warm up; and again for those of the
        close ones, of which there are at least 20.
    device : str
        Where layers run.

    Returns
    -------
    dict
        ``instance``, ``direction``; ``<layer>_ms``, NaN where left out; ``chosen``, the path that "auto" takes, and
        ``best`` of "dense", "sorted" and "grouped"; ``ratio``, the time of "auto" to that of the best, its
        ``standard_error`` by bootstrap, ``bar`` and ``met``; ``<peer>_ratio``, the time of the peer to that of "auto";
        ``left_out``.
    """
    torch.manual_seed(0)
    router, inputs = case.router(), case.inputs().to(device).requires_grad_(case.backward)
    steps: dict[str, Callable[[], None]] = {}
    left_out = []
    # One layer for all of ours: where weights lie in memory makes a difference of up to a tenth.
    ours = our_layer(case, router).to(device).train(case.backward)
    for name in DISPATCHES:
        refused = refuses(case, ours, name)
        if refused is None:
            steps[name] = _step(ours, inputs, case.backward, name)
        else:
            left_out.append(f"{name}: {refused}")
    for name in PEERS:
        try:
            layer = peer_layer(case, router, name)
        except ValueError as reason:
            left_out.append(f"{name}: {reason}")
        else:
            steps[name] = _step(layer.to(device).train(case.backward), inputs, case.backward)
    times = {name: statistics.median(of) for name, of in _take_turns(steps, seconds, device, LEAST_ROUNDS).items()}
    given = {name: times[name] for name in DISPATCHES if name in times and name != "auto"}
    close = {name: steps[name] for name in given if times[name] <= CLOSE * min(given.values())}
    rounds = _take_turns({"auto": steps["auto"]} | close, seconds, device, 4 * LEAST_ROUNDS)
    best = min(close, key=lambda name: statistics.median(rounds[name][::2]))
    ratios = np.array(rounds["auto"][1::2]) / np.array(rounds[best][1::2])
    ratio = float(np.median(ratios))
    error = bootstrap((ratios,), np.median, n_resamples=999, method="percentile", rng=0).standard_error
    row: dict[str, Any] = {"instance": str(case), "direction": "forward+backward" if case.backward else "forward"}
    row |= {f"{name}_ms": 1e3 * times.get(name, math.nan) for name in (*DISPATCHES, *PEERS)}
    row |= {"chosen": _chosen(ours, inputs, case.backward), "best": best, "ratio": ratio, "standard_error": error}
    row |= {"bar": BAR, "met": ratio <= BAR}
    row |= {f"{peer}_ratio": times.get(peer, math.nan) / times["auto"] for peer in PEERS}
    return row | {"left_out": "; ".join(left_out)}


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row a case; see `measure_case`.

    Notes
    -----
    Mixtral's experts have three matrices of these widths (a gated activation), 1.5 times our multiplications.
    lucidrains' layer drops tokens beyond 1.25 (in eval mode 2) times the mean load of an expert, in groups of 512.
    """
    return pd.DataFrame([measure_case(case, seconds) for case in cases()])


def _chosen(layer: ms.MixtureOfExperts, inputs: Tensor, backward: bool) -> str:
    """Return the path that "auto" takes."""
    assert isinstance(layer.experts, ms.StackedExperts)
    with torch.set_grad_enabled(backward):
        weights = layer.gate.expert_map(layer.gate(inputs).weights)
        if inputs.is_cpu:
            return fastest_dispatch(layer.experts, weights)
        return chosen_path(layer.experts, inputs, [weights], most_experts([layer.gate], len(layer.experts)))


def _step(layer: nn.Module, inputs: Tensor, backward: bool, dispatch: str | None = None) -> Callable[[], None]:
    def step() -> None:
        if isinstance(layer, ms.MixtureOfExperts) and dispatch is not None:
            layer.dispatch = dispatch
        with torch.set_grad_enabled(backward):
            outputs = layer(inputs)
        if backward:
            outputs.square().sum().backward()
            layer.zero_grad()
            inputs.grad = None

    return step


def _take_turns(
    steps: dict[str, Callable[[], None]], seconds: float, device: str, least_rounds: int
) -> dict[str, list[float]]:
    """Return the seconds of every step, round by round, in which each has its turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    on_cpu = device == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    shuffled = random.Random(0)
    with one_thread() if on_cpu else nullcontext():
        for step in steps.values():
            step()
        started, rounds = clock(), 0
        while rounds < least_rounds or clock() - started < seconds:
            for name in shuffled.sample(list(steps), len(steps)):
                if not times[name] or times[name][-1] < WARMED_BELOW:
                    # Once untimed: a short step pays a fifth more after one that has left nothing of its weights in
                    # the caches.
                    steps[name]()
                before = clock()
                steps[name]()
                if not on_cpu:
                    torch.cuda.synchronize()
                times[name].append(clock() - before)
            rounds += 1
    return times
