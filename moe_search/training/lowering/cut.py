"""A model cut open at its mixture layer: what goes in, what comes out, and the head behind it."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.slot_weights import SlotWeights
from moe_search.training.lowering.at_least_single import at_least_single
from moe_search.training.lowering.autocast import Autocast, without_autocast
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.tasks import Layer, Tasks, mixtures_of


@dataclass(frozen=True, eq=False)
class Cut:
    """What one forward of a model showed at its mixture layer; by rows, as in `Tasks`, but for the inputs.

    Parameters
    ----------
    moe_inputs : Tensor
        What the layer took, shape [B, ...].
    slot_weights : Tensor
        What its gates returned, shape [rows, T, m]; float32 where that is less, and of a sum of 1 as before rounding.
    autocast : Autocast
        The state of autocast that its gates ran in: a model may enter it on its way to the layer.
    mixture : Tensor
        What the layer returned, shape [rows, ...].
    outputs : Tensor
        What the model returned, shape [rows, ...].
    """

    moe_inputs: Tensor
    slot_weights: Tensor
    autocast: Autocast
    mixture: Tensor
    outputs: Tensor

    @property
    def eps(self) -> float:
        """Machine epsilon of the outputs, or of what they were made of where that has a larger one."""
        dtypes = {self.mixture.dtype, self.outputs.dtype} | ({self.autocast.dtype} if self.autocast.enabled else set())
        return max(torch.finfo(dtype).eps for dtype in dtypes)


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

    Raises
    ------
    TypeError
        If the model returns anything but a tensor, or ids came and its forward does not take them.
    ValueError
        If the output does not have the batch's samples along its first axis.
    """
    if batch.ids is None:
        outputs = model(batch.inputs)
    else:
        parameters = inspect.signature(model.forward).parameters
        if "ids" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            raise TypeError(f"ids came, and {type(model).__name__}.forward takes no argument named ids")
        outputs = model(batch.inputs, ids=batch.ids)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"model must return a tensor, got {type(outputs).__name__}")
    if outputs.ndim == 0 or outputs.shape[0] != len(batch):
        raise ValueError(
            f"model must return one output for each of the {len(batch)} samples, got shape {tuple(outputs.shape)}"
        )
    return outputs


