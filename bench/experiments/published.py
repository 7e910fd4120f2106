"""The published comparison at our scale: every gate alone, with the published relaxation, with our search, tuned alike.

Ibrahim, Chen, Hazimeh, Ponomareva, Zhao and Mazumder (2023), COMET: learning cardinality constrained mixture of experts
with trees and local search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.experiments import two_image_trials, user_table
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers, draw_of, require_libraries
from moe_search.bench.experiments.gates import GATES, SMOOTH, make_gate
from moe_search.bench.experiments.journal import draw_parameters
from moe_search.bench.experiments.training import SEARCHES, SearchSchedule, endless_batches, train_by_steps
from moe_search.bench.experiments.two_image_model import TwoImageModel, two_task_loss
from moe_search.bench.experiments.two_image_trials import DIGITS, FASHION, TwoImageSettings, shrunk
from moe_search.bench.experiments.user_table import STARS, FilmModel, UserTableSettings, film_batch, film_loss
from moe_search.gates import Gate, HashRouting
from moe_search.layers import MixtureOfExperts, StackedExperts
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.losses import Loss

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Model: TypeAlias = FilmModel | TwoImageModel

GAMMAS = (1e-3, 1e-2, 1e-1, 1.0, 5.0)
ENTROPIES = (1e-3, 1e-2, 1e-1, 1.0, 5.0)

SMALL_BATCH = 128
"""The batch size that the steps of the settings are for; twice as large ones get half as many, equal samples."""

RELAXED = 0.1
"""The first part of the steps after which the relaxation is rounded: the largest of the published range."""

SEARCHED = 0.5
"""The first part of the steps in which ours searches, five times."""

SLOTS_PER_EXPERT = {"m = n": 1, "m = 4n": 4}


@dataclass(frozen=True)
class Domain:
    """What is tuned on one set of data: its published sizes and ranges.

    Attributes
    ----------
    experts, k : int
        Experts, and those that a sample comes down to.
    gammas, entropies : tuple of float
        Drawn for gates with a smooth step.
    learning_rates : (float, float)
        Drawn log-uniform. Published are 1e-4 to 1e-3 for two images and 5e-5 to 5e-4 for films, over up to 100 epochs:
        runs as short as ours need larger ones too.
    """

    experts: int
    k: int
    batch_sizes: tuple[int, ...] = (SMALL_BATCH, 2 * SMALL_BATCH)
    gammas: tuple[float, ...] = GAMMAS
    entropies: tuple[float, ...] = ENTROPIES
    learning_rates: tuple[float, float] = (1e-4, 1e-2)


DOMAINS = {
    "MovieLens": Domain(16, 2, (512,), (0.1, 1.0, 10.0), (0.05, 0.1, 0.5, 1.0, 5.0, 10.0)),
    "digits": Domain(8, 2),
    "MNIST": Domain(16, 4),
    "Fashion": Domain(6, 2),
}


@dataclass(frozen=True)
class Case:
    """A gate on some data with so many slots, which stands for a gate of the experiment by its name."""

    data: str
    slots: str
    gate: str

    @classmethod
    def of(cls, name: str) -> Case:
        """Return the case of a name."""
        return cls(*name.split(", "))

    @property
    def name(self) -> str:
        """What the experiment calls it."""
        return f"{self.data}, {self.slots}, {self.gate}"

    @property
    def domain(self) -> Domain:
        """What is tuned on its data."""
        return DOMAINS[self.data]


CASES = tuple(Case(data, slots, gate) for data in DOMAINS for slots in SLOTS_PER_EXPERT for gate in GATES)


@dataclass(frozen=True)
class PublishedSettings:
    """Sizes of a trial.

    Attributes
    ----------
    digits, clothing : TwoImageSettings
        Data and model of canvases of scikit-learn's digits, and of MNIST and Fashion-MNIST; their own steps, rates and
        schedules are not looked at.
    films : UserTableSettings
        Data and model of MovieLens-100k, likewise.
    steps : int
        Training steps of batches of `SMALL_BATCH`, or of any batch of films.
    evaluations : int
        How often the validation loss is taken in a run, after its start.
    batches, iterations : int
        What a search looks at, and evaluates.
    data_seed : int
        The data are the same for all trials: a trial differs in hyperparameters, first weights and batches.
    path : str or None
        Folder of the files of MovieLens, MNIST and Fashion-MNIST; by default where their packages put them, and the
        working directory for MNIST.
    """

    digits: TwoImageSettings = DIGITS
    clothing: TwoImageSettings = FASHION
    films: UserTableSettings = field(default_factory=UserTableSettings)
    steps: int = 300
    evaluations: int = 5
    batches: int = 2
    iterations: int = 1000
    data_seed: int = 100
    path: str | None = None


class WatchingAlone(nn.Module):
    """A model of films whose rating is none, for a search by the task that has nearly all of the loss.

    A search of many slots a sample takes cross-entropy or a squared error, and not the sum of both.
    """

    def __init__(self, model: FilmModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, items: Tensor, ids: Tensor) -> Tensor:
        """Return the logit of watching, and 0, shape [B, 2]."""
        outputs = self.model(items, ids)
        return outputs * outputs.new_tensor([1.0, 0.0])


@dataclass(frozen=True, eq=False)
class Task:
    """Data, and what is needed to make models for them and to say how good these are."""

    train: Batch
    validation: Batch
    test: Batch
    make_model: Callable[[], Model]
    loss: Loss

    @staticmethod
    def searched(model: Model) -> tuple[nn.Module, Loss] | None:
        """Return the model and the loss that a search looks at, if they are not those of the training."""
        if not isinstance(model, FilmModel):
            return None
        return WatchingAlone(model), functional.binary_cross_entropy_with_logits

    @torch.no_grad()
    def answer(self, model: Model, data: Batch) -> Tensor:
        """Return what a model, left in eval mode, says of all data."""
        model.eval()
        return model(data.inputs) if data.ids is None else model(data.inputs, ids=data.ids)


@lru_cache(maxsize=len(DOMAINS))
def load(settings: PublishedSettings, data: str) -> Task:
    """Return the task of some data; all are kept for the trials that share them."""
    if data == "MovieLens":
        films = user_table.load(settings.path, settings.films.negatives, settings.data_seed)
        train, validation, test = (film_batch(split) for split in (films.train, films.validation, films.test))
        sizes = replace(settings.films, experts=DOMAINS[data].experts)
        return Task(
            train,
            validation,
            test,
            partial(FilmModel, films, sizes),
            partial(film_loss, rating_weight=sizes.rating_weight),
        )
    images = {
        "digits": settings.digits,
        "MNIST": replace(settings.clothing, source="mnist", path=settings.path),
        "Fashion": replace(settings.clothing, path=settings.path),
    }[data]
    found = two_image_trials.load(images, settings.data_seed)
    make = partial(_image_model, images, DOMAINS[data])
    return Task(found.train, found.validation, found.test, make, two_task_loss)


def _image_model(images: TwoImageSettings, domain: Domain) -> TwoImageModel:
    sizes = images.model
    pixels = sizes.canvas**2
    experts = StackedExperts(domain.experts, pixels, sizes.features, sizes.hidden_features)
    return TwoImageModel(MixtureOfExperts(experts, HashRouting(domain.experts, in_features=pixels)), sizes.features)


@dataclass(frozen=True)
class Hyperparameters:
    """What a trial is given; only gates with a smooth step take gamma and entropy."""

    learning_rate: float
    batch_size: int
    gamma: float = 1.0
    entropy: float = 0.0


def space(gate: str) -> Mapping[str, BaseDistribution]:
    """Return what is drawn for a case; the first two are drawn alike for all gates on the same data."""
    require_libraries("optuna")
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    case = Case.of(gate)
    domain = case.domain
    common: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(*domain.learning_rates, log=True),
        "batch_size": CategoricalDistribution(domain.batch_sizes),
    }
    if case.gate not in SMOOTH:
        return common
    return common | {
        "gamma": CategoricalDistribution(domain.gammas),
        "entropy": CategoricalDistribution(domain.entropies),
    }


def draw(seed: int, gate: str) -> Hyperparameters:
    """Return the hyperparameters that Optuna's random sampler draws for a case from the draw that a seed is of."""
    return Hyperparameters(**draw_parameters(space(gate), draw_of(seed)))


