"""Trials on canvases of two images: their sizes, their data, and training by steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, TypeVar

import torch

from moe_search.bench.datasets.two_images import load_two_digits, load_two_fashion, load_two_mnist
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers, RunTrial
from moe_search.bench.experiments.gates import SPARSE
from moe_search.bench.experiments.training import SEARCHES, SearchSchedule, StepRun, endless_batches, train_by_steps
from moe_search.bench.experiments.two_image_model import (
    SMOKE_SIZES,
    DataTensors,
    ModelSizes,
    TwoImageModel,
    evaluate,
    to_tensors,
    two_task_loss,
)

SEEDS_APART = 1_000_000
"""Between the seed of what is trained first and that of what is put in its place."""

EQUAL_TIME = ("sinkhorn", "search")

FINAL_MEASURES = (
    Measure("test_loss", "test loss"),
    Measure("accuracy", "test accuracy", better="higher"),
    Measure("training_seconds", "seconds of training", digits=2),
)

SCHEDULE = SearchSchedule(period=2, until=40, iterations=2000)


@dataclass(frozen=True)
class TwoImageSettings:
    """Sizes of a trial.

    Attributes
    ----------
    model : ModelSizes
        Sizes of the data, the model, and the training of specialists.
    steps, learning_rate
        Steps of the training that is compared, and the rate of Adam in it.
    schedule : SearchSchedule
        When it searches: early, for every step under a wrong map does harm that only many steps undo.
    relaxation_steps : int
        The step at which the published relaxation is rounded.
    shrink : int
        By how much the images of ``"mnist"`` and ``"fashion"`` are shrunk.
    path : str or None
        Where their files lie, if not where their package puts them, or in the working directory those of ``"mnist"``.
    """

    source: Literal["digits", "mnist", "fashion"]
    model: ModelSizes
    steps: int = 300
    learning_rate: float = 1e-3
    schedule: SearchSchedule = SCHEDULE
    relaxation_steps: int = 100
    shrink: int = 2
    path: str | None = None


DIGITS = TwoImageSettings("digits", ModelSizes())
FASHION = TwoImageSettings(
    "fashion", ModelSizes(canvas=18, num_train=12_000, num_validation=1000, num_test=4000, pretraining_epochs=5)
)

Sized = TypeVar("Sized", bound=TwoImageSettings)


def shrunk(settings: Sized) -> Sized:
    """Return settings with sizes that take seconds and only show that all works."""
    return replace(
        settings,
        model=replace(SMOKE_SIZES, canvas=settings.model.canvas),
        steps=12,
        learning_rate=1e-3,
        schedule=SearchSchedule(period=4, until=8, batches=2, iterations=100),
        relaxation_steps=8,
    )


def recovery_experiments(
    name: str,
    title: str,
    question: str,
    run_trial: RunTrial,
    gates: tuple[str, ...] = SPARSE,
    sizes: Sequence[TwoImageSettings] = (DIGITS, FASHION),
) -> tuple[Experiment, ...]:
    """Return an experiment for each of some sizes, on the steps back to the loss of intact specialists.

    The source of the images is added to name and title, what never gets there to the question.
    """
    return tuple(
        Experiment(
            name=f"{name}-{settings.source}",
            title=f"{title}, {settings.source}",
            question=f"{question} A run that does not get there in {{steps:,}} steps counts with these.",
            gates=gates,
            searches=SEARCHES,
            settings=settings,
            smoke=shrunk(settings),
            run_trial=run_trial,
            measures=(
                Measure("steps_to_intact", "steps to the intact loss", digits=0, factor=10.0),
                Measure("reached", "reached it", better="higher", digits=2),
                *FINAL_MEASURES,
            ),
            equal_time=EQUAL_TIME,
        )
        for settings in sizes
    )


@lru_cache(maxsize=1)
def load(settings: TwoImageSettings, seed: int) -> DataTensors:
    """Return the data of a seed; the last one is kept for the trials that share it."""
    sizes = settings.model
    counts = (sizes.num_train, sizes.num_validation, sizes.num_test)
    if settings.source == "digits":
        canvases = load_two_digits(*counts, canvas=sizes.canvas, seed=seed)
    else:
        load_two = load_two_mnist if settings.source == "mnist" else load_two_fashion
        canvases = load_two(*counts, canvas=sizes.canvas, shrink=settings.shrink, seed=seed, path=settings.path)
    return to_tensors(canvases, torch.device("cpu"))


def train_on(
    model: TwoImageModel,
    settings: TwoImageSettings,
    seed: int,
    search: str,
    intact_loss: float | None,
    data: DataTensors | None = None,
    frozen_steps: int = 0,
) -> Numbers:
    """Train a model in place and return the numbers of the trial.

    Where there is an `intact_loss`, the first step with such a loss is looked for. A run that never gets there counts
    with all its steps: what it would have needed is more. The data are those of `load` by default.
    """
    run, numbers = train_on_images(
        model,
        load(settings, seed) if data is None else data,
        settings.model.batch_size,
        seed,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        search=search,
        schedule=settings.schedule,
        relaxation_steps=settings.relaxation_steps,
        frozen_steps=frozen_steps,
    )
    if intact_loss is not None:
        reached = run.steps_to(intact_loss)
        numbers |= {
            "intact_loss": intact_loss,
            "reached": float(reached is not None),
            "steps_to_intact": float(settings.steps if reached is None else max(reached, 1)),
        }
    return numbers


def train_on_images(
    model: TwoImageModel, data: DataTensors, batch_size: int, seed: int, **options: Any
) -> tuple[StepRun, dict[str, float | list[float]]]:
    """Train a model in place by `train_by_steps`, whose further options these are, and leave it as it was best.

    The numbers are those of the run and of the best model on the test data.
    """
    run = train_by_steps(
        model,
        model.moe,
        two_task_loss,
        endless_batches(data.train, batch_size, seed),
        lambda: evaluate(model, data.validation).loss,
        seed=seed,
        **options,
    )
    model.load_state_dict(run.best)
    test = evaluate(model, data.test)
    accuracy = sum(test.accuracies) / len(test.accuracies)
    return run, run.numbers() | {"test_loss": test.loss, "accuracy": accuracy}
