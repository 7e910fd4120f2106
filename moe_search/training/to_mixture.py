"""Feed-forward layers of transformers models turned into mixtures of their own neurons."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.checks import require_flag, require_integer
from moe_search.gates.even_top_k import EvenTopK
from moe_search.layers.cluster_neurons import cluster_neurons
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.neuron_router import HiddenLayer
from moe_search.layers.split_feed_forward import split_feed_forward
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.training.lowering.frozen import frozen


class FeedForwardMixture(nn.Module):
    """A mixture in the place of a feed-forward layer: every token is a row.

    Parameters
    ----------
    moe : MixtureOfExperts
        The mixture.
    """

    def __init__(self, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, hidden: Tensor) -> Tensor:
        """Return what the mixture makes of every token, shape [..., d]."""
        outputs: Tensor = self.moe(hidden)
        return outputs


@dataclass(frozen=True, eq=False)
class FeedForward:
    """A feed-forward layer of a model.

    Attributes
    ----------
    place : str
        The name that a mixture of it has in the model.
    hidden : HiddenLayer
        What its neurons give.
    second : Linear
        What makes the outputs of them.
    replace : callable
        Puts a module in its place.
    """

    place: str
    hidden: HiddenLayer
    second: nn.Linear
    replace: Callable[[nn.Module], None]

    @property
    def entry(self) -> nn.Linear:
        """The map that is called with the inputs of the layer."""
        return self.hidden.first


ACTIVE = "moe_search_active"
"""The field of a model's configuration that says how many experts a row runs in every place of a mixture."""

ROUTER = "gate.linear.weight"
"""The name of the weight of a router in the state of a mixture."""

Divide = Callable[[FeedForward, Tensor], Tensor]


def to_mixture(
    model: nn.Module,
    layers: Sequence[int] | None,
    batches: Iterable[Mapping[str, Any]],
    num_experts: int,
    active: int,
    shared: int = 0,
    *,
    router: str = "ridge",
    mean: bool = True,
    rows: int = 3000,
    seed: int = 0,
    divide: Divide | None = None,
    display: bool = False,
) -> list[MixtureOfExperts]:
    """Replace feed-forward layers of a transformers model by mixtures of their own neurons, in place.

    The model computes nearly what it did, and of every layer a part. What is lost, distillation in the loop of one's
    choice gets back: the experts and routers are ordinary parameters.

    Parameters
    ----------
    model : PreTrainedModel
        BERT-like (``intermediate.dense`` and ``output.dense``) or Llama-like (``gate_proj``, ``up_proj`` and
        ``down_proj``).
    layers : sequence of int or None
        Which of its feed-forward layers, from 0; None is all.
    batches : iterable of mappings
        What the model is called with, such as ``{"input_ids": ..., "attention_mask": ...}``: calibration data. Tokens
        under a 0 of the mask are left out.
    num_experts, active, shared
        As for `cluster_neurons`.
    router, mean
        As for `split_feed_forward`.
    rows : int
        Tokens that are looked at; the first ones.
    seed : int
        Of the search.
    divide : callable, optional
        Returns the neurons of every expert, given a `FeedForward` and its inputs, instead of `cluster_neurons`.
    display : bool
        Whether to show a bar over the layers on the standard error.

    Returns
    -------
    list of MixtureOfExperts
        The mixtures of the layers chosen, in their order.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    >>> model = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
    >>> batch = {"input_ids": torch.randint(50, (4, 12))}
    >>> [first, last] = ms.to_mixture(model, None, [batch], num_experts=4, active=2)
    >>> model(**batch).last_hidden_state.shape
    torch.Size([4, 12, 16])
    """
    require_integer("rows", rows)
    require_flag("display", display)
    found = feed_forwards(model)
    if not found:
        raise ValueError(
            "model must have feed-forward layers of intermediate.dense and output.dense, or of gate_proj, up_proj and "
            f"down_proj, got a {type(model).__name__} without"
        )
    numbers = list(range(len(found)) if layers is None else layers)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"layers must hold at least one layer, and none twice, got {numbers}")
    for number in numbers:
        if not 0 <= require_integer("layers", number, 0) < len(found):
            raise ValueError(
                f"layers must be 0 .. {len(found) - 1}, the feed-forward layers of the model, got {number}"
            )
    chosen = [found[number] for number in numbers]
    mixtures = []
    taken = zip(chosen, feed_forward_inputs(model, chosen, batches, rows), strict=True)
    for layer, inputs in _tracked(taken, len(chosen)) if display else taken:
        if divide is None:
            with torch.no_grad():
                values = layer.hidden(inputs)
            neurons = cluster_neurons(values, layer.second.weight, num_experts, active, shared, mean=mean, seed=seed)
        else:
            neurons = divide(layer, inputs)
        experts, gate = split_feed_forward(
            layer.hidden.first,
            layer.second,
            partial(getattr, layer.hidden, "activation"),
            neurons.to(inputs.device),
            router,
            active=active,
            inputs=inputs,
            mean=mean,
            gated_by=layer.hidden.gated_by,
        )
        mixtures.append(MixtureOfExperts(experts, gate))
        layer.replace(FeedForwardMixture(mixtures[-1]).train(layer.entry.training))
    # Configurations of transformers are saved with whatever is added to them.
    setattr(model.config, ACTIVE, getattr(model.config, ACTIVE, {}) | {layer.place: active for layer in chosen})
    return mixtures