def make_model(task: Task, case: Case, drawn: Hyperparameters, seed: int) -> Model:
    """Return a fresh model with the gate of the case; equal arguments give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.make_model()
        model.moe.gate = _make_gate(model, case, drawn, seed)
    return model


def _make_gate(model: Model, case: Case, drawn: Hyperparameters, seed: int) -> Gate:
    n = case.domain.experts
    slots = SLOTS_PER_EXPERT[case.slots] * n
    if isinstance(model, FilmModel):
        if case.gate == "Hash":
            # By the user: the features are learned, and their hash would change with every step.
            return HashRouting(n, slots, vocabulary=len(model.user_features), seed=seed)
        width = model.width
    else:
        assert isinstance(model.moe.experts, StackedExperts)
        width = model.moe.experts.in_features
    smooth: dict[str, Any] = {"gamma": drawn.gamma, "entropy": drawn.entropy} if case.gate in SMOOTH else {}
    return make_gate(case.gate, width, n, k=case.domain.k, num_slots=slots, seed=seed, **smooth)


def run_trial(settings: PublishedSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train a fresh model with the hyperparameters of the draw, alike under all searches, and test it at its best."""
    case, drawn = Case.of(gate), draw(seed, gate)
    task = load(settings, case.data)
    model = make_model(task, case, drawn, seed)
    steps = settings.steps * min(case.domain.batch_sizes) // drawn.batch_size
    relaxed, period = max(1, round(RELAXED * steps)), max(1, round(SEARCHED * steps / 5))
    evaluated = {round(steps * part / settings.evaluations) for part in range(settings.evaluations + 1)}
    run = train_by_steps(
        model,
        model.moe,
        task.loss,
        endless_batches(task.train, drawn.batch_size, seed),
        lambda: float(task.loss(task.answer(model, task.validation), task.validation.targets)),
        steps=steps,
        learning_rate=drawn.learning_rate,
        search=search,
        schedule=SearchSchedule(period, round(SEARCHED * steps), settings.batches, settings.iterations),
        relaxation_steps=relaxed,
        # No model counts whose permutation is still soft.
        evaluated=tuple(sorted(step for step in evaluated if step == 0 or step >= relaxed)),
        seed=seed,
        searched=task.searched(model),
    )
    model.load_state_dict(run.best)
    outputs = task.answer(model, task.test)
    return {
        "least_validation_loss": min(run.losses),
        "test_loss": float(task.loss(outputs, task.test.targets)),
        **_quality(outputs, task.test),
        "committed": float(run.committed),
        "cpu_seconds": run.cpu_seconds[-1],
        "searching_seconds": run.seconds_searching,
    }


