"""Layers whose rows are tokens as a search sees them: our mixtures, and those of transformers models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from moe_search.gates.batch_checks import rows_of
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import SlotWeights
from moe_search.huggingface.mixture_layers import MoELayer
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.training.lowering.forward_pass import Autocast

MAP = "expert_map"
"""The name of the map in the module of the experts."""

Take: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``take(inputs, slot_weights, outputs)`` returns what goes on in place of the outputs."""


@dataclass(frozen=True, eq=False)
class TokenLayer:
    """A layer whose rows are tokens, as a search sees it.

    Parameters
    ----------
    module : Module
        Where it is in a model.
    expert_map : ExpertMap
        What is searched.
    expert_outputs : callable
        Returns what every expert makes of rows [R, ...], shape [R, n, ...].
    listen : callable
        ``listen(take)`` attaches hooks, and returns their handles, such that every forward of the layer calls
        ``take(inputs, slot_weights, outputs)`` with tensors of shapes [R, ...], [R, map rows, m] and any with the rows
        in its leading axes, and goes on with what that returns in place of the outputs.
    """

    module: nn.Module
    expert_map: ExpertMap
    expert_outputs: Callable[[Tensor], Tensor]
    listen: Callable[[Take], Iterable[Any]]


def token_layer(layer: Any) -> TokenLayer:
    """Return a layer as a search of tokens sees it; TypeError for anything but a mixture, ours or of Transformers."""
    if isinstance(layer, MixtureOfExperts):
        return _of_mixture(layer)
    if isinstance(layer, MoELayer):
        return _of_transformers(layer)
    raise TypeError(
        "moe must be a MixtureOfExperts or MultiGateMixtureOfExperts, or hold several of the first, "
        f"got {type(layer).__name__}"
    )


# Functions of the module and what they are given, so that a search can be copied and pickled with its model.


def _of_mixture(layer: MixtureOfExperts) -> TokenLayer:
    return TokenLayer(layer, layer.gate.expert_map, layer.expert_outputs, partial(_listen_to_mixture, layer))


def _listen_to_mixture(layer: MixtureOfExperts, take: Take) -> Iterable[Any]:
    gate = layer.gate
    routings: list[SlotWeights] = []

    def at_gate(_: nn.Module, __: tuple[Any, ...], routing: SlotWeights) -> None:
        routings.append(routing)

    def at_layer(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Tensor) -> Tensor:
        inputs = args[0] if args else kwargs["inputs"]
        routing = routings.pop()
        weights = routing.weights
        if gate.expert_map.shared:
            weights = weights.sum(1, keepdim=True)
        return take(rows_of(inputs, routing.mask), weights, outputs)

    return gate.register_forward_hook(at_gate), layer.register_forward_hook(at_layer, with_kwargs=True)


def _of_transformers(layer: MoELayer) -> TokenLayer:
    """Return a layer as a search of tokens sees it."""
    given = layer, give_map(layer)
    return TokenLayer(layer.experts, given[1], partial(_outputs_under, *given), partial(_listen_under, *given))


def _outputs_under(layer: MoELayer, expert_map: LayerMap, rows: Tensor) -> Tensor:
    # The map leads what is asked for: an expert is asked for by its slot.
    slots, weight = expert_map.experts[0].argsort(), rows.new_ones(len(rows), 1)
    outputs = [layer.experts(rows, slots[e].expand(len(rows), 1), weight) for e in range(layer.num_experts)]
    return torch.stack(outputs, 1)


def _listen_under(layer: MoELayer, expert_map: LayerMap, take: Take) -> Iterable[Any]:
    if map_of(layer) is not expert_map:
        raise ValueError(
            f"{layer.name} must be as the search found it, permute_experts or keep_experts has changed it since: "
            "make a new search, of moe_layers(model)"
        )
    return listen_to(layer, take)


def listen_to(layer: MoELayer, take: Take) -> Iterable[Any]:
    """Attach hooks to a layer of Transformers, with a map or without, as `TokenLayer` has it; return their handles."""
    routed: list[tuple[Tensor, Tensor]] = []
    expert_map = map_of(layer)

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, index, weights = (*args, *kwargs.values())
        # A map has led already: back to slots.
        slots = index.long() if expert_map is None else expert_map.experts[0].argsort()[index]
        routed.append((hidden, weights.new_zeros(len(hidden), layer.num_experts).scatter_add(1, slots, weights)))

    def after(_: nn.Module, __: Any, outputs: Tensor) -> Tensor:
        hidden, weights = routed.pop()
        return take(hidden, weights[:, None], outputs)

    experts = layer.experts
    return experts.register_forward_pre_hook(before, with_kwargs=True), experts.register_forward_hook(after)