def cut(model: nn.Module, tasks: Tasks, batch: Batch) -> Cut:
    """Run ``model`` once and return what its mixture layer took and gave.

    Raises
    ------
    ValueError
        If the layer does not run exactly once, or without its gates, or not on one row for each sample, or if the model
        does not return one output for each sample and task.
    """
    moe = tasks.moe
    routings: dict[nn.Module, tuple[Tensor, Autocast]] = {}
    calls: list[tuple[Tensor, list[tuple[Tensor, Autocast]], Tensor]] = []

    def listen_to_gate(gate: nn.Module, _: tuple[Any, ...], routing: SlotWeights) -> None:
        routings[gate] = routing.weights, Autocast.here(tasks.device())

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mixture: Tensor) -> None:
        bound = inspect.signature(moe.forward).bind(*args, **kwargs).arguments
        # Of gates that other layers use too, the call before this one is that of the layer.
        # A copy, for heads that work in place.
        calls.append((bound["inputs"], [routings[gate] for gate in tasks.gates if gate in routings], mixture.clone()))

    hooks = [gate.register_forward_hook(listen_to_gate) for gate in tasks.gates]
    hooks.append(moe.register_forward_hook(listen, with_kwargs=True))
    try:
        outputs = forward(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != 1:
        raise ValueError(f"moe must run exactly once in a forward of model, it was seen {len(calls)} times")
    moe_inputs, of_gates, mixture = calls[0]
    if len(of_gates) < tasks.count:
        raise ValueError(
            f"moe must call its gates in a forward of model, it was seen to call {len(of_gates)} of {tasks.count}"
        )
    if moe_inputs.shape[0] != len(batch):
        raise ValueError(
            f"moe must take one row for each sample of the batch, got {moe_inputs.shape[0]} rows "
            f"for {len(batch)} samples"
        )
    return Cut(
        moe_inputs,
        _summing_to_one(torch.stack([weights for weights, _ in of_gates], 1).flatten(0, 1)),
        of_gates[0][1],
        tasks.rows("the mixture", mixture),
        tasks.rows("the outputs of model", outputs),
    )


def run_head(model: nn.Module, tasks: Tasks, batch: Batch, mixture: Tensor) -> Tensor:
    """Return the outputs of ``model`` when its layer returns ``mixture``, whatever it is given; both by rows."""

    def answer(*_args: Any, **_kwargs: Any) -> Tensor:
        # A copy, for heads that work in place.
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


def require_separate(model: nn.Module, tasks: Tasks, batch: Batch, cut: Cut) -> None:
    """Raise ValueError unless the outputs of every task are the same whatever the mixtures of the other tasks are.

    Only then is the loss a sum over rows. Tried by a forward of the head in which every sample has another mixture for
    one of its tasks.
    """
    samples = torch.arange(len(batch), device=cut.mixture.device)
    here = cut.outputs.flatten(1)
    # A small batch does not change every task at once.
    for first in range(0, tasks.count if tasks.count > 1 else 0, len(batch)):
        changed = torch.zeros(len(here), dtype=torch.bool, device=here.device)
        changed[samples * tasks.count + (samples + first) % tasks.count] = True
        mixture = cut.mixture.clone()
        mixture[changed] = 2 * mixture[changed] + 1
        off = (run_head(model, tasks, batch, mixture).flatten(1) - here)[~changed].abs().max()
        if not off <= torch.finfo(here.dtype).eps ** 0.5 * here.abs().max():
            raise ValueError(
                "the outputs of a task must depend on no mixture but its own for a shared map to be searched, "
                f"got one that another task's mixture moves by {float(off):.3g}"
            )


def fold_head(
    model: nn.Module, tasks: Tasks, batch: Batch, cut: Cut, expert_weights: Tensor, expert_outputs: Tensor
) -> Tensor:
    """Fold the head, linearized around the mixture, into the outputs of the experts.

    With the head o(z) of a row and its mixture z0, expert e is given o(z0) + J (f_e - sum_e w_e f_e), where J is the
    Jacobian of o at z0. Because the weights w of a row sum to 1, mixing these is the same as the linearized head of the
    mixed f_e: exact for an affine head. The sum is z0 but for rounding; with the sum itself, the present weights mix
    what experts are given to o(z0) in half precision too.

    Parameters
    ----------
    model, tasks, batch
        The model, its mixture layer by tasks, and the samples.
    cut : Cut
        What they showed at the layer: z0 and o(z0).
    expert_weights : Tensor
        w, of the present map, shape [rows, n].
    expert_outputs : Tensor
        f_e, shape [rows, n, ...].

    Returns
    -------
    Tensor
        Shape [rows, n, C], the axes of an output flattened to C; float32 where the outputs have less.

    Raises
    ------
    ValueError
        If the outputs do not depend differentiably on the mixture.
    """
    with torch.enable_grad():
        point = cut.mixture.detach().clone().requires_grad_()
        # No output depends on another sample or task: the gradient of a sum is a row of every one's Jacobian.
        totals = run_head(model, tasks, batch, point).reshape(len(point), -1).sum(0)
    with without_autocast(point.device):
        answers = at_least_single(expert_outputs).flatten(2)
        directions = answers - torch.einsum("bn,bnd->bd", expert_weights.to(answers.dtype), answers).unsqueeze(1)
        folded = at_least_single(cut.outputs).reshape(len(point), 1, -1).repeat(1, answers.shape[1], 1)
        # As many at once as there are experts take no more memory than their outputs.
        for some in torch.split(torch.arange(len(totals), device=totals.device), answers.shape[1]):
            jacobians = _gradients(totals, point, some).flatten(2).to(directions.dtype)
            folded[:, :, some] += torch.einsum("cbd,bnd->bnc", jacobians, directions).to(folded.dtype)
    return folded


def _summing_to_one(weights: Tensor) -> Tensor:
    wide = at_least_single(weights)
    # In half precision they sum to 1 within some thousandths, and the folded outputs of a row would be off by as much.
    return weights if wide is weights else wide / wide.sum((1, 2), keepdim=True)


def _gradients(totals: Tensor, point: Tensor, some: Tensor) -> Tensor:
    """Return the gradients of some of the totals, shape [totals, rows, ...]."""
    seeds = torch.nn.functional.one_hot(some, len(totals)).to(totals.dtype)
    gradients: tuple[Tensor | None, ...] = (None,)
    if totals.requires_grad:
        try:
            with warnings.catch_warnings():
                # torch warns of every operator that it can only map slowly.
                warnings.simplefilter("ignore")
                gradients = torch.autograd.grad(
                    totals, point, seeds, is_grads_batched=True, retain_graph=True, allow_unused=True
                )
        except RuntimeError:
            # An operator whose backward cannot be mapped; an error of its own comes again.
            each = [torch.autograd.grad(totals, point, s, retain_graph=True, allow_unused=True)[0] for s in seeds]
            gradients = (None,) if each[0] is None else (torch.stack(each),)
    if gradients[0] is None:
        raise ValueError("the outputs of model must depend on those of moe by differentiable operations, they do not")
    return gradients[0]
