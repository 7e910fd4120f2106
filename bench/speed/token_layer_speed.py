"""Speed of a mixture layer on tokens with SwiGLU experts against the blocks of Transformers with the same experts.

Both have the same weights and give the same outputs and gradients. They take turns on one core, in the time that it
works for us. The block of Mixtral has routed experts alone, that of Qwen2-MoE a shared one too, weighed by a sigmoid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import moe_search as ms
from moe_search.bench.experiments.training import one_thread
from moe_search.bench.speed.rounds import compared, in_turns

try:
    import transformers
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
except ImportError as error:
    raise ImportError('the blocks of Transformers come with pip install "moe-search[peers]"') from error

TITLE = "A layer of SwiGLU experts on tokens against the blocks of Transformers"
NOTES = """\
- Tokens of shape [8, 512, 256] or fewer, hidden width 512, k = 2. Ours and the peer are medians in milliseconds of CPU
  time, the ratio is the median over rounds of how many times as fast as the peer ours is.
- "skewed" routes by a popularity of 1 / rank, as the routing of untrained and of some trained models is.
"""
ROUNDS = 25
BAR = 1.0


@dataclass(frozen=True)
class Case:
    """A batch of token sequences and the layer that they go through."""

    sequences: int = 8
    length: int = 512
    width: int = 256
    hidden: int = 512
    num_experts: int = 32
    k: int = 2
    shared: bool = False
    skewed: bool = False


CASES = (
    Case(),
    Case(skewed=True),
    Case(shared=True),
    Case(num_experts=8),
    Case(num_experts=64),
    Case(sequences=1),
)


def peer_block(case: Case) -> Any:
    """Return the block of Transformers, with weights from torch's generator."""
    sizes: dict[str, Any] = {
        "hidden_size": case.width,
        "num_experts_per_tok": case.k,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    config: Any
    if case.shared:
        config = transformers.Qwen2MoeConfig(
            moe_intermediate_size=case.hidden,
            shared_expert_intermediate_size=case.hidden,
            num_experts=case.num_experts,
            norm_topk_prob=True,
            **sizes,
        )
    else:
        config = transformers.MixtralConfig(intermediate_size=case.hidden, num_local_experts=case.num_experts, **sizes)
    config._experts_implementation = "grouped_mm"  # there is no public way for a block alone
    block: Any = (Qwen2MoeSparseMoeBlock if case.shared else MixtralSparseMoeBlock)(config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=case.width**-0.5)
        if case.skewed:
            block.gate.weight[:, 0] = -torch.arange(1.0, case.num_experts + 1).log()
    return block


def our_layer(case: Case, block: Any) -> Any:
    """Return our layer with copies of the weights of a block."""

    def swiglu(n: int) -> ms.StackedExperts:
        return ms.StackedExperts(n, case.width, case.width, case.hidden, nn.SiLU, gated=True, bias=False)

    layer: Any = ms.MixtureOfExperts(
        swiglu(case.num_experts),
        ms.TopK(case.width, case.num_experts, case.k),
        shared=swiglu(1) if case.shared else None,
        shared_gate=nn.Linear(case.width, 1, bias=False) if case.shared else None,
    )
    pairs = [(layer.experts.weights, (block.experts.gate_up_proj, block.experts.down_proj))]
    with torch.no_grad():
        if case.shared:
            one = block.shared_expert
            up = torch.cat([one.gate_proj.weight, one.up_proj.weight])
            pairs.append((layer.shared.weights, (up[None], one.down_proj.weight[None])))
            layer.shared_gate.weight.copy_(block.shared_expert_gate.weight)
        for stack, given in pairs:
            for ours, theirs in zip(stack, given, strict=True):
                ours.copy_(theirs)
        layer.gate.linear.weight.copy_(block.gate.weight)
        layer.gate.linear.bias.zero_()
    return layer


def contest(case: Case, backward: bool, seconds: float) -> list[list[float]]:
    """Return the milliseconds of ours and of the block in every round.

    It raises RuntimeError if outputs or gradients, of the tokens and the experts, disagree.
    """
    torch.manual_seed(0)
    block = peer_block(case)
    layer = our_layer(case, block)
    tokens = torch.randn(case.sequences, case.length, case.width, requires_grad=backward)
    with torch.no_grad():
        tokens[..., 0] = 1.0  # its weights are those of a bias

    def ours() -> Tensor:
        mixture: Tensor = layer(tokens.flatten(0, 1))
        return mixture.view_as(tokens)

    def theirs() -> Tensor:
        outputs: Tensor = block(tokens)
        return outputs

    def step(forward: Callable[[], Tensor]) -> list[Tensor]:
        with torch.set_grad_enabled(backward):
            outputs = forward()
        if not backward:
            return [outputs]
        torch.autograd.backward(outputs.square().mean())
        gradients = [tensor.grad for tensor in (tokens, *layer.experts.weights, *block.experts.parameters())]
        layer.zero_grad()
        block.zero_grad()
        tokens.grad = None
        return [outputs.detach(), *(gradient for gradient in gradients if gradient is not None)]

    def milliseconds(forward: Callable[[], Tensor]) -> float:
        before = time.thread_time()
        step(forward)
        return 1e3 * (time.thread_time() - before)

    for a, b in zip(step(ours), step(theirs), strict=True):
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max())):
            raise RuntimeError(f"ours and the block disagree for {case}: by up to {(a - b).abs().max():.2g}")
    with one_thread():
        return in_turns([lambda: milliseconds(ours), lambda: milliseconds(theirs)], ROUNDS, seconds)


def measure(qaplib: Path | None, seconds: float) -> pd.DataFrame:
    """Return one row for each layer and direction, of about `seconds`; a training step must not be slower."""
    rows = []
    for case in CASES:
        for backward in (False, True):
            rounds = contest(case, backward, seconds)
            row = {
                "block": "Qwen2-MoE" if case.shared else "Mixtral",
                "tokens": case.sequences * case.length,
                "n": case.num_experts,
                "routing": "skewed" if case.skewed else "even",
                "task": "training step" if backward else "forward",
            }
            result = compared(*rounds)
            of_bar = {"bar": BAR, "met": result["ratio"] >= BAR} if backward else {"bar": float("nan"), "met": None}
            rows.append(row | result | of_bar)
    return pd.DataFrame(rows)
