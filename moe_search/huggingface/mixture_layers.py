"""Every mixture layer of a model of Hugging Face, by the contract that all its models keep since transformers 5."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROUTER_NAMES = ("gate", "router")


@dataclass(frozen=True, eq=False)
class MoELayer:
    """A mixture layer of a model, as it was when it was found.

    Parameters
    ----------
    name : str
        The name of the block in the model.
    block : Module
        What holds experts and router.
    experts : Module
        Called as ``experts(hidden, top_k_index, top_k_weights)``, with rows as the first axis of all three.
    router : Module
        Returns logits, weights and indices of the chosen experts of every row.
    num_experts : int
        Number of experts n, those that every row takes apart.
    top_k : int
        How many of them a row takes.
    num_groups : int
        The experts form groups of equal size, one after the other, of which a row takes experts of some only; 1 is no
        groups.

    Examples
    --------
    >>> import moe_search as ms
    >>> import torch
    >>> ms.moe_layers(torch.nn.Linear(2, 2))  # no mixture
    ()
    """

    name: str
    block: nn.Module = field(repr=False)
    experts: nn.Module = field(repr=False)
    router: nn.Module = field(repr=False)
    num_experts: int
    top_k: int
    num_groups: int = 1


def moe_layers(model: nn.Module) -> tuple[MoELayer, ...]:
    """Return every mixture layer of a model of transformers 5, in the order of its modules, which is that of a forward.

    Found are blocks that hold ``experts``, whose class transformers has decorated with ``use_experts_implementation``
    and which has weights of shape [n, ...], beside a ``gate`` or ``router``: all models of mixtures that transformers
    5 has itself.

    Parameters
    ----------
    model : Module
        A model of transformers, of any kind of head.

    Returns
    -------
    tuple of MoELayer
        Empty if there is none.

    Examples
    --------
    >>> import moe_search as ms
    >>> from transformers import MixtralConfig, MixtralModel
    >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = MixtralModel(MixtralConfig(vocab_size=32, num_hidden_layers=2, num_local_experts=4, **sizes))
    >>> for layer in ms.moe_layers(model):
    ...     print(layer)
    MoELayer(name='layers.0.mlp', num_experts=4, top_k=2, num_groups=1)
    MoELayer(name='layers.1.mlp', num_experts=4, top_k=2, num_groups=1)
    """
    found = []
    for name, block in model.named_modules():
        experts: Any = getattr(block, "experts", None)
        router = next((child for key, child in block.named_children() if key in ROUTER_NAMES), None)
        # What the decorator of transformers leaves on a class of experts.
        if router is None or not (hasattr(experts, "has_gate") and hasattr(experts, "is_transposed")):
            continue
        stacked = [parameter for parameter in experts.parameters(recurse=False) if parameter.ndim == 3]
        if stacked:
            asked = (getattr(router, "top_k", None), getattr(block, "top_k", None))
            found.append(
                MoELayer(
                    name,
                    block,
                    experts,
                    router,
                    num_experts=stacked[0].shape[0],
                    top_k=next((each for each in asked if each is not None), experts.config.num_experts_per_tok),
                    num_groups=getattr(router, "num_group", None) or 1,
                )
            )
    return tuple(found)


class TokenRows:
    """Which rows of the forward under way are tokens, and which are padding, by the attention mask of the model."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None

    def see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take in what a model is called with: a forward pre-hook, with keywords."""
        given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        mask = given.get("attention_mask", given.get("kwargs", {}).get("attention_mask"))
        # Other masks than that of padding say nothing about single tokens.
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def of(self, hidden: Tensor) -> Tensor:
        """Return which rows [T, d] of a layer are tokens, booleans [T]."""
        if self._mask is None:
            return torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
        # With a cache, the mask reaches back over tokens that are no rows of this forward.
        return self._mask[:, -(hidden.shape[0] // self._mask.shape[0]) :].flatten().to(hidden.device) > 0
