"""Layers of one size, ours and the published ones: what the benchmarks of dispatch compare.

It imports what our layers do, and published layers where they are asked for.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import moe_search as ms

PEERS = ("mixtral", "mixtral_grouped", "lucidrains")

MOST_MULTIPLICATIONS = 1e10
"""A layer that needs more in a forward pass, all experts on all samples, is left out."""


@dataclass(frozen=True)
class Case:
    """One row of the benchmark: a layer, its batch and what is done with it."""

    samples: int
    width: int
    hidden: int
    num_experts: int
    k: int
    routing: str
    backward: bool

    def __str__(self) -> str:
        return f"{self.samples}x{self.width}-n{self.num_experts}-k{self.k}-{self.routing}"

    @property
    def dense_multiplications(self) -> float:
        """How many multiplications two affine maps of all experts on all samples take."""
        return 2.0 * self.samples * self.num_experts * self.width * self.hidden

    def gate(self, router: Tensor) -> ms.Gate:
        """Return the gate of our layer, Softmax where samples go to all experts."""
        gate: ms.TopK | ms.Softmax
        if self.k < self.num_experts:
            gate = ms.TopK(self.width, self.num_experts, self.k)
        else:
            gate = ms.Softmax(self.width, self.num_experts)
        with torch.no_grad():
            gate.linear.weight.copy_(router)
            gate.linear.bias.zero_()
        return gate

    def router(self) -> Tensor:
        """Return router weights of shape [n, d] for inputs whose first feature is 1.

        Logits are normal, about as wide as Gumbel's distribution, plus the log of the experts' popularity: its first k
        are then close to a draw by popularity, 1 / rank for "zipf".
        """
        weight = torch.randn(self.num_experts, self.width) * math.pi / math.sqrt(6 * self.width)
        weight[:, 0] = 0.0 if self.routing == "uniform" else -torch.arange(1.0, self.num_experts + 1).log()
        return weight

    def inputs(self) -> Tensor:
        """Return samples of shape [B, d] whose first feature is 1."""
        inputs = torch.randn(self.samples, self.width)
        inputs[:, 0] = 1.0
        return inputs


def cases() -> Iterator[Case]:
    """Yield all rows, the small layers first; of layers whose samples go to all experts those that take no minutes."""
    for samples, width, hidden in ((128, 64, 128), (1024, 128, 256), (4096, 256, 512)):
        for num_experts in (8, 16, 64):
            for k in (1, 2, 4, num_experts):
                for routing in ("uniform", "zipf") if k < num_experts else ("uniform",):
                    for backward in (False, True):
                        case = Case(samples, width, hidden, num_experts, k, routing, backward)
                        if k < num_experts or case.dense_multiplications <= MOST_MULTIPLICATIONS:
                            yield case


def our_layer(case: Case, router: Tensor) -> ms.MixtureOfExperts:
    """Return our layer, whose dispatch may be set."""
    return ms.MixtureOfExperts(
        ms.StackedExperts(case.num_experts, case.width, case.width, case.hidden), case.gate(router)
    )


def refuses(case: Case, layer: ms.MixtureOfExperts, dispatch: str) -> str | None:
    """Return why a dispatch is not possible or out of question at this size, or None if it is."""
    if dispatch == "dense" and case.dense_multiplications > MOST_MULTIPLICATIONS:
        return f"{case.num_experts / case.k:g} times the multiplications of the others"
    assert isinstance(layer.experts, ms.StackedExperts)
    return layer.experts.refuses_grouped() if dispatch == "grouped" else None


def peer_layer(case: Case, router: Tensor, peer: str) -> nn.Module:
    """Return a published layer, or raise ValueError if it does not know this case."""
    return _lucidrains(case, router) if peer == "lucidrains" else _mixtral(case, router, peer == "mixtral_grouped")


class Tokens(nn.Module):
    """A layer of token sequences [S, L, D] on our samples [B, D], without what it returns beside the mixture."""

    def __init__(self, layer: nn.Module, length: int) -> None:
        super().__init__()
        self.layer, self.length = layer, length

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the mixture of every sample."""
        outputs = self.layer(inputs.view(-1, min(self.length, len(inputs)), inputs.shape[1]))
        return (outputs[0] if isinstance(outputs, tuple) else outputs).flatten(0, 1)


def _mixtral(case: Case, router: Tensor, grouped: bool) -> nn.Module:
    modeling = _peer("transformers.models.mixtral.modeling_mixtral")
    config = _peer("transformers").MixtralConfig(
        hidden_size=case.width,
        intermediate_size=case.hidden,
        num_local_experts=case.num_experts,
        num_experts_per_tok=case.k,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    config._experts_implementation = "grouped_mm" if grouped else "eager"
    block = modeling.MixtralSparseMoeBlock(config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=case.width**-0.5)
        block.gate.weight.copy_(router)
    return Tokens(block, case.samples)


def _lucidrains(case: Case, router: Tensor) -> nn.Module:
    if case.k > 2:
        raise ValueError("routes a token to at most two experts")
    policy = "none" if case.k == 1 else "all"
    layer = _peer("mixture_of_experts").MoE(
        dim=case.width,
        num_experts=case.num_experts,
        hidden_dim=case.hidden,
        second_policy_train=policy,
        second_policy_eval=policy,
    )
    with torch.no_grad():
        layer.gate.w_gating.copy_(router.t())
    return Tokens(layer, 512)


def _peer(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is not installed; the published layers of this benchmark come with: "
            'pip install "moe-search[peers]"'
        ) from None
