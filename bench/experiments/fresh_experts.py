"""Identical fresh experts: a permutation only relabels them, until training has told them apart."""

from __future__ import annotations

from dataclasses import replace

from moe_search.bench.experiments.experiment import Experiment, Numbers
from moe_search.bench.experiments.training import SEARCHES, SearchSchedule
from moe_search.bench.experiments.two_image_model import make_model
from moe_search.bench.experiments.two_image_trials import (
    CURVE,
    DIGITS,
    EQUAL_TIME,
    FINAL_MEASURES,
    MAPS,
    TwoImageSettings,
    shrunk,
    train_on,
)

GATES = ("Softmax", "Hash", "Top-k", "DSelect-k", "COMET")


def run_trial(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train a fresh model."""
    return train_on(make_model(gate, settings.model, seed), settings, seed, search, None)


EXPERIMENTS = (
    Experiment(
        name="fresh-digits",
        title="Identical fresh experts, digits",
        question="All weights are fresh, all experts drawn alike. Does search of the map change where training ends?",
        gates=GATES,
        searches=SEARCHES,
        seeds=10,
        settings=replace(
            DIGITS,
            steps=500,
            learning_rate=3e-3,
            schedule=SearchSchedule(period=50, until=300, batches=1, iterations=300),
            relaxation_steps=300,
        ),
        smoke=shrunk(DIGITS),
        run_trial=run_trial,
        measures=FINAL_MEASURES,
        curve=CURVE,
        maps=MAPS,
        equal_time=EQUAL_TIME,
    ),
)
