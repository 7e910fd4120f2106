"""A model run on a batch and opened at its mixture layer: what goes in, what comes out, and the head behind it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.gates.batch_checks import like_rows, rows_of
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import SlotWeights
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.losses import at_least_single
from moe_search.training.lowering.tasks import Layer, Tasks, mixtures_of


@dataclass(frozen=True)
class Autocast:
    """What autocast does on one type of device: whether and to which dtype it casts, and whether weights only once."""

    device: str
    enabled: bool
    dtype: torch.dtype
    cache: bool

    @classmethod
    def here(cls, device: torch.device) -> Autocast:
        """Return the state where this is called."""
        return cls(
            device.type,
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
            torch.is_autocast_cache_enabled(),
        )

    def again(self) -> torch.autocast:
        """Return a context in which autocast is in this state."""
        return torch.autocast(self.device, self.dtype, self.enabled, self.cache)


@dataclass(frozen=True, eq=False)
class Chunk:
    """What one forward showed of some samples: R rows, one for each sample and task, as in `Tasks`.

    Parameters
    ----------
    start : int
        Number of the first row in the opened batch.
    batch : Batch
        The samples.
    targets : Tensor
        What the loss compares the outputs with, shape [R, ...].
    moe_inputs : Tensor
        What the layer took, shape [B, ...].
    slot_weights : Tensor
        What its gates returned, shape [R, map rows, m]: one map for all selectors cannot tell the same slot of two
        selectors apart, so their weights are added. They are float32 where they came in less.
    autocast : Autocast
        The state of autocast that its gates ran in: a model may enter it on its way to the layer.
    mixture : Tensor
        What the layer returned, shape [R, ...].
    outputs : Tensor
        What the model returned, shape [R, ...].
    shared : Tensor or None
        What the layer added to the mixture of its experts, the same under all maps: shape [R, 1, ...]; None for
        nothing.
    """

    start: int
    batch: Batch
    targets: Tensor
    moe_inputs: Tensor
    slot_weights: Tensor
    autocast: Autocast
    mixture: Tensor
    outputs: Tensor
    shared: Tensor | None

    def with_shared(self, mixtures: Tensor) -> Tensor:
        """Add what the layer adds to k mixtures of experts a row, shape [R, k, ...]."""
        return mixtures if self.shared is None else mixtures + self.shared

    @property
    def stop(self) -> int:
        """The number after that of the last row."""
        return self.start + len(self.slot_weights)

    @property
    def total_weights(self) -> Tensor:
        """What the weights of every row sum to, shape [R, 1, 1], exactly 1 where they do but for rounding."""
        totals = self.slot_weights.sum((1, 2), keepdim=True)
        rounding = self.slot_weights[0].numel() * torch.finfo(totals.dtype).eps
        return totals.masked_fill((totals - 1).abs() <= rounding, 1.0)

    @property
    def eps(self) -> float:
        """Machine epsilon of the outputs, or of what they were made of where that has a larger one."""
        dtypes = {self.mixture.dtype, self.outputs.dtype} | ({self.autocast.dtype} if self.autocast.enabled else set())
        return max(torch.finfo(dtype).eps for dtype in dtypes)


@dataclass(frozen=True, eq=False)
class Opened:
    """A batch that went through a model once.

    What is kept grows with the rows, never with rows times experts: those arrays are made chunk by chunk.

    Parameters
    ----------
    chunk_size : int
        The most rows that go through the model at once.
    chunks : tuple of Chunk
        All samples of the batch, in order.
    losses : ndarray of float64
        Loss of every row under the present map.
    """

    model: nn.Module
    tasks: Tasks
    chunk_size: int
    chunks: tuple[Chunk, ...]
    losses: NDArray[np.float64]

    @property
    def num_rows(self) -> int:
        """Number of samples times number of tasks."""
        return len(self.losses)

    @property
    def num_slots(self) -> int:
        """Number of slots of all rows of the expert map."""
        return self.tasks.expert_map.experts.numel()

    @property
    def slots_per_sample(self) -> int:
        """The most slots that a sample gives weight to for one task."""
        return max(int((chunk.slot_weights > 0).sum((1, 2)).max()) for chunk in self.chunks)

    @property
    def slot_loads(self) -> NDArray[np.int64]:
        """Number of rows that give weight to every slot, in the order of the map's rows; shape (num_slots,)."""
        return torch.stack([(chunk.slot_weights > 0).sum(0).flatten() for chunk in self.chunks]).sum(0).cpu().numpy()

    @property
    def num_pairs(self) -> int:
        """Number of pairs of a row and an expert that it gives weight to under the present map."""
        expert_map = self.tasks.expert_map
        weights = (
            weights_by_expert(chunk.slot_weights, expert_map.experts, expert_map.num_experts) for chunk in self.chunks
        )
        return sum(int((each > 0).sum()) for each in weights)

    @property
    def outputs(self) -> Tensor:
        """What the model returned, by rows."""
        return torch.cat([chunk.outputs for chunk in self.chunks])

    @property
    def targets(self) -> Tensor:
        """What the loss compares the outputs with, by rows."""
        return torch.cat([chunk.targets for chunk in self.chunks])

    def expert_outputs(self, chunk: Chunk) -> Tensor:
        """Run every expert on the samples of a chunk, in the precision of the layer; shape [R, n, ...]."""
        with chunk.autocast.again():
            return self.tasks.expert_outputs(chunk.moe_inputs)

    def alternatives(self, chunk: Chunk, count: int) -> Iterator[slice]:
        """Split ``count`` mixtures of every row of a chunk such that few enough go through the model at once."""
        step = max(1, self.chunk_size // len(chunk.slot_weights))
        for start in range(0, count, step):
            yield slice(start, min(start + step, count))

    def losses_of(self, chunk: Chunk, mixtures: Tensor) -> NDArray[np.float64]:
        """Return the losses of the rows of a chunk, shape [R, k], for k mixtures of experts each, [R, k, ...]."""
        mixtures = chunk.with_shared(mixtures)
        count, tasks = mixtures.shape[1], self.tasks.count
        repeated = chunk.batch.repeat(count)
        # Every copy of a sample is followed by the next; the rows of a copy are its tasks.
        rows = mixtures.reshape(-1, tasks, *mixtures.shape[1:]).transpose(1, 2).flatten(0, 2)
        rows = rows.to(chunk.mixture.dtype)
        outputs = run_head(self.model, self.tasks, repeated, rows)
        losses = self.tasks.row_losses(outputs, self.tasks.rows("targets", repeated.targets))
        return losses.reshape(-1, count, tasks).swapaxes(1, 2).reshape(-1, count)


def weights_by_expert(slot_weights: Tensor, experts: Tensor, n: int) -> Tensor:
    """Return what slots, shape [R, map rows, m], give to n experts under a map, shape [R, n]."""
    return slot_weights.new_zeros(len(slot_weights), n).index_add(1, experts.flatten(), slot_weights.flatten(1))


def check_model(model: nn.Module, moe: Layer) -> None:
    """Raise TypeError if one of the two, or a gate, is of another type, ValueError if ``moe`` is not in ``model``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    mixtures = mixtures_of(moe)
    if not any(module is moe for module in model.modules()):
        raise ValueError(f"moe must be a submodule of model, got one that {type(model).__name__} does not contain")
    for mixture in mixtures:
        gate = getattr(mixture, "gate", None)
        # A gate compiled as a copy is no Gate, but has its map.
        if not isinstance(getattr(gate, "expert_map", None), ExpertMap):
            raise TypeError(f"the gate of moe must be a Gate, got {type(gate).__name__}")


def forward(model: nn.Module, batch: Batch) -> Tensor:
    """Return ``model(inputs)``, or ``model(inputs, ids=ids)`` for a batch with ids; shape [B, ...].

    The keywords of a batch are given too. Of a model of Transformers, the logits are returned.
    """
    keywords = batch.keywords or {}
    if batch.ids is None:
        outputs = model(batch.inputs, **keywords)
    else:
        parameters = inspect.signature(model.forward).parameters
        if "ids" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            raise TypeError(f"ids came, and {type(model).__name__}.forward takes no argument named ids")
        outputs = model(batch.inputs, ids=batch.ids, **keywords)
    if isinstance(outputs, Mapping) and "logits" in outputs:
        outputs = outputs["logits"]
    if not isinstance(outputs, Tensor):
        raise TypeError(f"model must return a tensor, got {type(outputs).__name__}")
    if outputs.ndim == 0 or outputs.shape[0] != len(batch):
        raise ValueError(
            f"model must return one output for each of the {len(batch)} samples, got shape {tuple(outputs.shape)}"
        )
    return outputs


def open_batch(model: nn.Module, tasks: Tasks, batch: Batch, chunk_size: int) -> Opened:
    """Run a batch through a model, at most ``chunk_size`` rows at once."""
    size = max(1, chunk_size // tasks.count)
    chunks = tuple(
        _open_chunk(model, tasks, part, number * size * tasks.count) for number, part in enumerate(batch.parts(size))
    )
    losses = [tasks.row_losses(chunk.outputs, chunk.targets) for chunk in chunks]
    for chunk in chunks:
        _require_separate(model, tasks, chunk)
    return Opened(model, tasks, chunk_size, chunks, np.concatenate(losses))


def run_head(model: nn.Module, tasks: Tasks, batch: Batch, mixture: Tensor) -> Tensor:
    """Return the outputs of ``model`` when its layer returns ``mixture``, whatever it is given; both by rows."""

    def answer(*_args: Any, **_kwargs: Any) -> Tensor:
        if mixture.requires_grad and not torch.is_grad_enabled():
            raise ValueError(
                "moe must run with gradients on where model is called with them, it runs with them off: under "
                "torch.no_grad, or in a torch.utils.checkpoint with use_reentrant=True, which use_reentrant=False mends"
            )
        # It is copied for heads that work in place.
        return tasks.by_sample(mixture).clone()

    # A forward hook would replace the output too, after having run the gate and the experts for nothing.
    attributes = vars(tasks.moe)
    own = attributes.get("forward")
    attributes["forward"] = answer
    try:
        return tasks.rows("the outputs of model", forward(model, batch))
    finally:
        if own is None:
            del attributes["forward"]
        else:
            attributes["forward"] = own


def _open_chunk(model: nn.Module, tasks: Tasks, batch: Batch, start: int) -> Chunk:
    """Run ``model`` once, and listen to its layer and the gates of it."""
    moe = tasks.moe
    routings: dict[nn.Module, tuple[SlotWeights, Autocast]] = {}
    calls: list[tuple[Tensor, list[tuple[SlotWeights, Autocast]], Tensor]] = []

    def listen_to_gate(gate: nn.Module, _: tuple[Any, ...], routing: SlotWeights) -> None:
        routings[gate] = routing, Autocast.here(tasks.device())

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mixture: Tensor) -> None:
        bound = inspect.signature(moe.forward).bind(*args, **kwargs).arguments
        # Other layers may use the gates too: the call of a gate before this one is that of the layer.
        # The mixture is copied for heads that work in place.
        calls.append((bound["inputs"], [routings[gate] for gate in tasks.gates if gate in routings], mixture.clone()))

    with ExitStack() as hooks:
        for gate in tasks.gates:
            hooks.callback(gate.register_forward_hook(listen_to_gate).remove)
        hooks.callback(moe.register_forward_hook(listen, with_kwargs=True).remove)
        outputs = forward(model, batch)
    if len(calls) != 1:
        raise ValueError(f"moe must run exactly once in a forward of model, it was seen {len(calls)} times")
    moe_inputs, of_gates, mixture = calls[0]
    if len(of_gates) < tasks.count:
        raise ValueError(
            f"moe must call its gates in a forward of model, it was seen to call {len(of_gates)} of {tasks.count}"
        )
    if moe_inputs.shape[:-1] != (len(batch),):
        raise ValueError(
            f"moe must take one row for each sample of the batch, shape {(len(batch), moe_inputs.shape[-1])}, "
            f"got shape {tuple(moe_inputs.shape)}; a search of layers whose rows are tokens takes a list of them"
        )
    weights = at_least_single(torch.stack([routing.weights for routing, _ in of_gates], 1).flatten(0, 1))
    first, autocast = of_gates[0]
    # Padding may hold any numbers, and its output is 0.
    moe_inputs = rows_of(moe_inputs, first.mask)
    with autocast.again():
        shared = tasks.shared_outputs(moe_inputs)
    if shared is not None:
        shared = like_rows(shared, moe_inputs, first.mask)
    return Chunk(
        start,
        batch,
        tasks.rows("targets", batch.targets),
        moe_inputs,
        weights.sum(1, keepdim=True) if len(tasks.expert_map.experts) == 1 else weights,
        autocast,
        tasks.rows("the mixture", mixture),
        tasks.rows("the outputs of model", outputs),
        None if shared is None else shared.unsqueeze(1),
    )


def _require_separate(model: nn.Module, tasks: Tasks, chunk: Chunk) -> None:
    """Raise ValueError unless the outputs of every task are the same whatever the mixtures of the other tasks are.

    Only then is the loss a sum over rows. A forward of the head tries it, in which every sample has another mixture for
    one of its tasks.
    """
    batch = chunk.batch
    samples = torch.arange(len(batch), device=chunk.mixture.device)
    here = chunk.outputs.flatten(1)
    # A small batch does not change every task at once.
    for first in range(0, tasks.count if tasks.count > 1 else 0, len(batch)):
        changed = torch.zeros(len(here), dtype=torch.bool, device=here.device)
        changed[samples * tasks.count + (samples + first) % tasks.count] = True
        mixture = chunk.mixture.clone()
        mixture[changed] = 2 * mixture[changed] + 1
        off = (run_head(model, tasks, batch, mixture).flatten(1) - here)[~changed].abs().max()
        if not off <= torch.finfo(here.dtype).eps ** 0.5 * here.abs().max():
            raise ValueError(
                "the outputs of a task must depend on no mixture but its own for a shared map to be searched, "
                f"got one that another task's mixture moves by {float(off):.3g}"
            )
