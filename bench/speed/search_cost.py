"""What the default permutation search costs: its time over that of the training around it, on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

import moe_search as ms
from moe_search.bench.demo.settings import SEARCHED, DemoSettings
from moe_search.bench.experiments.training import one_thread
from moe_search.bench.experiments.two_image_model import make_model, two_task_loss
from moe_search.training.lowering.losses import Loss

TITLE = "Time of the default permutation search over that of the training around it"

BAR = 0.10
FEATURES, CLASSES, BATCH = 64, 10, 256
WIDE_GATES: dict[str, Callable[[], ms.Gate]] = {
    "Top-2 of 64": lambda: ms.TopK(FEATURES, 64, 2),
    "Top-1 of 64": lambda: ms.TopK(FEATURES, 64, 1),
}


class Case(NamedTuple):
    """A model, its mixture layer, its loss, and the batch it is trained on."""

    model: nn.Module
    moe: ms.MixtureOfExperts
    loss: Loss
    inputs: Tensor
    targets: Tensor


def trained(case: Case, steps: int) -> tuple[float, ms.PermutationSearch]:
    """Train with a default search for a number of steps; return the seconds of all of it, and the search."""
    model, moe, loss, inputs, targets = case
    search = ms.PermutationSearch(model, moe, loss=loss)
    optimizer = torch.optim.Adam(model.parameters())
    model.train()
    start = time.perf_counter()
    for _ in range(steps):
        value = loss(model(inputs), targets) + moe.regularization()
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
        search.step(inputs, targets)
    return time.perf_counter() - start, search


def layer_of_64(gate: str) -> Case:
    """Return a model of 64 experts of width 64."""
    moe = ms.MixtureOfExperts(ms.StackedExperts(64, FEATURES, FEATURES), WIDE_GATES[gate]())
    model = nn.Sequential(moe, nn.Linear(FEATURES, CLASSES))
    inputs, targets = torch.randn(BATCH, FEATURES), torch.randint(CLASSES, (BATCH,))
    return Case(model, moe, functional.cross_entropy, inputs, targets)


def demo_model(gate: str) -> Case:
    """Return the model of the demo."""
    settings = DemoSettings()
    model = make_model(gate, settings, seed=0)
    inputs = torch.rand(settings.batch_size, settings.canvas**2)
    targets = torch.randint(10, (settings.batch_size, 2))
    return Case(model, model.moe, two_task_loss, inputs, targets)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row for each model: milliseconds a step and a search, and the share of the search.

    A row takes about `seconds`; at least two searches run in any case.
    """
    builders = {gate: partial(layer_of_64, gate) for gate in WIDE_GATES}
    builders |= {f"demo, {gate}": partial(demo_model, gate) for gate in SEARCHED}
    rows = []
    with one_thread():
        torch.manual_seed(0)
        for name, build in builders.items():
            # The first of two runs compiles the kernels.
            for steps in (100, 200):
                total, search = trained(build(), steps)
            while total < seconds and steps < 1000:
                steps = min(1000, max(2 * steps, int(steps * seconds / total)) // 100 * 100)
                total, search = trained(build(), steps)
            training = total - search.seconds
            records = search.history
            rows.append(
                {
                    "model": name,
                    "problem": records[-1].problem,
                    "step, ms": 1e3 * training / steps,
                    "search, ms": 1e3 * search.seconds / len(records),
                    "solver, ms": 1e3 * float(np.mean([record.seconds_solving for record in records])),
                    "searches": len(records),
                    "share": search.seconds / training,
                    "bar": BAR,
                    "met": search.seconds <= BAR * training,
                }
            )
    return pd.DataFrame(rows)
