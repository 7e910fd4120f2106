"""The teacher of the distilled BERT: what it makes of the tokens of film reviews, and which of its neurons matter."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn

from moe_search.bench.datasets import sentence_encoder, snippets
from moe_search.bench.datasets.made_text import write_made_text
from moe_search.bench.datasets.sentence_encoder import SentenceEncoder, load_sentence_encoder
from moe_search.bench.datasets.snippets import Snippets, load_snippets
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.layers import deal_neurons
from moe_search.training import neuron_importance

TRAIN_SHARE = 0.8
VALIDATION_SHARE = 0.05
"""Parts of the snippets; the rest are the test data."""

CHUNK = 64
"""Snippets that are encoded at a time."""

RIDGES = np.logspace(-2, 3, 11)
"""Penalties of a ridge regression, of which the one with the least leave-one-out error is taken."""

SCHEDULE = SearchSchedule(period=5, until=5)
"""One search, at step 5, before the experts have grown used to the tokens of a random table."""


@dataclass(frozen=True)
class TokenTableSettings:
    """Sizes of a trial.

    Attributes
    ----------
    layers, experts, slots : int
        The last layers of the encoder, whose feed-forward layers are split; experts of each, and slots of its table.
    neurons, shared : int
        Hidden units of an expert, and how many of them all experts have in common at the start.
    max_tokens : int
        Tokens of a snippet at most, the special ones included.
    snippets, importance_snippets, search_snippets : int
        Snippets at most that are divided into training, validation and test data; and those of the training data by
        which neurons are ranked, and that a search looks at.
    prediction_weight : float
        Weight of the squared error between the ratings that the teacher's head reads from student and teacher.
    schedule : SearchSchedule
        Only its period and end count.
    evaluation_period : int
        Steps from one validation loss to the next.
    made : bool
        Whether to make up snippets and a tiny encoder where no path is given.
    path : str or None
        Folder with the archive of the snippets and the wheel of the encoder.
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
    learning_rate: float = 1e-3
    prediction_weight: float = 0.01
    schedule: SearchSchedule = SCHEDULE
    search_snippets: int = 1000
    evaluation_period: int = 20
    made: bool = False
    path: str | None = None


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """The P real tokens of some snippets, which only attention mixes.

    Attributes
    ----------
    mask : Tensor of bool
        Shape [B, L], where a token is real.
    inputs : Tensor
        Shape [P, H], what goes into the first layer of the student.
    ids, owners : Tensor of int64
        Shape [P]: the vocabulary id of every token, and the row of its snippet.
    targets : tuple of Tensor
        Shape [P, H]: what the teacher makes of every token, layer by layer.
    """

    mask: Tensor
    inputs: Tensor
    ids: Tensor
    owners: Tensor
    targets: tuple[Tensor, ...]

    @property
    def attention_mask(self) -> Tensor:
        """What is added to the scores of attention, shape [B, 1, 1, L]."""
        dtype = self.inputs.dtype
        added = torch.zeros(self.mask.shape, dtype=dtype).masked_fill(~self.mask, torch.finfo(dtype).min)
        return added[:, None, None, :]

    def padded(self, tokens: Tensor) -> Tensor:
        """Return tokens [P, H] as snippets, shape [B, L, H], 0 where there is no token."""
        places = self.mask.nonzero(as_tuple=True)
        return tokens.new_zeros(*self.mask.shape, tokens.shape[1]).index_put(places, tokens)

    def means(self, tokens: Tensor) -> Tensor:
        """Return the mean over the tokens of every snippet, shape [B, ...], of tokens [P, ...]."""
        sums = tokens.new_zeros(len(self.mask), *tokens.shape[1:]).index_add(0, self.owners, tokens)
        return sums / self.mask.sum(1).view(-1, *[1] * (tokens.ndim - 1))


@dataclass(frozen=True, eq=False)
class TokenStates:
    """Snippets, and what a teacher makes of their tokens.

    Attributes
    ----------
    ids : Tensor of int64
        Shape [P], the tokens of all snippets.
    lengths : Tensor of int64
        Shape [N], the tokens of each.
    states : tuple of Tensor
        Shape [P, H] each: what goes into the first of some layers, and what comes out of every one of them.
    scores : Tensor
        Shape [N], the ratings.
    """

    ids: Tensor
    lengths: Tensor
    states: tuple[Tensor, ...]
    scores: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Tensor) -> TokenStates:
        """Return the snippets of some rows, shape [B], in their order."""
        ends = self.lengths.cumsum(0)
        places = torch.cat([torch.arange(int(ends[row] - self.lengths[row]), int(ends[row])) for row in rows])
        states = tuple(each[places] for each in self.states)
        return TokenStates(self.ids[places], self.lengths[rows], states, self.scores[rows])

    def batch(self, rows: Tensor) -> TokenBatch:
        """Return the snippets of some rows, shape [B]."""
        lengths = self.lengths[rows]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        starts = (self.lengths.cumsum(0) - self.lengths)[rows]
        places = (starts[:, None] + torch.arange(mask.shape[1]))[mask]
        owners = torch.arange(len(rows))[:, None].expand_as(mask)[mask]
        inputs, *targets = (each[places] for each in self.states)
        return TokenBatch(mask, inputs, self.ids[places], owners, tuple(targets))

    def means(self) -> Tensor:
        """Return the mean of the teacher's last states of every snippet, shape [N, H]."""
        return torch.stack([part.mean(0) for part in torch.split(self.states[-1], self.lengths.tolist())])

    def chunks(self, rows: Tensor) -> Iterator[Tensor]:
        """Yield rows, `CHUNK` at a time, snippets of like length together: padding costs as much as tokens."""
        yield from torch.split(rows[self.lengths[rows].argsort(stable=True)], CHUNK)


