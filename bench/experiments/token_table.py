"""A table from tokens to experts in a distilled BERT, far more tokens than experts: searched against random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import Tensor

from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.table_search import TokenTableSearch, frequency_strata, random_table, token_slots
from moe_search.bench.experiments.token_student import (
    TokenStudent,
    distillation_losses,
    evaluate,
    table_mixture,
)
from moe_search.bench.experiments.token_teacher import (
    RIDGES,
    Teaching,
    TokenBatch,
    TokenStates,
    TokenTableSettings,
    teach,
)
from moe_search.bench.experiments.training import SearchSchedule, StepRun, endless_rows, train
from moe_search.checks import require_choice

TABLES = ("Hash", "Balanced hash")
"""Equally many slots an expert, of all slots or of every group of about equally frequent ones."""


def run_trial(settings: TokenTableSettings, seed: int, gate: str, search: str) -> Numbers:
    """Distill from the split teacher and a random table."""
    require_choice("gate", gate, TABLES)
    teaching = teach(settings, seed)
    slots = token_slots(teaching.counts, settings.slots)
    layers = teaching.encoder.layers[-settings.layers :]
    student = TokenStudent(
        layers,
        [
            table_mixture(layer, neurons, torch.from_numpy(slots), settings.slots)
            for layer, neurons in zip(layers, teaching.neurons, strict=True)
        ],
    )
    loads = np.bincount(slots, teaching.counts, minlength=settings.slots).astype(np.int64)
    strata = frequency_strata(loads, settings.experts) if gate == TABLES[1] else [np.arange(settings.slots)]
    generator = torch.Generator().manual_seed(seed)
    for layer in student.layers:
        layer.gate.expert_map.assign(random_table(strata, settings.experts, generator)[None])
    tables = TokenTableSearch(student, teaching.train, strata, settings.search_snippets, seed)
    run = distill(student, teaching, settings, seed, tables if search == "search" else None)
    taught = (teaching.train, teaching.test)
    (_, of_train), (test, of_test) = (evaluate(student, each) for each in taught)
    return run.numbers() | {
        "test_loss": float(test.sum()),
        "test_losses": test.tolist(),
        "test_rmse": rating_error([of_train, of_test], taught),
        "teacher_rmse": rating_error([each.means().double().numpy() for each in taught], taught),
        "highest_load": highest_load(student, teaching.test),
        "slots_moved": float((run.first_map != run.last_map).mean()),
    }


def distill(
    student: TokenStudent,
    teaching: Teaching,
    settings: TokenTableSettings,
    seed: int,
    tables: TokenTableSearch | None,
) -> StepRun:
    """Train a student in place to make of every token what the teacher makes of it, layer by layer.

    The loss is the squared error of the layers' outputs, summed over the layers, plus that of the rating that the
    teacher's head reads from their mean. The seed decides the batches. The tables, if any are given, are searched after
    the steps that the schedule tells.
    """
    head, rows = teaching.head, endless_rows(len(teaching.train), settings.batch_size, seed)

    def loss(batch: TokenBatch) -> Tensor:
        outputs = student(batch)
        read, told = (head(batch.means(each)) for each in (outputs[-1], batch.targets[-1]))
        return distillation_losses(outputs, batch).sum() + settings.prediction_weight * (read - told).square().mean()

    def after_step(step: int, batch: TokenBatch) -> None:
        if tables is not None and settings.schedule.due(step):
            tables.search()

    run = train(
        student,
        torch.optim.Adam([each for each in student.parameters() if each.requires_grad], settings.learning_rate),
        (teaching.train.batch(each) for each in rows),
        loss,
        lambda: float(evaluate(student, teaching.validation)[0].sum()),
        student.maps,
        steps=settings.steps,
        evaluated=tuple(range(0, settings.steps + 1, settings.evaluation_period)),
        after_step=after_step,
    )
    return run if tables is None else run.searched_by(*tables.of_layers)


def rating_error(of_snippets: Sequence[NDArray[np.float64]], data: Sequence[TokenStates]) -> float:
    """Return the root mean squared error of ratings on the second of two data sets, read off by a ridge regression.

    `of_snippets` are embeddings [N, H] of the snippets of either. The first fits the regression, with the penalty of
    the least leave-one-out error.
    """
    fitted, told = (each.scores.double().numpy() for each in data)
    read = RidgeCV(RIDGES).fit(of_snippets[0], fitted).predict(of_snippets[1])
    return float(np.sqrt(np.mean((read - told) ** 2)))


def highest_load(student: TokenStudent, data: TokenStates) -> float:
    """Return the tokens of the fullest expert in parts of the mean, the mean over layers."""
    loads = []
    for layer in student.layers:
        experts = layer.gate.expert_map.experts[0][layer.gate.table[data.ids]]
        counts = torch.bincount(experts, minlength=layer.gate.num_experts)
        loads.append(float(counts.max() / counts.double().mean()))
    return sum(loads) / len(loads)


EXPERIMENTS = (
    Experiment(
        name="token-table",
        title="A table from tokens to experts, MiniLM on film reviews",
        question=(
            "The last feed-forward layers of a BERT are split into experts by importance and distilled, a table "
            "sending every token to one of them. Does a table that is searched meanwhile come closer to the teacher "
            "than a random one?"
        ),
        gates=TABLES,
        searches=("none", "search"),
        settings=TokenTableSettings(),
        smoke=TokenTableSettings(
            layers=1,
            experts=2,
            neurons=8,
            shared=4,
            slots=16,
            max_tokens=12,
            snippets=90,
            importance_snippets=20,
            batch_size=8,
            steps=12,
            schedule=SearchSchedule(period=4, until=8),
            search_snippets=40,
            evaluation_period=4,
            made=True,
        ),
        run_trial=run_trial,
        measures=(
            Measure("test_loss", "test distillation loss", digits=5),
            Measure("test_rmse", "test RMSE, rating", digits=4),
            Measure("highest_load", "highest load / mean"),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
        maps=False,
    ),
)
