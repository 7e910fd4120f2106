"""Fresh weights and experts drawn alike: one set of hyperparameters, and a random search over them.

A permutation only relabels such experts, until training has told them apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from moe_search.bench.experiments.experiment import LOSS, Experiment, Measure, Numbers, require_libraries
from moe_search.bench.experiments.gates import GATES, SMOOTH, SPARSE, make_gate
from moe_search.bench.experiments.journal import draw_parameters
from moe_search.bench.experiments.training import SEARCHES, SearchSchedule
from moe_search.bench.experiments.two_image_model import NUM_EXPERTS, TwoImageModel, make_model
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    EQUAL_TIME,
    FINAL_MEASURES,
    TwoImageSettings,
    load,
    shrunk,
    train_on,
    train_on_images,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

LEARNING_RATES = (1e-4, 1e-2)
BATCH_SIZES = (128, 256)
GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 5.0)
ENTROPIES = (1e-3, 1e-2, 1e-1, 1.0, 5.0)
"""The ranges in the published configurations of COMET and DSelect-k for two-digit images, where the learning rate is
at most 1e-3 over many epochs; their short runs on faces go up to 1e-2."""


@dataclass(frozen=True)
class TuningSettings:
    """Sizes of a trial.

    Attributes
    ----------
    images : TwoImageSettings
        The data, the model and the schedule; `steps` is for the batch size of the model, and larger batches get fewer
        steps.
    data_seed : int
        The data are the same for all trials: a trial differs in hyperparameters and first weights.
    num_slots : int or None
        Slots of the gate; one for each expert by default.
    evaluations : int
        How often the validation loss is taken in a run, after its start.
    """

    images: TwoImageSettings
    data_seed: int = 100
    num_slots: int | None = None
    evaluations: int = 20


@dataclass(frozen=True)
class Hyperparameters:
    """What a trial of the random search is given; only gates with a smooth step take gamma and entropy."""

    learning_rate: float
    batch_size: int
    gamma: float
    entropy: float


def train_fresh(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train a fresh model."""
    return train_on(make_model(gate, settings.model, seed), settings, seed, search, None)


def train_drawn(settings: TuningSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train a fresh model with the hyperparameters that the seed draws, alike with and without search."""
    drawn = draw(seed, gate)
    images = settings.images
    steps = images.steps * min(BATCH_SIZES) // drawn.batch_size
    _, numbers = train_on_images(
        make_tuned_model(drawn, settings, seed, gate),
        load(images, settings.data_seed),
        drawn.batch_size,
        seed,
        steps=steps,
        learning_rate=drawn.learning_rate,
        search=search,
        schedule=images.schedule,
        evaluated=tuple(round(steps * part / settings.evaluations) for part in range(settings.evaluations + 1)),
    )
    return numbers | {name: float(value) for name, value in asdict(drawn).items()}


def space(gate: str) -> dict[str, BaseDistribution]:
    """Return what is drawn for a gate; the first two are drawn alike for all gates."""
    require_libraries("optuna")
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    common: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(*LEARNING_RATES, log=True),
        "batch_size": CategoricalDistribution(BATCH_SIZES),
    }
    if gate not in SMOOTH:
        return common
    return common | {"gamma": CategoricalDistribution(GAMMAS), "entropy": CategoricalDistribution(ENTROPIES)}


def draw(seed: int, gate: str) -> Hyperparameters:
    """Return the hyperparameters that Optuna's random sampler draws for a gate from a seed."""
    return Hyperparameters(**{"gamma": 1.0, "entropy": 0.0} | draw_parameters(space(gate), seed))


def make_tuned_model(drawn: Hyperparameters, settings: TuningSettings, seed: int, gate: str) -> TwoImageModel:
    """Return a fresh model whose gate has the hyperparameters drawn, and the slots of the settings."""
    model = make_model(gate, settings.images.model, seed)
    smooth: dict[str, Any] = {"gamma": drawn.gamma, "entropy": drawn.entropy} if gate in SMOOTH else {}
    pixels = settings.images.model.canvas**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.moe.gate = make_gate(gate, pixels, NUM_EXPERTS, num_slots=settings.num_slots, seed=seed, **smooth)
    return model


QUESTION = (
    "Every seed draws a learning rate, a batch size and, for gates with a smooth step, gamma and the weight of the "
    "entropy, from the published ranges. How good is the best of r trials, chosen by validation loss, with and without "
    "search of the map, and how many trials does a loss take? The weights are fresh"
)


def tuning_experiment(name: str, title: str, question: str, num_slots: int | None) -> Experiment:
    """Return a random search with as many slots as given, one for each expert by default."""
    return Experiment(
        name=name,
        title=title,
        question=question,
        gates=SPARSE,
        searches=("none", "search"),
        settings=TuningSettings(
            replace(DIGITS, schedule=SearchSchedule(period=30, until=150, batches=4, iterations=2000)),
            num_slots=num_slots,
        ),
        smoke=TuningSettings(shrunk(DIGITS), num_slots=num_slots, evaluations=3),
        run_trial=train_drawn,
        measures=(
            Measure(LOSS, "validation loss"),
            Measure("test_loss", "test loss"),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
        seeds=60,
        curves=False,
        space=space,
    )


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
    tuning_experiment(
        "tuning-budget",
        "Random search over hyperparameters, digits",
        f"{QUESTION}, the experts alike and as many as slots, so that a map found early is but another name for them.",
        None,
    ),
    tuning_experiment(
        "tuning-budget-slots",
        "Random search over hyperparameters, four slots an expert, digits",
        f"{QUESTION}; every expert has four slots, so that a map decides which slots share one.",
        4 * NUM_EXPERTS,
    ),
)
