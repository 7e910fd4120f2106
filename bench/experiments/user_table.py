"""A table from users to experts, far more users than experts: searched under balance, against a random one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.datasets.movielens import MovieLens, Watches, load_movielens
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.training import SearchSchedule, batches_of, endless_batches, train_by_steps
from moe_search.gates import HashRouting
from moe_search.layers import MixtureOfExperts, StackedExperts
from moe_search.solvers import MaxIterations
from moe_search.training import PermutationSearch, SearchRecord
from moe_search.training.lowering.batch import Batch

STARS = 5.0
CHUNK = 16_384
"""Pairs that a search looks at at a time."""

SCHEDULE = SearchSchedule(period=25, until=250)


@dataclass(frozen=True)
class UserTableSettings:
    """Sizes of a trial.

    Attributes
    ----------
    hidden_features, features : int
        Hidden units and outputs of an expert.
    item_embedding, user_embedding : int
        Widths of the learned vectors; 0 for none.
    negatives : int
        Sampled films a rating.
    rating_weight : float
        Weight of the squared error of the rating, in parts of all five stars, beside the cross-entropy of watching.
    schedule : SearchSchedule
        A search looks at all pairs for training, whatever number of batches it says.
    evaluation_period : int
        Steps from one validation loss to the next.
    path : str or None
        Where the files of MovieLens-100k lie; the installed wheel by default.
    """

    experts: int = 8
    hidden_features: int = 32
    features: int = 16
    item_embedding: int = 16
    user_embedding: int = 0
    negatives: int = 1
    rating_weight: float = 1.0
    batch_size: int = 1024
    steps: int = 450
    learning_rate: float = 3e-3
    schedule: SearchSchedule = SCHEDULE
    evaluation_period: int = 50
    path: str | None = None


class FilmModel(nn.Module):
    """What is known of a film and its user, a mixture of experts routed by the user, and a head for both tasks."""

    item_features: Tensor
    user_features: Tensor

    def __init__(self, data: MovieLens, settings: UserTableSettings) -> None:
        super().__init__()
        self.register_buffer("item_features", torch.from_numpy(data.item_features))
        self.register_buffer("user_features", torch.from_numpy(data.user_features))
        num_items, num_users = len(data.item_ids), len(data.user_ids)
        self.items = nn.Embedding(num_items, settings.item_embedding) if settings.item_embedding else None
        self.users = nn.Embedding(num_users, settings.user_embedding) if settings.user_embedding else None
        width = self.item_features.shape[1] + self.user_features.shape[1]
        width += settings.item_embedding + settings.user_embedding
        self.width = width
        n = settings.experts
        # Every user has a slot; a few more make the slots a multiple of the experts.
        gate = HashRouting(n, -(-num_users // n) * n, vocabulary=num_users, table=range(num_users))
        experts = StackedExperts(n, width, settings.features, settings.hidden_features)
        self.moe = MixtureOfExperts(experts, gate)
        self.head = nn.Linear(settings.features, 2)

    def forward(self, items: Tensor, ids: Tensor) -> Tensor:
        """Return, for films [B] and users [B], the logit of watching and the rating in parts of five stars, [B, 2]."""
        parts = [self.item_features[items], self.user_features[ids]]
        if self.items is not None:
            parts.append(self.items(items))
        if self.users is not None:
            parts.append(self.users(ids))
        return self.head(self.moe(torch.cat(parts, dim=1), ids))


def film_loss(outputs: Tensor, targets: Tensor, rating_weight: float) -> Tensor:
    """Return the cross-entropy of watching plus the weighted squared error of the ratings there are, mean over pairs.

    Outputs and targets, shape [B, 2], are of watching and of the rating in parts of five stars.
    """
    watched = targets[:, 0]
    watching = functional.binary_cross_entropy_with_logits(outputs[:, 0], watched)
    return watching + rating_weight * (watched * (outputs[:, 1] - targets[:, 1]).square()).mean()


@lru_cache(maxsize=1)
def load(path: str | None, negatives: int, seed: int) -> MovieLens:
    """Return the data of a seed; the last one is kept for the trials that share it."""
    return load_movielens(path, negatives=negatives, seed=seed)


def run_trial(settings: UserTableSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train from fresh weights and a random balanced table."""
    data = load(settings.path, settings.negatives, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FilmModel(data, settings)
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    train, validation, test = (film_batch(split) for split in (data.train, data.validation, data.test))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return film_loss(outputs, targets, settings.rating_weight)

    search_of_tables = PermutationSearch(model, model.moe, loss=loss, stop=MaxIterations(1), seed=seed)
    generator = np.random.default_rng(seed)

    def on_step(step: int) -> None:
        if search == "search" and settings.schedule.due(step):
            search_table(search_of_tables, train, generator)

    run = train_by_steps(
        model,
        model.moe,
        loss,
        endless_batches(train, settings.batch_size, seed),
        lambda: float(loss(_answer(model, validation), validation.targets)),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        search="none",
        schedule=settings.schedule,
        seed=seed,
        evaluated=tuple(range(0, settings.steps + 1, settings.evaluation_period)),
        on_step=on_step,
    ).searched_by(search_of_tables)
    model.load_state_dict(run.best)
    outputs = _answer(model, test)
    watched = test.targets[:, 0].bool()
    errors = STARS * (outputs[watched, 1] - test.targets[watched, 1])
    users = len(data.user_ids)
    return run.numbers() | {
        "test_loss": float(loss(outputs, test.targets)),
        "test_auc": float(roc_auc_score(watched.numpy(), outputs[:, 0].numpy())),
        "test_rmse": float(errors.square().mean().sqrt()),
        "users_moved": float((run.first_map[:users] != run.last_map[:users]).mean()),
    }


def search_table(search: PermutationSearch, pairs: Batch, generator: np.random.Generator) -> SearchRecord:
    """Search the table on a random half of the pairs, and verify on the other, users being the independent units."""
    first = torch.from_numpy(generator.random(len(pairs)) < 0.5)
    searched, others = (batches_of(pairs, torch.split(half.nonzero()[:, 0], CHUNK)) for half in (first, ~first))
    return search.search_batches(searched, verify=others)


def film_batch(split: Watches) -> Batch:
    """Return pairs with the films as inputs, the users as ids and groups, and both targets."""
    targets = np.stack([split.watched, split.ratings / np.float32(STARS)], axis=1)
    users = torch.from_numpy(split.users)
    return Batch(torch.from_numpy(split.items), torch.from_numpy(targets), ids=users, groups=users)


@torch.no_grad()
def _answer(model: FilmModel, data: Batch) -> Tensor:
    model.eval()
    assert data.ids is not None
    return model(data.inputs, ids=data.ids)


EXPERIMENTS = (
    Experiment(
        name="user-table",
        title="A table from users to experts, MovieLens-100k",
        question=(
            "Every user has a slot of a hash gate, and the experts share the users equally. Does a table that is "
            "searched while the model is trained tell watched from unwatched films better than a random one?"
        ),
        gates=("Hash",),
        searches=("none", "search"),
        settings=UserTableSettings(),
        smoke=UserTableSettings(
            experts=4,
            hidden_features=8,
            batch_size=64,
            steps=12,
            schedule=SearchSchedule(period=4, until=8),
            evaluation_period=4,
        ),
        run_trial=run_trial,
        measures=(
            Measure("test_auc", "test AUC", better="higher", digits=4),
            Measure("test_loss", "test loss", digits=4),
            Measure("test_rmse", "test RMSE, stars"),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
        maps=False,
    ),
)
