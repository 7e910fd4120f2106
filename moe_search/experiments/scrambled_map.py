"""Trained specialists under a gate that fits them, its map then scrambled: what training alone has to learn around."""

from __future__ import annotations

import torch

from moe_search.experiments.experiment import Experiment, Numbers
from moe_search.experiments.step_training import SEARCHES
from moe_search.experiments.two_image_trials import (
    CURVE,
    DIGITS,
    FASHION,
    FINAL_MEASURES,
    MAPS,
    STEPS_MEASURE,
    TwoImageSettings,
    smoke,
    specialists,
    train_on,
)

GATES = ("Hash", "Top-k", "DSelect-k", "COMET")


def run_trial(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists, scramble the map of their gate, and train on."""
    model, intact_loss = specialists(settings, seed, gate)
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    return train_on(model, settings, seed, search, intact_loss)


EXPERIMENTS = tuple(
    Experiment(
        name=f"scrambled-{settings.source}",
        title=f"A scrambled map under trained specialists, {settings.source}",
        question=(
            "Experts are trained as specialists with a gate that fits them; then the gate's map is scrambled. How many "
            "training steps does it take to get back to the validation loss before the scrambling? A run that does not "
            f"get there in {settings.steps:,} steps counts with these."
        ),
        gates=GATES,
        searches=SEARCHES,
        seeds=10,
        settings=settings,
        smoke=smoke(settings.source),
        run_trial=run_trial,
        measures=(STEPS_MEASURE, *FINAL_MEASURES),
        curve=CURVE,
        maps=MAPS,
    )
    for settings in (DIGITS, FASHION)
)
