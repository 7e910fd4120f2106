"""Speed of COMET, forward and backward, against its literal recursive twin at equal outputs.

Run ``python -m moe_search.bench.comet_speed``. All ratios are taken in one run, on one core.
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
from moe_search.bench.recursive_comet import RecursiveCOMET

TITLE = "COMET against its recursive twin"
ROUNDS = 5
SIZES = (4, 16, 64)
BATCHES = (256, 1024)
BARS = {16: 8.0, 64: 30.0}
FEATURES, OUTPUTS, TREES = 64, 64, 2


def seconds_of(step: Callable[[], None], seconds: float) -> float:
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
        return lambda: mix().square().sum().backward()

    rounds = [[seconds_of(step(mix), seconds / (2 * ROUNDS)) for mix in (ours, theirs)] for _ in range(ROUNDS)]
    own, twins = (statistics.median(column) for column in zip(*rounds, strict=True))
    return own, twins


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
        Columns n, batch, ours and peer (milliseconds), ratio, bar (not a number where none was set) and met.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for n in SIZES:
            for batch in BATCHES:
                own, twins = contest(n, batch, seconds)
                bar = BARS.get(n, float("nan"))
                ratio = twins / own
                row = {"n": n, "batch": batch, "ours": 1e3 * own, "peer": 1e3 * twins, "ratio": ratio, "bar": bar}
                rows.append(row | {"met": None if n not in BARS else ratio >= bar})
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(rows)


def main(seconds: Annotated[float, typer.Option(help="Seconds for each measurement.", min=0.01)] = 1.0) -> None:
    """Print the table."""
    table = Table("n", "batch", "ours, ms", "twin, ms", "ratio", "bar", title=TITLE)
    for row in measure(None, seconds).itertuples():
        bar = "" if row.met is None else f">= {row.bar:.0f}x, {'met' if row.met else 'missed'}"
        table.add_row(str(row.n), str(row.batch), f"{row.ours:.2f}", f"{row.peer:.2f}", f"{row.ratio:.1f}x", bar)
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
