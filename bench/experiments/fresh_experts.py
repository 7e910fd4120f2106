"""Fresh weights and experts drawn alike, under one set of hyperparameters; `published` draws them.

A permutation only relabels such experts, until training has told them apart.
"""

from __future__ import annotations

from dataclasses import replace

from moe_search.bench.experiments.experiment import Experiment, Numbers
from moe_search.bench.experiments.gates import GATES
from moe_search.bench.experiments.training import SEARCHES, SearchSchedule
from moe_search.bench.experiments.two_image_model import make_model
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    EQUAL_TIME,
    FINAL_MEASURES,
    TwoImageSettings,
    shrunk,
    train_on,
)


def train_fresh(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train a fresh model."""
    return train_on(make_model(gate, settings.model, seed), settings, seed, search, None)


EXPERIMENTS = (
    Experiment(
        name="fresh-digits",
        title="Identical fresh experts, digits",
        question="All weights are fresh, all experts drawn alike. Does search of the map change where training ends?",
        gates=GATES,
        searches=SEARCHES,
        settings=replace(
            DIGITS,
            steps=500,
            learning_rate=3e-3,
            schedule=SearchSchedule(period=50, until=300, batches=1, iterations=300),
            relaxation_steps=300,
        ),
        smoke=shrunk(DIGITS),
        run_trial=train_fresh,
        measures=FINAL_MEASURES,
        equal_time=EQUAL_TIME,
    ),
)
