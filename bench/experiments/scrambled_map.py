"""Trained specialists under a gate that fits them, its map then scrambled: what training alone has to learn around."""

from __future__ import annotations

from dataclasses import replace

import torch

from moe_search.bench.demo.settings import SearchSchedule
from moe_search.bench.experiments.experiment import Numbers
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    FASHION,
    TwoImageSettings,
    specialists,
    train_on,
    ways_back,
)

SCHEDULE = SearchSchedule(period=2, until=10, iterations=2000)
"""Short: the first search finds the map, and those that follow it only take time."""


def run_trial(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists, scramble the map of their gate, and train on."""
    model, intact_loss = specialists(settings, seed, gate)
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    return train_on(model, settings, seed, search, intact_loss)


EXPERIMENTS = ways_back(
    name="scrambled",
    title="A scrambled map under trained specialists",
    question=(
        "Experts are trained as specialists with a gate that fits them; then the gate's map is scrambled. How many "
        "training steps does it take to get back to the validation loss before the scrambling?"
    ),
    run_trial=run_trial,
    sizes=tuple(replace(sizes, schedule=SCHEDULE) for sizes in (DIGITS, FASHION)),
)
