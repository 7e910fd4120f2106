"""Speed of COMET, forward and backward, against its literal recursive twin at equal outputs, on one core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import moe_search as ms
from moe_search.bench.experiments.training import one_thread
from moe_search.bench.peers.recursive_comet import RecursiveCOMET
from moe_search.bench.speed.rounds import compared, in_turns, seconds_of

TITLE = "COMET against its recursive twin"
ROUNDS = 5
SIZES = (4, 16, 64)
BATCHES = (256, 1024)
INFERENCE_SIZES = (64, 128, 256)
BARS = {16: 8.0, 64: 30.0}
FEATURES, OUTPUTS, TREES = 64, 64, 2


def contest(n: int, batch: int, seconds: float) -> list[list[float]]:
    """Return the milliseconds of a forward and backward of ours and of the twin in every round.

    Both mix the given outputs of all experts. Their weights are the same, and so are their mixtures and gradients.

    It raises RuntimeError if the mixtures or the gradients of the experts' outputs disagree.
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

    return _rounds(step(ours), step(theirs), seconds)


def inference(n: int, batch: int, seconds: float) -> list[list[float]]:
    """Return the milliseconds of a forward without gradient at hard splits, of the descent and of all nodes at once."""
    torch.manual_seed(0)
    gate = ms.COMET(FEATURES, n, TREES)
    inputs = torch.randn(batch, FEATURES)
    with torch.no_grad():
        gate.nodes.weight.view(TREES, 2 * n - 1, FEATURES)[:, : n - 1] *= 30.0

        def forward(training: bool) -> Tensor:
            return gate.train(training)(inputs).weights

        if not torch.equal(forward(False), forward(True)):
            raise RuntimeError(f"the descent gives other weights for n={n}")
        return _rounds(lambda: forward(False), lambda: forward(True), seconds)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row for each size and batch, of about `seconds`.

    The peer of a "training step" is the twin; in "inference", by descent, it is the gate that computes all nodes at
    once. Ours and the peer are in milliseconds.
    """
    rows = []
    with one_thread():
        for n in SIZES:
            for batch in BATCHES:
                rows.append(_row("training step", n, batch, contest(n, batch, seconds), BARS.get(n)))
        for n in INFERENCE_SIZES:
            rows.append(_row("inference", n, BATCHES[-1], inference(n, BATCHES[-1], seconds), None))
    return pd.DataFrame(rows)


def _rounds(ours: Callable[[], object], peer: Callable[[], object], seconds: float) -> list[list[float]]:
    """Return the milliseconds of a call of each in every round, all in about `seconds`."""
    turn = seconds / (2 * ROUNDS)
    return in_turns([lambda: 1e3 * seconds_of(ours, turn), lambda: 1e3 * seconds_of(peer, turn)], ROUNDS)


def _row(task: str, n: int, batch: int, rounds: list[list[float]], bar: float | None) -> dict[str, object]:
    row = compared(*rounds)
    met = None if bar is None else row["ratio"] >= bar
    return {"task": task, "n": n, "batch": batch} | row | {"bar": float("nan") if bar is None else bar, "met": met}
