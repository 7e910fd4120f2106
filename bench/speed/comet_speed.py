"""Speed of COMET, forward and backward, against its literal recursive twin at equal outputs.

Run ``python -m moe_search.bench.speed.comet_speed``. All ratios are taken in one run, on one core.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import moe_search as ms
from moe_search.bench.peers.recursive_comet import RecursiveCOMET

TITLE = "COMET against its recursive twin"
ROUNDS = 5
SIZES = (4, 16, 64)
BATCHES = (256, 1024)
INFERENCE_SIZES = (64, 128, 256)
BARS = {16: 8.0, 64: 30.0}
FEATURES, OUTPUTS, TREES = 64, 64, 2


def seconds_of(step: Callable[[], object], seconds: float) -> float:
    """Return the seconds that a call takes, from as many as fit into about ``seconds``."""
    started = time.perf_counter()
    calls = 0
    while calls == 0 or time.perf_counter() - started < seconds:
        step()
        calls += 1
    return (time.perf_counter() - started) / calls


def contest(n: int, batch: int, seconds: float) -> tuple[float, float]:
    """Return the seconds of a forward and backward of ours and of the twin, medians of rounds taken in turns.

    Both mix the given outputs of all experts. Their weights are the same, and so are their mixtures and gradients.

    Raises
    ------
    RuntimeError
        If the mixtures or the gradients of the experts' outputs disagree.
    """
    torch.manual_seed(0)
    twin = RecursiveCOMET(FEATURES, n, TREES)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(3.0)  # some splits saturate, as they do in training
    gate = ms.load_official_comet(twin.state_dict())
    moe = ms.MixtureOfExperts(ms.StackedExperts(n, FEATURES, OUTPUTS), gate)
    inputs = torch.randn(batch, FEATURES)
    outputs = [torch.randn(batch, OUTPUTS, requires_grad=True) for _ in range(n)]

    def ours() -> Tensor:
        return moe.combine(gate.expert_map(gate(inputs).weights), torch.stack(outputs, 1))

    def theirs() -> Tensor:
        return twin(outputs, inputs)

    found = []
    for mixture in (ours(), theirs()):
        found.append([mixture, *torch.autograd.grad(mixture.square().sum(), outputs)])
    for a, b in zip(*found, strict=True):
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"ours and the twin disagree for n={n}: by up to {(a - b).abs().max():.2g}")

    def step(mix: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(mix().square().sum())

    return in_turns(step(ours), step(theirs), seconds)


def inference(n: int, batch: int, seconds: float) -> tuple[float, float]:
    """Return the seconds of a forward without gradient at hard splits: of the descent, and of all nodes at once.

    Raises
    ------
    RuntimeError
        If the weights disagree.
    """
    torch.manual_seed(0)
    gate = ms.COMET(FEATURES, n, TREES)
    inputs = torch.randn(batch, FEATURES)
    with torch.no_grad():
        gate.nodes.weight.view(TREES, 2 * n - 1, FEATURES)[:, : n - 1] *= 30.0

        def forward(training: bool) -> Tensor:
            return gate.train(training)(inputs).weights

        if not torch.equal(forward(False), forward(True)):
            raise RuntimeError(f"the descent gives other weights for n={n}")
        return in_turns(lambda: forward(False), lambda: forward(True), seconds)


def in_turns(ours: Callable[[], object], peer: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Return the seconds of a call of each, medians of rounds taken in turns, in about ``seconds`` in all."""
    rounds = [[seconds_of(call, seconds / (2 * ROUNDS)) for call in (ours, peer)] for _ in range(ROUNDS)]
    own, others = (statistics.median(column) for column in zip(*rounds, strict=True))
    return own, others


def measure(qaplib: Path | None = None, seconds: float = 1.0) -> pd.DataFrame:
    """Return one row for each size and batch.

    Parameters
    ----------
    qaplib : Path, optional
        Not used.
    seconds : float
        For each row, about.

    Returns
    -------
    DataFrame
        Columns task ("training step" against the twin, "inference" by descent against all nodes at once), n, batch,
        ours and peer (milliseconds), ratio, bar (not a number where none was set) and met.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for n in SIZES:
            for batch in BATCHES:
                rows.append(_row("training step", n, batch, *contest(n, batch, seconds), BARS.get(n)))
        for n in INFERENCE_SIZES:
            rows.append(_row("inference", n, BATCHES[-1], *inference(n, BATCHES[-1], seconds), None))
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def _row(task: str, n: int, batch: int, own: float, peer: float, bar: float | None) -> dict[str, object]:
    ratio = peer / own
    return {
        "task": task,
        "n": n,
        "batch": batch,
        "ours": 1e3 * own,
        "peer": 1e3 * peer,
        "ratio": ratio,
        "bar": float("nan") if bar is None else bar,
        "met": None if bar is None else ratio >= bar,
    }


def main(seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01)] = 1.0) -> None:
    """Print the table."""
    table = Table("task", "n", "batch", "ours, ms", "peer, ms", "ratio", "bar", title=TITLE)
    for row in measure(None, seconds).itertuples():
        bar = "" if row.met is None else f">= {row.bar:.0f}x, {'met' if row.met else 'missed'}"
        table.add_row(
            row.task, str(row.n), str(row.batch), f"{row.ours:.2f}", f"{row.peer:.2f}", f"{row.ratio:.1f}x", bar
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
