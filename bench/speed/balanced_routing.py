"""Exact balanced routing against OR-Tools' min-cost flow, Sinkhorn and drops; and what it takes of a training step."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.special import logsumexp

import moe_search as ms
from moe_search.bench.speed.rounds import compared, in_turns
from moe_search.gates.balanced_top_k import balanced_slots

TITLE = "Balanced routing against OR-Tools' min-cost flow, seconds; score kept and tokens dropped beside others'"
NOTES = """
Every expert takes tokens k / experts. "Kept" is the sum of the logits of the experts that take a token, in percent of
what the k largest logits of every token sum up to; "dropped" is the percentage of the k places of a token that no
expert has room for. Ours drops none. "Sinkhorn" chooses the k largest entries of a doubly stochastic matrix made of the
logits by 50 turns, "top-k" the k largest logits; both then drop what is beyond the capacity, the last tokens first. In
the rows of a training step (forward, backward and Adam of a layer of 16 experts, 256 to 512 to 256), "ours" is the
choice of the experts, and "peer" the whole step.

"""
ROUNDS = 5
SKEW = 1.5
SINKHORN_TURNS = 50
STEP_BAR = 10.0
STEP_TOKENS, STEP_FEATURES, STEP_EXPERTS = 4096, 256, 16

Logits = npt.NDArray[np.float64]


class Case(NamedTuple):
    """Normal logits of tokens under experts, plus one normal number an expert times `SKEW` if they are skewed."""

    tokens: int
    experts: int
    k: int
    skewed: bool
    bar: float


CASES = tuple(
    Case(tokens, experts, k, skewed, 5.0 if skewed else 15.0)
    for tokens, experts in ((8192, 16), (32768, 64))
    for k in (1, 2)
    for skewed in (False, True)
)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return a row for each case, of at most five rounds, and for each training step; `seconds` as in the others."""
    rows: list[dict[str, Any]] = []
    for case in CASES:
        logits = made_logits(case)
        times, kept = seconds_to_optimum(case, logits, seconds)
        rows.append(
            named(f"{case.tokens} x {case.experts}, k={case.k}", case.skewed)
            | judged(compared(*times), case.bar)
            | {"kept": 100 * kept / best_of_all(logits, case.k)}
            | others(logits, case.k)
        )
    for k in (1, 2):
        for skewed in (False, True):
            row = judged(compared(*seconds_of_step(k, skewed, seconds)), STEP_BAR)
            rows.append(named(f"training step of {STEP_TOKENS}, k={k}", skewed) | row)
    return pd.DataFrame(rows)


def named(instance: str, skewed: bool) -> dict[str, Any]:
    """Return the first column of a row."""
    return {"instance": f"{instance}, skewed" if skewed else instance}


def judged(row: dict[str, float], bar: float) -> dict[str, Any]:
    """Return the times of a row, and whether they meet its bar."""
    return row | {"bar": bar, "met": row["ratio"] >= bar}


def made_logits(case: Case) -> Logits:
    """Return the logits of a case."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((case.tokens, case.experts))
    return logits + SKEW * rng.standard_normal(case.experts) if case.skewed else logits


def seconds_to_optimum(case: Case, logits: Logits, seconds: float) -> tuple[list[list[float]], float]:
    """Return the seconds of ours and of OR-Tools in every round, and the optimum, which both must find."""
    problem = ms.BalancedRouting(-logits, case.k)
    optima = []

    def solve(solver: ms.Solver) -> float:
        result = solver.solve(problem, ms.MaxRuntime(3600.0))
        optima.append(-result.value)
        return result.runtime

    # The first solve of a process loads the kernel.
    solve(ms.Transport())
    times = in_turns([partial(solve, ms.Transport()), partial(solve, ms.MinCostFlow())], ROUNDS, seconds)
    if max(optima) - min(optima) > 1e-9 * abs(optima[0]):
        raise RuntimeError(f"the optima differ on {case}: {min(optima)} and {max(optima)}")
    return times, optima[0]


def others(logits: Logits, k: int) -> dict[str, float]:
    """Return the score kept, and the share dropped, of choices that do not see to the capacity themselves."""
    row = {}
    for name, scores in (("Sinkhorn", sinkhorn(logits)), ("top-k", logits)):
        taken = within_capacity(scores, k)
        row[f"{name} kept"] = 100 * float(logits[taken].sum()) / best_of_all(logits, k)
        row[f"{name} dropped"] = 100 * (1 - float(taken.sum()) / (len(logits) * k))
    return row


def best_of_all(logits: Logits, k: int) -> float:
    """Return the sum of the k largest logits of every token."""
    return float(np.partition(logits, -k, axis=1)[:, -k:].sum())


def sinkhorn(logits: Logits) -> Logits:
    """Return the logarithm of exp(logits), its rows and columns scaled to equal sums."""
    plan = logits.copy()
    for _ in range(SINKHORN_TURNS):
        plan -= logsumexp(plan, axis=0)
        plan -= logsumexp(plan, axis=1, keepdims=True)
    return plan


def within_capacity(scores: Logits, k: int) -> npt.NDArray[np.bool_]:
    """Return which experts take which tokens, each token sent to its k best, until an expert is full."""
    tokens, experts = scores.shape
    sent = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(sent, np.argpartition(scores, -k, axis=1)[:, -k:], True, axis=1)
    return sent & (sent.cumsum(axis=0) <= -(-tokens * k // experts))


def seconds_of_step(k: int, skewed: bool, seconds: float) -> list[list[float]]:
    """Return the seconds of the choice in a training step, and of the whole step, in every round."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = ms.BalancedTopK(STEP_FEATURES, STEP_EXPERTS, k)
        experts = ms.StackedExperts(STEP_EXPERTS, STEP_FEATURES, STEP_FEATURES, 2 * STEP_FEATURES)
        layer = ms.MixtureOfExperts(experts, gate)
        inputs, targets = torch.randn(2, STEP_TOKENS, STEP_FEATURES)
        # Rows of the default gate differ little in their logits: these do as those of the cases above.
        torch.nn.init.normal_(gate.linear.weight, std=STEP_FEATURES**-0.5)
        torch.nn.init.normal_(gate.linear.bias, std=SKEW if skewed else 0.0)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-6)

    def choice() -> float:
        with torch.no_grad():
            logits = gate.linear(inputs)
            started = time.perf_counter()
            balanced_slots(logits, None, k, 1.0)
        return time.perf_counter() - started

    def step() -> float:
        started = time.perf_counter()
        loss = torch.nn.functional.mse_loss(layer(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    step()
    return in_turns([choice, step], ROUNDS, seconds)