@dataclass(frozen=True, eq=False)
class Seen:
    """What went through a layer in a forward: as `TokenLayer` has it, the outputs in the graph of what follows."""

    inputs: Tensor
    slot_weights: Tensor
    outputs: Tensor
    autocast: Autocast


@contextmanager
def watched(listens: Iterable[Callable[[Take], Iterable[Any]]]) -> Iterator[list[list[Seen]]]:
    """Within the context, every forward of some layers adds to the list of each; gradients reach their outputs."""
    seen: list[list[Seen]] = []

    def taking(calls: list[Seen]) -> Take:
        def take(inputs: Tensor, slot_weights: Tensor, outputs: Tensor) -> Tensor:
            # Where nothing before the layer needs a gradient, the graph begins here.
            marked = outputs if outputs.requires_grad else outputs.detach().requires_grad_()
            calls.append(Seen(inputs.detach(), slot_weights.detach(), marked, Autocast.here(outputs.device)))
            # It is copied for what comes after and works in place.
            return marked.clone()

        return take

    with ExitStack() as hooks:
        for listen in listens:
            seen.append([])
            for handle in listen(taking(seen[-1])):
                hooks.callback(handle.remove)
        yield seen


class LayerMap(ExpertMap):
    """The expert map of a layer, and the hooks by which the layer goes by it."""

    def __init__(self, num_experts: int) -> None:
        super().__init__(num_experts)
        self.handles: list[Any] = []


def map_of(layer: MoELayer) -> LayerMap | None:
    """Return the map of a layer that has been searched, None of any other."""
    found = getattr(layer.experts, MAP, None)
    return found if isinstance(found, LayerMap) else None


def give_map(layer: MoELayer) -> LayerMap:
    """Return the expert map of a layer, which leads what its router chooses to other experts; a fresh one if need be.

    No weight is moved, so that an optimizer keeps its state. The state dict has the weights in the order in which the
    router finds them, and no map: what `save_pretrained` writes, `from_pretrained` loads as the same model. Weights
    that are loaded begin with a fresh map.
    """
    expert_map = map_of(layer)
    if expert_map is None:
        experts = layer.experts
        expert_map = LayerMap(layer.num_experts)
        expert_map.to(next(experts.parameters()).device)
        experts.add_module(MAP, expert_map)
        expert_map.handles = [
            experts.register_forward_pre_hook(_lead, with_kwargs=True),
            experts.register_state_dict_post_hook(_put_in_order),  # type: ignore[no-untyped-call]
            experts.register_load_state_dict_pre_hook(_begin_afresh),  # type: ignore[no-untyped-call]
        ]
    return expert_map


@torch.no_grad()
def lay_out(experts: nn.Module, order: Sequence[int]) -> None:
    """Move experts that a checkpoint has in the order of the router to where they lay under a map, and assign it.

    What the layer makes of a row stays as it is, and the state of an optimizer is that of its weights again. Weights
    that lie under a map already are left where they are.
    """
    expert_map = _map_in(experts)
    fresh = torch.arange(len(order), device=expert_map.experts.device)
    if torch.equal(expert_map.experts[0], fresh):
        slots = fresh.new_tensor(order).argsort()
        for parameter in experts.parameters(recurse=False):
            parameter.copy_(parameter[slots])
        expert_map.assign([list(order)])


@torch.no_grad()
def settle_map(layer: MoELayer) -> None:
    """Put the experts of a layer in the order of its map, and take the map away."""
    expert_map = map_of(layer)
    if expert_map is not None:
        order = expert_map.experts[0]
        for parameter in layer.experts.parameters(recurse=False):
            parameter.copy_(parameter[order])
        for handle in expert_map.handles:
            handle.remove()
        delattr(layer.experts, MAP)


def _map_in(experts: nn.Module) -> LayerMap:
    return cast(LayerMap, experts.get_submodule(MAP))


def _lead(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden, index, weights = (*args, *kwargs.values())
    return (hidden, _map_in(experts).experts[0][index], weights), {}


def _put_in_order(experts: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    order = state.pop(f"{prefix}{MAP}.experts")[0]
    if bool((order.diff() != 1).any()):
        for name, _parameter in experts.named_parameters(recurse=False):
            state[prefix + name] = state[prefix + name][order]


def _begin_afresh(experts: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    expert_map = _map_in(experts)
    names = [prefix + name for name, _parameter in experts.named_parameters(recurse=False)]
    given = [name for name in names if name in state]
    if len(given) == len(names):
        expert_map.reset_parameters()
    else:
        # Of a part, such as a shard or the weights of another layer: the map goes on, as do the weights that stay.
        slots = expert_map.experts[0].argsort()
        for name in given:
            state[name] = state[name][slots.to(state[name].device)]
    state[f"{prefix}{MAP}.experts"] = expert_map.experts.clone()
