"""Experts in another order, and some of them only: the model stays one that `save_pretrained` writes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moe_search.checks import require_flag
from moe_search.huggingface.mixture_layers import ROUTER_NAMES, MoELayer, moe_layers
from moe_search.training.lowering.token_layers import settle_map

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""The names under which configurations and modules have the number of experts."""

Experts = npt.NDArray[np.int64]


def permute_experts(layer: MoELayer, order: npt.ArrayLike, router: bool = True) -> None:
    """Put the experts of a layer in another order, in place.

    Parameters
    ----------
    layer : MoELayer
        One of `moe_layers`.
    order : array_like of int, shape (num_experts,)
        ``order[e]`` is the expert, by its number so far, that is number e from now on.
    router : bool, default True
        Whether the router follows, so that the layer computes what it did before, up to the rounding of sums. Without,
        experts change their places under a router that stays as it is: another expert map.

    Raises
    ------
    ValueError
        If `order` is no permutation, or the router follows and a group of experts would not stay together.

    Examples
    --------
    >>> import moe_search as ms
    >>> from transformers import MixtralConfig, MixtralModel
    >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = MixtralModel(MixtralConfig(vocab_size=32, num_hidden_layers=1, num_local_experts=4, **sizes))
    >>> layer = ms.moe_layers(model)[0]
    >>> before = layer.experts.down_proj.detach().clone()
    >>> ms.permute_experts(layer, [2, 0, 1, 3])
    >>> bool((layer.experts.down_proj[0] == before[2]).all())
    True
    """
    require_layer(layer)
    require_flag("router", router)
    experts = _experts("order", order, layer)
    if len(experts) < layer.num_experts:
        raise ValueError(f"order must hold every expert 0 .. {layer.num_experts - 1} once, got {experts.tolist()}")
    settle_map(layer)
    size = layer.num_experts // layer.num_groups
    groups = experts.reshape(layer.num_groups, size) // size
    if router and (groups != groups[:, :1]).any():
        raise ValueError(
            f"order must keep the {layer.num_groups} groups of {size} experts whole, as the router chooses groups"
            f" first, got {experts.tolist()}"
        )
    index = torch.from_numpy(experts)
    for module in (layer.experts, layer.router, layer.block) if router else (layer.experts,):
        _select(module, index, layer.num_experts, recurse=module is not layer.block)


def keep_experts(model: nn.Module, kept: Sequence[npt.ArrayLike]) -> nn.Module:
    """Leave some experts of every layer, and drop the others and their rows of the router, in place.

    The configuration gets the new number, so that `save_pretrained` writes a checkpoint that `from_pretrained` loads.

    Parameters
    ----------
    model : PreTrainedModel
        A model of transformers.
    kept : sequence of array_like of int
        For every layer of `moe_layers` the experts that stay, in any order; they stay in their own. It is the same
        number in all layers, as the configuration has one, and in all groups of a layer, at least as many as a row
        takes.

    Returns
    -------
    PreTrainedModel
        The same model.

    Raises
    ------
    ValueError
        If an expert is none of the layer, or numbers do not agree. Nothing is changed then.

    Examples
    --------
    >>> import moe_search as ms
    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_hidden_layers=2, num_local_experts=4, **sizes))
    >>> ms.keep_experts(model, [[0, 2, 3], [1, 2, 3]]).config.num_local_experts
    3
    """
    layers = require_layers(model)
    chosen = checked_kept(layers, kept)
    n, config = layers[0].num_experts, text_config(model)
    fields = [name for name in COUNTS if getattr(config, name, None) == n]
    if not fields:
        raise ValueError(f"the configuration must have the {n} experts in one of {', '.join(COUNTS)}, got none")
    for layer, experts in zip(layers, chosen, strict=True):
        settle_map(layer)
        index = torch.from_numpy(experts)
        for module in (layer.experts, layer.router, layer.block):
            _select(module, index, n, recurse=module is not layer.block)
    for module in (*model.modules(), config):
        for name in COUNTS:
            if getattr(module, name, None) == n:
                setattr(module, name, len(chosen[0]))
    return model


@contextmanager
def kept_only(layers: Sequence[MoELayer], kept: Sequence[Experts]) -> Iterator[None]:
    """Within the context, rows are routed among the kept experts of some layers, as by the model that keeps no other.

    A small router stands in for that of a layer, and what it chooses is led to the experts as they are numbered now:
    no expert is copied.
    """
    with ExitStack() as entered:
        for layer, experts in zip(layers, kept, strict=True):
            entered.enter_context(_routed_among(layer, experts))
        yield


