"""The last layers of an encoder, their feed-forward layers split into experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.bench.experiments.token_teacher import TokenBatch, TokenStates
from moe_search.gates import HashRouting
from moe_search.layers import MixtureOfExperts, split_feed_forward


class TokenLayer(nn.Module):
    """A layer of a BERT with a mixture of experts instead of the feed-forward layer, which is split into them.

    Gate and experts are trained; attention and normalization are those of the teacher's layer, shared with it and
    frozen.
    """

    def __init__(self, layer: Any, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.attention = layer.attention
        self.normalization = layer.output.LayerNorm
        self.moe = moe

    @property
    def gate(self) -> Any:
        """The gate of the mixture."""
        return self.moe.gate

    def train(self, mode: bool = True) -> TokenLayer:
        """Leave the frozen parts in eval mode: the teacher has no dropout."""
        super().train(mode)
        self.attention.eval()
        return self

    def attend(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Return the states of tokens after attention, shape [P, H]."""
        return self.attention(batch.padded(tokens), batch.attention_mask)[0][batch.mask]

    def forward(self, attended: Tensor, ids: Tensor) -> Tensor:
        """Return what the layer makes of tokens, shape [P, H], from their states after attention and their ids."""
        return self.normalization(self.moe(attended, ids) + attended)


class TokenStudent(nn.Module):
    """The last layers of an encoder, each a `TokenLayer` with a mixture of its own."""

    def __init__(self, layers: Sequence[Any], mixtures: Sequence[MixtureOfExperts]) -> None:
        super().__init__()
        pairs = zip(layers, mixtures, strict=True)
        self.layers: Sequence[TokenLayer] = nn.ModuleList(  # type: ignore[assignment]
            [TokenLayer(layer, moe) for layer, moe in pairs]
        )

    def forward(self, batch: TokenBatch) -> list[Tensor]:
        """Return what every layer makes of the real tokens, shape [P, H] each."""
        outputs, tokens = [], batch.inputs
        for layer in self.layers:
            tokens = layer(layer.attend(tokens, batch), batch.ids)
            outputs.append(tokens)
        return outputs

    def attended(self, batch: TokenBatch, index: int) -> Tensor:
        """Return what the mixture of a layer takes, shape [P, H], the layers before it routing as they do."""
        tokens = batch.inputs
        for layer in self.layers[:index]:
            tokens = layer(layer.attend(tokens, batch), batch.ids)
        return self.layers[index].attend(tokens, batch)

    def maps(self) -> NDArray[np.int64]:
        """Return the experts of all slots, layer after layer."""
        return np.concatenate([layer.gate.expert_map.experts[0].numpy() for layer in self.layers])


def table_mixture(layer: Any, neurons: Tensor, slots: Tensor, num_slots: int) -> MixtureOfExperts:
    """Return the feed-forward layer of a layer of a BERT, split into experts that a table of tokens chooses among.

    `neurons`, shape [n, d], are those of the experts; `slots`, shape [vocabulary], has the slot of every token id.
    """
    experts = split_feed_forward(
        layer.intermediate.dense,
        layer.output.dense,
        partial(getattr, layer.intermediate, "intermediate_act_fn"),
        neurons,
    )
    experts.requires_grad_(True)
    return MixtureOfExperts(experts, HashRouting(len(neurons), num_slots, table=slots))


def distillation_losses(outputs: Sequence[Tensor], batch: TokenBatch) -> Tensor:
    """Return the squared error of every layer, the mean over tokens and features; shape [layers].

    Zuo et al. (2022), MoEBERT, whose distillation adds them up.
    """
    errors = [(output - target).square().mean() for output, target in zip(outputs, batch.targets, strict=True)]
    return torch.stack(errors)


@torch.no_grad()
def evaluate(student: TokenStudent, data: TokenStates) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the loss of every layer over all tokens of the data, shape [layers], and the embedding of every snippet.

    An embedding is the mean of the last states of the tokens, shape [N, H] for all. The student is left in eval mode.
    """
    student.eval()
    total = np.zeros(len(student.layers))
    embeddings = torch.empty(len(data), data.states[-1].shape[1])
    for rows in data.chunks(torch.arange(len(data))):
        batch = data.batch(rows)
        outputs = student(batch)
        total += distillation_losses(outputs, batch).double().numpy() * len(batch.ids)
        embeddings[rows] = batch.means(outputs[-1])
    return total / len(data.ids), embeddings.double().numpy()
