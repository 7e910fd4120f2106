"""The tasks on which the number of experts of a sample is counted: canvases of digits, films, tokens of a BERT."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.bench.experiments import two_image_trials, user_table
from moe_search.bench.experiments.token_teacher import (
    CHUNK,
    TokenStates,
    TokenTableSettings,
    split,
    taught,
)
from moe_search.bench.experiments.two_image_model import make_model, two_task_loss
from moe_search.bench.experiments.two_image_trials import TwoImageSettings
from moe_search.bench.experiments.user_table import FilmModel, UserTableSettings, film_batch, film_loss
from moe_search.gates import HashRouting
from moe_search.layers import MixtureOfExperts, StackedExperts
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.losses import Loss


@dataclass(frozen=True, eq=False)
class Task:
    """Data, and a fresh model for them.

    Attributes
    ----------
    model : Module
        Its layer `moe` has experts for `in_features` features, and a gate that is to be replaced.
    loss : callable
        ``loss(outputs, targets)``, the mean over samples.
    """

    train: Batch
    validation: Batch
    test: Batch
    model: nn.Module
    in_features: int
    loss: Loss

    @property
    def moe(self) -> MixtureOfExperts:
        """The mixture layer of the model."""
        assert isinstance(self.model.moe, MixtureOfExperts)
        return self.model.moe


def digits_task(settings: TwoImageSettings, seed: int) -> Task:
    """Return canvases of two digits and `TwoImageModel`."""
    data, model = two_image_trials.load(settings, seed), make_model("COMET", settings.model, seed)
    return Task(data.train, data.validation, data.test, model, settings.model.canvas**2, two_task_loss)


def films_task(settings: UserTableSettings, seed: int) -> Task:
    """Return pairs of a user and a film, and `FilmModel`, whose gate is to see all that its experts do."""
    data = user_table.load(settings.path, settings.negatives, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FilmModel(data, settings)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return film_loss(outputs, targets, settings.rating_weight)

    train, validation, test = (film_batch(split) for split in (data.train, data.validation, data.test))
    return Task(train, validation, test, model, model.width, loss)


class TokenRowModel(nn.Module):
    """A mixture of fresh experts in the place of a feed-forward layer, with the frozen normalization behind it."""

    def __init__(self, normalization: nn.Module, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.normalization = normalization
        self.moe = moe

    def forward(self, attended: Tensor) -> Tensor:
        """Return what the layer makes of tokens, shape [P, H], from their states after attention."""
        return self.normalization(self.moe(attended) + attended)


def tokens_task(settings: TokenTableSettings, seed: int) -> Task:
    """Return tokens of film reviews in the last layer of an encoder, and a mixture that is to answer as it does.

    The loss is the squared error in parts of the variance of the targets: that of their mean is 1.
    """
    layer, splits = _token_rows(settings, seed)
    n, width = settings.experts, splits[0].inputs.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = StackedExperts(n, width, width, settings.neurons)
    model = TokenRowModel(layer.output.LayerNorm, MixtureOfExperts(experts, HashRouting(n, in_features=width)))
    variance = float(splits[0].targets.var(0).mean())

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / variance

    return Task(*splits, model, width, loss)


@lru_cache(maxsize=1)
def _token_rows(settings: TokenTableSettings, seed: int) -> tuple[Any, tuple[Batch, Batch, Batch]]:
    """Return the last layer of the encoder, and its inputs after attention and outputs; those of the last seed stay."""
    encoder, states = taught(settings)
    layer = encoder.layers[-1]
    train, validation, test = (_attended(layer, part) for part in split(states, seed))
    return layer, (train, validation, test)


@torch.no_grad()
def _attended(layer: Any, snippets: TokenStates) -> Batch:
    parts = []
    for rows in torch.split(torch.arange(len(snippets)), CHUNK):
        batch = snippets.batch(rows)
        parts.append(layer.attention(batch.padded(batch.inputs), batch.attention_mask)[0][batch.mask])
    return Batch(torch.cat(parts), snippets.states[1])