@contextmanager
def _routed_among(layer: MoELayer, kept: Experts) -> Iterator[None]:
    block, index = layer.block, torch.from_numpy(kept)
    name = next(key for key, child in block.named_children() if child is layer.router)
    tensors = {key: dict(getattr(block, key)) for key in ("_parameters", "_buffers")}
    small = smaller_router(layer, kept)

    def numbered(_: Any, __: Any, routed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        logits, weights, chosen, *rest = routed
        return (logits, weights, index.to(chosen.device)[chosen], *rest)

    small.register_forward_hook(numbered)
    setattr(block, name, small)
    _select(block, index, layer.num_experts, recurse=False)
    try:
        yield
    finally:
        setattr(block, name, layer.router)
        for key, before in tensors.items():
            getattr(block, key).update(before)


def smaller_router(layer: MoELayer, kept: Experts) -> nn.Module:
    """Return a router that knows the kept experts only."""
    small = copy.deepcopy(layer.router)
    _select(small, torch.from_numpy(kept), layer.num_experts)
    for module in small.modules():
        for name in (*COUNTS, "out_features"):
            if getattr(module, name, None) == layer.num_experts:
                setattr(module, name, len(kept))
    return small


@torch.no_grad()
def _select(module: nn.Module, index: Tensor, n: int, recurse: bool = True) -> None:
    """Take rows of all parameters and buffers that have a row for each of n experts, or one row of n columns."""
    for each in module.modules() if recurse else (module,):
        stores: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is None or tensor.ndim == 0:
                    continue
                axis = 0 if tensor.shape[0] == n else 1 if tensor.shape == (1, n) else None
                if axis is None:
                    continue
                taken = tensor.index_select(axis, index.to(tensor.device))
                is_parameter = isinstance(tensor, nn.Parameter)
                store[name] = nn.Parameter(taken, tensor.requires_grad) if is_parameter else taken


def checked_kept(layers: Sequence[MoELayer], kept: Sequence[npt.ArrayLike]) -> list[Experts]:
    """Return the kept experts of every layer in their order, or raise an error that says why they cannot be."""
    require_alike(layers)
    n = layers[0].num_experts
    if len(kept) != len(layers):
        raise ValueError(f"kept must hold the experts of each of {len(layers)} layers, got {len(kept)}")
    chosen = [
        np.sort(_experts(f"kept of layer {layer.name}", each, layer)) for layer, each in zip(layers, kept, strict=True)
    ]
    counts = [len(each) for each in chosen]
    if len(set(counts)) > 1:
        raise ValueError(
            f"kept must hold equally many experts of every layer, as the configuration has one number, got {counts}"
        )
    for layer, experts in zip(layers, chosen, strict=True):
        if len(experts) < layer.top_k:
            raise ValueError(f"kept must hold at least the {layer.top_k} experts that a row takes, got {len(experts)}")
        of_groups = np.bincount(experts * layer.num_groups // n, minlength=layer.num_groups)
        if of_groups.min() < of_groups.max():
            raise ValueError(
                f"kept of layer {layer.name} must hold equally many experts of each of {layer.num_groups} groups,"
                f" got {of_groups.tolist()}"
            )
    try_router(layers[0], chosen[0])
    return chosen


@torch.no_grad()
def try_router(layer: MoELayer, kept: Experts) -> None:
    """Raise ValueError unless a router of the kept experts can route: some look for several experts in a group."""
    small = smaller_router(layer, kept)
    weight = next(parameter for parameter in small.parameters() if parameter.ndim == 2)
    try:
        small(weight.new_zeros(1, weight.shape[1]))
    except RuntimeError as error:
        raise ValueError(f"kept must be enough experts for the router, {len(kept)} are not: {error}") from error


def _experts(name: str, given: npt.ArrayLike, layer: MoELayer) -> Experts:
    """Return different experts of a layer as integers."""
    experts = np.asarray(given)
    if experts.ndim != 1 or experts.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a list of integers, got {given!r}")
    last = layer.num_experts - 1
    if experts.size == 0 or experts.min() < 0 or experts.max() > last:
        raise ValueError(f"{name} must hold experts 0 .. {last}, got {experts.tolist()}")
    if len(np.unique(experts)) < experts.size:
        raise ValueError(f"{name} must hold no expert twice, got {experts.tolist()}")
    return experts.astype(np.int64)


def require_layer(layer: Any) -> None:
    """Raise an error unless `layer` is a MoELayer that is still as it was found."""
    if not isinstance(layer, MoELayer):
        raise TypeError(f"layer must be one of moe_layers(model), got {type(layer).__name__}")
    now = next(parameter for parameter in layer.experts.parameters(recurse=False) if parameter.ndim == 3).shape[0]
    if now != layer.num_experts:
        raise ValueError(
            f"layer must be found anew by moe_layers(model), it has {now} experts and had {layer.num_experts}"
        )


def require_alike(layers: Sequence[MoELayer]) -> None:
    """Raise ValueError unless all layers have equally many experts."""
    numbers = [layer.num_experts for layer in layers]
    if len(set(numbers)) > 1:
        raise ValueError(
            f"all layers must have equally many experts, as the configuration has one number, got {numbers}"
        )


def require_layers(model: nn.Module) -> tuple[MoELayer, ...]:
    """Return the mixture layers of a model, or raise ValueError if it has none."""
    layers = moe_layers(model)
    if not layers:
        raise ValueError(
            f"model must have mixture layers of transformers 5, experts beside a {' or '.join(ROUTER_NAMES)},"
            f" got {type(model).__name__} without any"
        )
    return layers


def text_config(model: Any) -> Any:
    """Return the configuration that tells of the experts: that of the text in a model of several kinds of input."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config