@torch.no_grad()
def encode(
    encoder: SentenceEncoder, texts: Sequence[str], scores: Tensor, *, first_layer: int, max_tokens: int
) -> TokenStates:
    """Return the states of the tokens of N texts: the input of a layer, its output, and those of all layers behind it.

    A text has at most `max_tokens`, the special ones included, and one of the scores, shape [N].
    """
    tokens = encoder.tokens(texts, max_tokens)
    lengths = torch.tensor([len(each) for each in tokens])
    ids = torch.cat(tokens)
    starts = lengths.cumsum(0) - lengths
    kept: list[Tensor] = []
    for rows in torch.split(lengths.argsort(stable=True), CHUNK):
        padded = torch.nn.utils.rnn.pad_sequence([tokens[row] for row in rows], batch_first=True)
        mask = torch.arange(padded.shape[1]) < lengths[rows, None]
        found = encoder.model(padded, attention_mask=mask.long(), output_hidden_states=True).hidden_states[first_layer:]
        if not kept:
            kept = [state.new_empty(len(ids), state.shape[2]) for state in found]
        places = (starts[rows, None] + torch.arange(padded.shape[1]))[mask]
        for whole, state in zip(kept, found, strict=True):
            whole[places] = state[mask]
    return TokenStates(ids, lengths, tuple(kept), scores)


@dataclass(frozen=True, eq=False)
class Teaching:
    """What the trials of a seed share.

    Attributes
    ----------
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


def split(states: TokenStates, seed: int) -> tuple[TokenStates, TokenStates, TokenStates]:
    """Return training, validation and test snippets."""
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(seed))
    cuts = [round(share * len(order)) for share in (TRAIN_SHARE, TRAIN_SHARE + VALIDATION_SHARE)]
    train, validation, test = (states.select(rows) for rows in order.tensor_split(cuts))
    return train, validation, test


@lru_cache(maxsize=1)
def teach(settings: TokenTableSettings, seed: int) -> Teaching:
    """Return what the trials of a seed share; the last one is kept."""
    encoder, states = taught(settings)
    train, validation, test = split(states, seed)
    head = _rating_head(train)
    layers = encoder.layers[-settings.layers :]

    def rating_errors(rows: Tensor) -> Tensor:
        batch = train.batch(rows)
        hidden = batch.padded(batch.inputs)
        for layer in layers:
            attended = layer.attention(hidden, batch.attention_mask)[0]
            hidden = layer.output(layer.intermediate(attended), attended)
        return (head(batch.means(hidden[batch.mask]))[:, 0] - train.scores[rows]).square()

    pairs = [(layer.intermediate.dense, layer.output.dense) for layer in layers]
    rows = torch.arange(min(settings.importance_snippets, len(train)))
    scores = neuron_importance(pairs, rating_errors, train.chunks(rows))
    neurons = tuple(deal_neurons(each, settings.experts, settings.neurons, settings.shared) for each in scores)
    return Teaching(encoder, train, validation, test, head, neurons)


@lru_cache(maxsize=1)
def taught(settings: TokenTableSettings) -> tuple[SentenceEncoder, TokenStates]:
    """Return the teacher and what it makes of the snippets of all seeds."""
    encoder, data = read_encoder_and_snippets(settings.path, settings.made)
    first = len(encoder.layers) - settings.layers
    if first < 0:
        raise ValueError(f"layers must be at most {first + settings.layers}, all of the encoder, got {settings.layers}")
    # In random order: any of them will do.
    texts, scores = data.train.texts[: settings.snippets], torch.from_numpy(data.train.scores[: settings.snippets])
    return encoder, encode(encoder, texts, scores, first_layer=first, max_tokens=settings.max_tokens)


def _rating_head(train: TokenStates) -> nn.Linear:
    found = RidgeCV(RIDGES).fit(train.means().double().numpy(), train.scores.double().numpy())
    head = nn.Linear(len(found.coef_), 1)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(found.coef_)[None])
        head.bias.fill_(float(found.intercept_))
    return head.requires_grad_(False)


def read_encoder_and_snippets(path: str | None, made: bool) -> tuple[SentenceEncoder, Snippets]:
    """Return both from a folder, or made ones where no path is given and `made` says so."""
    if path is not None:
        return load_sentence_encoder(path), load_snippets(path)
    if not made:
        raise FileNotFoundError(
            f"--data must be a folder with what the experiment reads, got none: {snippets.HOW_TO_GET}; "
            f"{sentence_encoder.HOW_TO_GET}"
        )
    with tempfile.TemporaryDirectory() as name:
        write_made_text(name)
        return load_sentence_encoder(name), load_snippets(name)
