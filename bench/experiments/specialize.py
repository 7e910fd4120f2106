"""Fresh experts that specialize: which expert a sample trains in the first steps, by assignment and by competition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.datasets.hidden_groups import make_hidden_groups
from moe_search.bench.experiments.domain_experts import DomainSettings, domain_data
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.training import endless_batches, train
from moe_search.bench.experiments.two_image_model import SMOKE_SIZES, make_model, two_task_loss
from moe_search.bench.experiments.two_image_trials import DIGITS, TwoImageSettings, load as load_canvases
from moe_search.bench.experiments.user_table import (
    FilmModel,
    UserTableSettings,
    film_batch,
    film_loss,
    load as load_films,
)
from moe_search.checks import require_choice
from moe_search.gates import TopK
from moe_search.layers import MixtureOfExperts, StackedExperts
from moe_search.training import ExpertSpecialization, load_balancing_loss
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.forward_pass import forward
from moe_search.training.lowering.losses import Loss

GATE = "Switch"
SEARCHES = ("none", "penalty", "competition", "assignment", "both", "checked")
"""The gate alone; with `load_balancing_loss`; with `ExpertSpecialization`: competition alone, assignment alone,
assignment and then competition, and these with the check on samples held out."""

EXPERTS = 8
TASKS_APART = 7_000
"""Between the seed of the tasks and that of what a gate sees of them."""

Source = Literal["clusters", "styles", "digits", "movielens"]


@dataclass(frozen=True)
class SpecializeSettings:
    """Sizes of a trial.

    Attributes
    ----------
    samples, tasks : int
        Samples of each split, and tasks, of ``"clusters"``.
    code, blur : int, float
        Numbers by which a sample of ``"clusters"`` tells its task, standard normal for every task, and the standard
        deviation of a sample from these.
    until, assigned, check_after : int
        What `ExpertSpecialization` is given.
    penalty_weight : float
        It is 0.01 in Switch transformers.
    path : str or None
        Where the files of MovieLens-100k lie; the installed wheel by default.
    """

    source: Source
    samples: int = 3200
    tasks: int = 32
    code: int = 16
    blur: float = 0.3
    hidden_features: int = 16
    canvases: TwoImageSettings = DIGITS
    films: UserTableSettings = field(default_factory=lambda: UserTableSettings(user_embedding=8))
    batch_size: int = 128
    steps: int = 1000
    learning_rate: float = 3e-3
    until: int = 300
    assigned: int = 100
    check_after: int = 100
    penalty_weight: float = 0.01
    evaluation_period: int = 50
    path: str | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """A fresh model with a gate of one expert a sample, its loss, and training, validation and test data."""

    model: nn.Module
    moe: MixtureOfExperts
    loss: Loss
    splits: tuple[Batch, Batch, Batch]


class ClusterModel(nn.Module):
    """A mixture of experts with one output, which is the answer."""

    def __init__(self, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the answers, shape [B, 1]."""
        return self.moe(inputs)


@lru_cache(maxsize=1)
def cluster_data(settings: SpecializeSettings, seed: int) -> tuple[Batch, Batch, Batch]:
    """Return samples of tasks in hidden groups, each with a blurred code of its task behind its features."""
    codes = np.random.default_rng((seed, TASKS_APART)).normal(size=(settings.tasks, settings.code))
    found = []
    for split in range(3):
        data = make_hidden_groups(
            settings.tasks, EXPERTS, settings.samples // settings.tasks, own_part=0.0, seed=seed, split=split
        )
        noise = np.random.default_rng((seed, TASKS_APART, split)).normal(size=(len(data), settings.code))
        inputs = np.concatenate([data.inputs, codes[data.tasks] + settings.blur * noise], axis=1)
        found.append(Batch(torch.from_numpy(inputs).float(), torch.from_numpy(data.targets[:, None])))
    return found[0], found[1], found[2]


