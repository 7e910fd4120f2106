"""Speed of COMET on token rows, where it is the router: a training step of it against one of its own linear layer.

That layer is what any gate takes that is affine in its inputs: the rest is the cost of the trees. The gate gives
weights and penalty; inputs take no gradient, which would hide a part of the rest. Both take turns on one core, in the
time that it works for us.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import moe_search as ms
from moe_search.bench.experiments.training import one_thread
from moe_search.bench.speed.rounds import compared, in_turns

TITLE = "COMET on token rows against its own linear layer"
NOTES = """\
- Forward and backward of the weights and the penalty, 256 features, two trees of n leaves; ours and the linear layer
  are medians in milliseconds of CPU time, "times" is the median over rounds of how many times as long as the layer ours
  takes.
"""
FEATURES, TREES = 256, 2
SIZES = (16, 32, 64)
ROWS = (512, 1024, 4096)
COMPILED = (False, True)
ROUNDS = 15
BAR = 3.0


def contest(n: int, rows: int, compiled: bool, seconds: float) -> list[list[float]]:
    """Return the milliseconds of a training step of the linear layer and of the gate in every round."""
    torch.manual_seed(0)
    gate = ms.COMET(FEATURES, n, TREES)
    inputs = torch.randn(rows, FEATURES)
    of_weights, of_nodes = torch.randn(rows, TREES, n), torch.randn(rows, gate.nodes.out_features)

    def outputs(inputs: Tensor) -> tuple[Tensor, Tensor]:
        routing = gate(inputs)
        return routing.weights, gate.penalty(routing)

    call = torch.compile(outputs) if compiled else outputs

    def ours() -> None:
        torch.autograd.backward(call(inputs), (of_weights, None))

    def linear() -> None:
        gate.nodes(inputs).backward(of_nodes)

    torch.compiler.reset()
    for step in (ours, linear):
        step()
    turn = seconds / (2 * ROUNDS)
    return in_turns([lambda: _milliseconds(linear, turn), lambda: _milliseconds(ours, turn)], ROUNDS)


def _milliseconds(step: Callable[[], None], seconds: float) -> float:
    started, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - started < seconds:
        step()
        calls += 1
    return 1e3 * (time.process_time() - started) / calls


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row for each size and number of rows, uncompiled and compiled, of about `seconds`."""
    table = []
    with one_thread():
        for compiled in COMPILED:
            for n in SIZES:
                for rows in ROWS:
                    found = compared(*contest(n, rows, compiled, seconds))
                    times = found["ratio"]
                    table.append(
                        {"compiled": compiled, "n": n, "rows": rows, "ours": found["peer"], "linear": found["ours"]}
                        | {"times": times, "bar": BAR, "met": times <= BAR}
                    )
    return pd.DataFrame(table)