def _quality(outputs: Tensor, test: Batch) -> dict[str, float]:
    """Return the accuracy, mean over both images, or the AUC of watching and the error of the rating in stars."""
    if test.ids is None:
        return {"quality": float((outputs.argmax(-1) == test.targets).double().mean())}
    watched = test.targets[:, 0].bool()
    errors = STARS * (outputs[watched, 1] - test.targets[watched, 1])
    return {
        "quality": float(roc_auc_score(watched.numpy(), outputs[:, 0].numpy())),
        "test_rmse": float(errors.square().mean().sqrt()),
    }


EXPERIMENTS = (
    Experiment(
        name="published",
        title="The published comparison, on films and on two images",
        question=(
            "Every gate alone, with the published relaxation (sinkhorn) and with our search, as many slots as experts "
            "or four times as many, all tuned alike: {steps} steps, the same draws of the shared hyperparameters. "
            "MovieLens has 16 experts, 2 a sample; digits 8 and 2; MNIST 16 and 4; Fashion-MNIST 6 and 2."
        ),
        gates=tuple(case.name for case in CASES),
        searches=SEARCHES,
        settings=PublishedSettings(),
        smoke=PublishedSettings(
            digits=shrunk(DIGITS),
            clothing=shrunk(FASHION),
            films=UserTableSettings(hidden_features=8, features=4, item_embedding=4),
            steps=8,
            evaluations=2,
            batches=1,
            iterations=20,
        ),
        run_trial=run_trial,
        measures=(
            Measure("test_loss", "test loss", digits=4),
            Measure("quality", "accuracy or AUC", better="higher", digits=4),
            Measure("test_rmse", "test RMSE, stars", digits=4),
            Measure("cpu_seconds", "processor seconds", digits=1),
        ),
        seeds=200,
        curves=False,
        maps=False,
        space=space,
        fresh_seeds=5,
        pairs=(("none", "sinkhorn"), ("none", "search"), ("sinkhorn", "search")),
    ),
)