def load_mixtures(model: nn.Module, folder: str | os.PathLike[str]) -> list[MixtureOfExperts]:
    """Replace feed-forward layers of a model by the mixtures in its checkpoint, in place.

    What `to_mixture` made of a model, and training after that, is written by the model's own ``save_pretrained``. Its
    ``from_pretrained`` reads all but the mixtures, for which it says that weights are new; this reads them.

    Parameters
    ----------
    model : PreTrainedModel
        Of the class that was saved, or with another head or none, as ``from_pretrained`` returns it.
    folder : path-like
        The checkpoint, in safetensors.

    Returns
    -------
    list of MixtureOfExperts
        The mixtures, in the order of their layers.

    Examples
    --------
    >>> import tempfile, torch
    >>> import moe_search as ms
    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    >>> model = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
    >>> batch = {"input_ids": torch.randint(50, (4, 12))}
    >>> mixtures = ms.to_mixture(model, [1], [batch], num_experts=4, active=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save_pretrained(folder)
    ...     again = BertModel.from_pretrained(folder)
    ...     mixtures = ms.load_mixtures(again, folder)
    >>> torch.equal(again(**batch).last_hidden_state, model(**batch).last_hidden_state)
    True
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(file)
    active = getattr(model.config, ACTIVE, {})
    if not active or not tensors:
        raise ValueError(
            f"folder must be the checkpoint of a {type(model).__name__} with mixtures, in safetensors, got {folder}"
        )
    # A model with a head has the name of the base model in front, one without has not.
    base = f"{model.base_model_prefix}."
    layers = {layer.place.removeprefix(base): layer for layer in feed_forwards(model)}
    places = {place.removeprefix(base): place for place in active}
    states = {}
    for name, place in places.items():
        prefix = f"{place}.moe."
        states[name] = {key.removeprefix(prefix): each for key, each in tensors.items() if key.startswith(prefix)}
        if name not in layers:
            raise ValueError(
                f"model must have a feed-forward layer in the place of each mixture, got a {type(model).__name__} "
                f"without {name}"
            )
        if ROUTER not in states[name]:
            raise ValueError(f"folder must hold the router of each mixture, by ridge or train, got {place} without")
    mixtures = []
    for name in (name for name in layers if name in places):
        layer, state = layers[name], states[name]
        mixture = _empty_mixture(layer, state, active[places[name]]).to(layer.second.weight)
        mixture.load_state_dict(state)
        layer.replace(FeedForwardMixture(mixture).train(layer.entry.training))
        mixtures.append(mixture)
    setattr(model.config, ACTIVE, {layers[name].place: active[place] for name, place in places.items()})
    return mixtures


def _empty_mixture(layer: FeedForward, state: Mapping[str, Tensor], active: int) -> MixtureOfExperts:
    """Return a mixture of the sizes of the tensors that are to be loaded into it."""
    num_experts, in_features = state[ROUTER].shape
    activation = partial(getattr, layer.hidden, "activation")
    with torch.random.fork_rng(devices=[]):
        gate = EvenTopK(in_features, num_experts, active)
        _, _, width = state["experts.weights.1"].shape
        gated = layer.hidden.gated_by is not None
        experts = StackedExperts(num_experts, in_features, layer.second.out_features, width, activation, gated=gated)
        return MixtureOfExperts(experts, gate)


def feed_forwards(model: nn.Module) -> list[FeedForward]:
    """Return the feed-forward layers of a model in the order of its modules, those made mixtures left out."""
    found = []
    for name, module in model.named_modules():
        first, second = (_linear(module, f"{part}.dense") for part in ("intermediate", "output"))
        up, down, gate = (_linear(module, f"{part}_proj") for part in ("up", "down", "gate"))
        if first is not None and second is not None:
            hidden = HiddenLayer(first, module.intermediate.intermediate_act_fn)
            found.append(FeedForward(f"{name}.intermediate", hidden, second, partial(_replace_dense, module)))
        elif up is not None and down is not None and gate is not None:
            hidden = HiddenLayer(up, module.act_fn, gate)
            parent, _, child = name.rpartition(".")
            found.append(FeedForward(name, hidden, down, partial(setattr, model.get_submodule(parent), child)))
    return found


def feed_forward_inputs(
    model: nn.Module, layers: Sequence[FeedForward], batches: Iterable[Mapping[str, Any]], rows: int
) -> list[Tensor]:
    """Return what goes into layers of a model, shape [rows, d] each, of tokens that are no padding."""
    parts: list[list[Tensor]] = [[] for _ in layers]
    kept: Tensor | None = None
    count = 0

    def keep(index: int, _module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs = arguments[0].reshape(-1, arguments[0].shape[-1])
        parts[index].append(inputs if kept is None else inputs[kept])

    with ExitStack() as hooks, frozen(model):
        for index, layer in enumerate(layers):
            hooks.callback(layer.entry.register_forward_pre_hook(partial(keep, index)).remove)
        for batch in batches:
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"batches must hold what the model is called with, such as {{'input_ids': ids}}, "
                    f"got {type(batch).__name__}"
                )
            mask = batch.get("attention_mask")
            kept = None if mask is None else mask.flatten().bool()
            model(**batch)
            count += len(parts[0][-1]) if parts else 0
            if count >= rows:
                break
    if count == 0:
        raise ValueError("batches must hold at least one token, got none")
    return [torch.cat(each)[:rows] for each in parts]


def _tracked(layers: Iterable[tuple[FeedForward, Tensor]], total: int) -> Iterable[tuple[FeedForward, Tensor]]:
    """Return the same, with a bar on the standard error."""
    from rich.console import Console
    from rich.progress import track

    return track(layers, "splitting layers", total, console=Console(stderr=True))


def _linear(module: nn.Module, path: str) -> nn.Linear | None:
    """Return the affine map at a path below a module, or None."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, nn.Linear) else None


def _replace_dense(layer: Any, mixture: nn.Module) -> None:
    """Put a mixture in the place of both maps of a layer of BERT."""
    layer.intermediate = mixture
    layer.output.dense = nn.Identity().train(layer.output.dense.training)
