"""The last layers of an encoder, their feed-forward layers split into experts that a table of tokens chooses among."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.bench.experiments.token_states import TokenBatch, TokenStates, attention_mask
from moe_search.gates.hash_routing import HashRouting
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.split_feed_forward import split_feed_forward


class TokenStudent(nn.Module):
    """Layers of a BERT with a mixture of experts each instead of the feed-forward layer.

    The experts are trained; attention and normalization are those of the teacher, frozen.

    Parameters
    ----------
    layers : sequence of BertLayer
        Of the teacher; their modules are shared, not copied.
    neurons : sequence of Tensor
        For every layer the neurons of its experts, shape [n, d].
    slots : Tensor of int64
        Shape [vocabulary], the slot of every token id.
    num_slots : int
    """

    def __init__(self, layers: Sequence[Any], neurons: Sequence[Tensor], slots: Tensor, num_slots: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList([layer.attention for layer in layers])
        self.normalization = nn.ModuleList([layer.output.LayerNorm for layer in layers])
        self.mixtures = nn.ModuleList()
        for layer, chosen in zip(layers, neurons, strict=True):
            experts = split_feed_forward(
                layer.intermediate.dense,
                layer.output.dense,
                partial(getattr, layer.intermediate, "intermediate_act_fn"),
                chosen,
            )
            experts.requires_grad_(True)
            self.mixtures.append(MixtureOfExperts(experts, HashRouting(len(chosen), num_slots, table=slots)))

    def train(self, mode: bool = True) -> TokenStudent:
        """Leave the frozen parts in eval mode: the teacher has no dropout."""
        super().train(mode)
        self.attention.eval()
        return self

    def forward(self, batch: TokenBatch) -> list[Tensor]:
        """Return what every layer makes of the real tokens, shape [P, H] each."""
        outputs = []
        hidden, added = batch.inputs, attention_mask(batch.mask, batch.inputs.dtype)
        for layer in range(len(self.mixtures)):
            attended = self._attended(layer, hidden, added, batch.mask)
            outputs.append(self._answer(layer, attended, batch))
            hidden = _padded(outputs[-1], batch.mask)
        return outputs

    @torch.no_grad()
    def expert_losses(self, batch: TokenBatch, layer: int) -> NDArray[np.float64]:
        """Return the loss of every expert of a layer on every real token, shape [P, n].

        It is that of the layer's own output, the layers before it routing as they do.
        """
        hidden, added = batch.inputs, attention_mask(batch.mask, batch.inputs.dtype)
        for before in range(layer):
            hidden = _padded(self._answer(before, self._attended(before, hidden, added, batch.mask), batch), batch.mask)
        attended = self._attended(layer, hidden, added, batch.mask)
        answers = self.normalization[layer](self._mixture(layer).expert_outputs(attended) + attended[:, None])
        return (answers - batch.targets[layer][:, None]).square().mean(2).double().numpy()

    def _answer(self, layer: int, attended: Tensor, batch: TokenBatch) -> Tensor:
        return self.normalization[layer](self._mixture(layer)(attended, batch.ids) + attended)

    def _attended(self, layer: int, hidden: Tensor, added: Tensor, mask: Tensor) -> Tensor:
        return self.attention[layer](hidden, added)[0][mask]

    def gate(self, layer: int) -> HashRouting:
        """Return the gate of a layer."""
        gate = self._mixture(layer).gate
        assert isinstance(gate, HashRouting)
        return gate

    def experts_of(self, layer: int, ids: Tensor) -> Tensor:
        """Return the experts of a layer that tokens [P] go to."""
        gate = self.gate(layer)
        return gate.expert_map.experts[0][gate.table[ids]]

    def _mixture(self, layer: int) -> MixtureOfExperts:
        mixture = self.mixtures[layer]
        assert isinstance(mixture, MixtureOfExperts)
        return mixture

    def maps(self) -> NDArray[np.int64]:
        """Return the experts of all slots, layer after layer."""
        return np.concatenate([self.gate(layer).expert_map.experts[0].numpy() for layer in range(len(self.mixtures))])


def distillation_losses(outputs: Sequence[Tensor], batch: TokenBatch) -> Tensor:
    """Return the squared error of every layer, the mean over tokens and features; shape [layers].

    Zuo et al. (2022), MoEBERT, whose distillation adds them up.
    """
    errors = [(output - target).square().mean() for output, target in zip(outputs, batch.targets, strict=True)]
    return torch.stack(errors)


@torch.no_grad()
def layer_losses(student: TokenStudent, data: TokenStates) -> NDArray[np.float64]:
    """Return the loss of every layer over all tokens of the data, shape [layers]; the student is left in eval mode."""
    student.eval()
    total = np.zeros(len(student.mixtures))
    for rows in data.chunks(torch.arange(len(data))):
        batch = data.batch(rows)
        total += distillation_losses(student(batch), batch).double().numpy() * len(batch.ids)
    return total / len(data.ids)


@torch.no_grad()
def embeddings(student: TokenStudent, data: TokenStates) -> NDArray[np.float64]:
    """Return the mean of the last states of every snippet, shape [N, H]; the student is left in eval mode."""
    student.eval()
    found = torch.empty(len(data), data.states[-1].shape[1])
    for rows in data.chunks(torch.arange(len(data))):
        batch = data.batch(rows)
        found[rows] = batch.means(student(batch)[-1])
    return found.double().numpy()


def _padded(tokens: Tensor, mask: Tensor) -> Tensor:
    places = mask.nonzero(as_tuple=True)
    return tokens.new_zeros(*mask.shape, tokens.shape[1]).index_put(places, tokens)