def make_problem(settings: SpecializeSettings, seed: int) -> Problem:
    """Return the problem of a source and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.source == "clusters":
            splits = cluster_data(settings, seed)
            width = splits[0].inputs.shape[1]
            experts = StackedExperts(EXPERTS, width, 1, settings.hidden_features)
            moe = MixtureOfExperts(experts, TopK(width, EXPERTS, 1))
            return Problem(ClusterModel(moe), moe, functional.mse_loss, splits)
        if settings.source == "movielens":
            films = replace(settings.films, path=settings.path)
            data = load_films(films.path, films.negatives, seed)
            film_model = FilmModel(data, films)
            film_model.moe.gate = TopK(film_model.width, EXPERTS, 1)

            def loss(outputs: Tensor, targets: Tensor) -> Tensor:
                return film_loss(outputs, targets, films.rating_weight)

            split = [replace(film_batch(each), groups=None) for each in (data.train, data.validation, data.test)]
            return Problem(film_model, film_model.moe, loss, (split[0], split[1], split[2]))
        model = make_model("Top-k", settings.canvases.model, seed)
        model.moe.gate = TopK(settings.canvases.model.canvas**2, EXPERTS, 1)
    styled = settings.source == "styles"
    tensors = (
        domain_data(DomainSettings(**vars(settings.canvases)), seed).all
        if styled
        else load_canvases(settings.canvases, seed)
    )
    return Problem(model, model.moe, two_task_loss, (tensors.train, tensors.validation, tensors.test))


def run_trial(settings: SpecializeSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train fresh experts under a fresh gate."""
    require_choice("gate", gate, (GATE,))
    require_choice("search", search, SEARCHES)
    problem = make_problem(settings, seed)
    model, moe, loss = problem.model, problem.moe, problem.loss
    training, validation, test = problem.splits
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    specialization = None
    if search not in ("none", "penalty"):
        specialization = ExpertSpecialization(
            model,
            moe,
            loss=loss,
            until=settings.until,
            assigned={"competition": 0, "assignment": settings.until}.get(search, settings.assigned),
            optimizer=optimizer,
            # What is checked on chooses the step of the test loss too, in all runs: nothing more is held out.
            held_out=[(validation.inputs, validation.targets, validation.ids)] if search == "checked" else (),
            check_after=settings.check_after,
        )

    def step_loss(batch: Batch) -> Tensor:
        if specialization is not None:
            return specialization.loss(batch.inputs, batch.targets, batch.ids)
        total = loss(forward(model, batch), batch.targets)
        if search == "penalty":
            assert moe.routing is not None
            total = total + settings.penalty_weight * load_balancing_loss(moe.routing, moe.gate.expert_map)
        return total

    run = train(
        model,
        optimizer,
        endless_batches(training, settings.batch_size, seed),
        step_loss,
        lambda: evaluate(problem, validation),
        lambda: moe.gate.expert_map.experts.flatten().numpy().copy(),
        steps=settings.steps,
        evaluated=tuple(range(0, settings.steps + 1, settings.evaluation_period)),
        after_step=_counted(specialization),
    )
    model.load_state_dict(run.best)
    loads = _loads(problem, test)
    check = None if specialization is None else specialization.check
    return run.numbers() | {
        "test_loss": evaluate(problem, test),
        "highest_load": float(loads.max() / loads.mean()),
        "dead_experts": float((loads == 0).sum()),
        "kept": float(search not in ("none", "penalty") and (check is None or check.kept)),
        "training_cpu": run.cpu_seconds[-1],
    }


def _counted(specialization: ExpertSpecialization | None) -> Callable[[int, Batch], None]:
    def after_step(step: int, batch: Batch) -> None:
        if specialization is not None:
            specialization.step()

    return after_step


@torch.no_grad()
def evaluate(problem: Problem, split: Batch) -> float:
    """Return the loss of a split; the model is left in eval mode."""
    problem.model.eval()
    return float(problem.loss(forward(problem.model, split), split.targets))


@torch.no_grad()
def _loads(problem: Problem, split: Batch) -> Tensor:
    """Return the number of samples of a split that every expert has."""
    problem.model.train()
    forward(problem.model, split)
    assert problem.moe.routing is not None
    return (problem.moe.gate.expert_map(problem.moe.routing.weights) > 0).double().sum(0)


QUESTION = (
    "Fresh experts under a fresh gate that gives a sample one expert, weighed by the softmax over all (Switch). "
    "Penalty: its auxiliary loss, weight {penalty_weight}. In the first {until} of {steps:,} steps, the expert of a "
    "sample is decided by the losses under all experts: by competition, by balanced assignment, or by {assigned} "
    "steps of assignment and then competition (both). Checked: with a copy trained without, and the better of the two "
    "kept {check_after} steps later. Does the test loss become less?"
)
SMOKE = SpecializeSettings(
    "clusters",
    samples=320,
    tasks=8,
    hidden_features=4,
    canvases=replace(DIGITS, model=SMOKE_SIZES),
    batch_size=32,
    steps=12,
    until=6,
    assigned=3,
    check_after=2,
    evaluation_period=6,
)
SOURCES: tuple[tuple[Source, str, float], ...] = (
    ("clusters", "hidden clusters", 1e-2),
    ("styles", "digits in eight styles", 3e-3),
    ("digits", "plain digits", 3e-3),
    ("movielens", "MovieLens-100k", 1e-2),
)
EXPERIMENTS = tuple(
    Experiment(
        name=f"specialize-{source}",
        title=f"Fresh experts that specialize, {title}",
        question=QUESTION,
        gates=(GATE,),
        searches=SEARCHES,
        pairs=(
            ("none", "penalty"),
            ("none", "competition"),
            ("none", "assignment"),
            ("none", "both"),
            ("none", "checked"),
            ("penalty", "competition"),
            ("penalty", "both"),
            ("penalty", "checked"),
        ),
        settings=SpecializeSettings(source, learning_rate=rate),
        smoke=replace(SMOKE, source=source),
        run_trial=run_trial,
        measures=(
            Measure("test_loss", "test loss", digits=4),
            Measure("highest_load", "highest load / mean, test samples", digits=2),
            Measure("dead_experts", "dead experts", digits=1),
            Measure("kept", "specialization kept", better="higher", digits=1),
            Measure("training_cpu", "CPU seconds of training", digits=1),
        ),
        maps=False,
    )
    for source, title, rate in SOURCES
)
