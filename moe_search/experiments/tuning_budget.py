"""The tuning budget: random search over hyperparameters, with and without search of the expert map."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from moe_search.demo.model import EXPERTS_PER_SAMPLE, NUM_EXPERTS, TwoDigitsModel, make_model, two_task_loss
from moe_search.demo.settings import SearchSchedule
from moe_search.demo.training_run import evaluate
from moe_search.experiments.experiment import Experiment, Measure, Numbers
from moe_search.experiments.step_training import endless_batches, train_by_steps
from moe_search.experiments.two_image_trials import DIGITS, TwoImageSettings, load, smoke
from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.training.batch import Batch

LEARNING_RATES = (1e-4, 1e-2)
BATCH_SIZES = (128, 256)
GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 5.0)
ENTROPIES = (1e-3, 1e-2, 1e-1, 1.0, 5.0)
"""The ranges in the published configurations of COMET and DSelect-k for two-digit images, where the learning rate is
at most 1e-3 over many epochs; that up to 1e-2 is of their short runs on faces."""

SMOOTH = {"COMET": COMET, "DSelect-k": DSelectK}


@dataclass(frozen=True)
class TuningSettings:
    """Sizes of a trial.

    Attributes
    ----------
    images : TwoImageSettings
        Its data, model and schedule; `steps` is for the batch size of its model, and larger batches get fewer steps.
    data_seed : int
        Of the data, the same for all trials: a trial differs in hyperparameters and first weights.
    """

    images: TwoImageSettings
    data_seed: int = 100


@dataclass(frozen=True)
class Hyperparameters:
    """What a trial of the random search is given; gamma and entropy are of smooth-step gates alone."""

    learning_rate: float
    batch_size: int
    gamma: float
    entropy: float


def run_trial(settings: TuningSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train from fresh weights with the hyperparameters that the seed draws, alike with and without search.

    Raises
    ------
    ImportError
        If Optuna is missing.
    """
    drawn = draw(seed, gate)
    images = settings.images
    data = load(images, settings.data_seed)
    model = make_tuned_model(drawn, settings, seed, gate)
    run = train_by_steps(
        model,
        model.moe,
        two_task_loss,
        endless_batches(Batch(data.train.inputs, data.train.targets), drawn.batch_size, seed),
        lambda: evaluate(model, data.validation).loss,
        steps=images.steps * min(BATCH_SIZES) // drawn.batch_size,
        learning_rate=drawn.learning_rate,
        search=search,
        schedule=images.schedule,
        seed=seed,
    )
    model.load_state_dict(run.best)
    test = evaluate(model, data.test)
    return run.numbers() | {
        "learning_rate": drawn.learning_rate,
        "batch_size": float(drawn.batch_size),
        "gamma": drawn.gamma,
        "entropy": drawn.entropy,
        "test_loss": test.loss,
        "accuracy": sum(test.accuracies) / len(test.accuracies),
    }


def draw(seed: int, gate: str) -> Hyperparameters:
    """Return the hyperparameters that Optuna's random sampler draws for a gate from a seed.

    Raises
    ------
    ImportError
        If Optuna is missing.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tuning needs optuna, which is missing: pip install 'moe-search[experiments]'") from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    finally:
        optuna.logging.set_verbosity(verbosity)
    smooth = gate in SMOOTH
    return Hyperparameters(
        learning_rate=trial.suggest_float("learning_rate", *LEARNING_RATES, log=True),
        batch_size=trial.suggest_categorical("batch_size", BATCH_SIZES),
        gamma=trial.suggest_categorical("gamma", GAMMAS) if smooth else 1.0,
        entropy=trial.suggest_categorical("entropy", ENTROPIES) if smooth else 0.0,
    )


def make_tuned_model(drawn: Hyperparameters, settings: TuningSettings, seed: int, gate: str) -> TwoDigitsModel:
    """Return a fresh model whose gate has the hyperparameters drawn."""
    model = make_model(gate, settings.images.model, seed)
    if gate in SMOOTH:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.moe.gate = SMOOTH[gate](
                settings.images.model.canvas**2,
                NUM_EXPERTS,
                EXPERTS_PER_SAMPLE,
                gamma=drawn.gamma,
                entropy=drawn.entropy,
                shared_map=True,
            )
    return model


EXPERIMENTS = (
    Experiment(
        name="tuning-budget",
        title="Random search over hyperparameters, digits",
        question=(
            "Every seed draws a learning rate, a batch size and, for gates with a smooth step, gamma and the weight of "
            "the entropy, from the published ranges. How good is the best of r trials, chosen by validation loss, with "
            "and without search of the map, and how many trials does a loss take?"
        ),
        gates=("Top-k", "COMET"),
        searches=("none", "search"),
        seeds=50,
        settings=TuningSettings(
            replace(DIGITS, steps=400, schedule=SearchSchedule(period=40, until=200, batches=4, iterations=2000))
        ),
        smoke=TuningSettings(smoke("digits")),
        run_trial=run_trial,
        measures=(
            Measure("least_validation_loss", "validation loss"),
            Measure("test_loss", "test loss"),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
        maps=("first_map", "last_map"),
        budget="least_validation_loss",
    ),
)
