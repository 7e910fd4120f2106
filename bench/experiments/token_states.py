"""Snippets as an encoder sees them: the states of their tokens, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_search.bench.datasets.sentence_encoder import SentenceEncoder

CHUNK = 64
"""Snippets that are encoded at a time."""


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
    """Return the states of the tokens of texts, from what goes into a layer of the encoder on.

    Parameters
    ----------
    encoder : SentenceEncoder
    texts : sequence of str
    scores : Tensor
        Shape [N].
    first_layer : int
        From 0 on; the states kept are its input, its output, and the outputs of all layers behind it.
    max_tokens : int
        Tokens of a snippet at most, the special ones included.
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
