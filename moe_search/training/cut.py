"""A model cut open at its mixture layer: what goes in, what comes out, and the head behind it."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.gates.expert_map import ExpertMap
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.training.batch import Batch
from moe_search.training.tasks import Layer, Tasks


@dataclass(frozen=True, eq=False)
class Cut:
    """What one forward of a model showed at its mixture layer; by rows, as in `Tasks`, but for the inputs.

    Parameters
    ----------
    moe_inputs : Tensor
        What the layer took, shape [B, ...].
    slot_weights : Tensor
        The weights of its gates, shape [rows, T, m].
    mixture : Tensor
        What the layer returned, shape [rows, ...].
    outputs : Tensor
        What the model returned, shape [rows, ...].
    """

    moe_inputs: Tensor
    slot_weights: Tensor
    mixture: Tensor
    outputs: Tensor


def check_model(model: nn.Module, moe: Layer) -> None:
    """Raise TypeError if one of the two, or a gate, is of another type, ValueError if ``moe`` is not in ``model``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(moe, (MixtureOfExperts, MultiGateMixtureOfExperts)):
        raise TypeError(f"moe must be a MixtureOfExperts or MultiGateMixtureOfExperts, got {type(moe).__name__}")
    if not any(module is moe for module in model.modules()):
        raise ValueError(f"moe must be a submodule of model, got one that {type(model).__name__} does not contain")
    for mixture in [moe] if isinstance(moe, MixtureOfExperts) else moe.tasks:
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
        If the layer does not run exactly once, or not on one row for each sample, or if the model does not return one
        output for each sample and task.
    """
    moe = tasks.moe
    calls: list[tuple[Tensor, Tensor | None, Tensor]] = []

    def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mixture: Tensor) -> None:
        bound = inspect.signature(moe.forward).bind(*args, **kwargs).arguments
        calls.append((bound["inputs"], bound.get("ids"), mixture))

    hook = moe.register_forward_hook(listen, with_kwargs=True)
    try:
        outputs = forward(model, batch)
    finally:
        hook.remove()
    if len(calls) != 1:
        raise ValueError(f"moe must run exactly once in a forward of model, it was seen {len(calls)} times")
    moe_inputs, moe_ids, mixture = calls[0]
    if moe_inputs.shape[0] != len(batch):
        raise ValueError(
            f"moe must take one row for each sample of the batch, got {moe_inputs.shape[0]} rows "
            f"for {len(batch)} samples"
        )
    return Cut(
        moe_inputs,
        tasks.slot_weights(moe_inputs, moe_ids),
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
    model: nn.Module, tasks: Tasks, batch: Batch, mixture: Tensor, expert_outputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Fold the head, linearized around the mixture, into the outputs of the experts.

    With the head o(z) of a row and its mixture z0, expert e is given o(z0) + J (f_e - z0), where J is the Jacobian
    of o at z0. Because the weights of a row sum to 1, mixing these is the same as the linearized head of the mixed
    f_e: exact for an affine head.

    Parameters
    ----------
    model, tasks, batch
        The model, its mixture layer by tasks, and the samples.
    mixture : Tensor
        z0, shape [rows, ...].
    expert_outputs : Tensor
        f_e, shape [rows, n, ...].

    Returns
    -------
    outputs : Tensor
        o(z0), shape [rows, ...].
    folded : Tensor
        Shape [rows, n, C], the axes of an output flattened to C.

    Raises
    ------
    ValueError
        If the outputs do not depend differentiably on the mixture.
    """
    directions = (expert_outputs - mixture.unsqueeze(1)).flatten(2)
    with torch.enable_grad():
        point = mixture.detach().clone().requires_grad_()
        outputs = run_head(model, tasks, batch, point)
        flat = outputs.reshape(len(mixture), -1)
        # No output depends on another sample or task: the gradient of a sum is a row of every one's Jacobian.
        totals = flat.sum(0)
    folded = flat.detach().unsqueeze(1).repeat(1, expert_outputs.shape[1], 1)
    # As many at once as there are experts take no more memory than their outputs.
    for some in torch.split(torch.arange(len(totals), device=totals.device), expert_outputs.shape[1]):
        jacobians = _gradients(totals, point, some).flatten(2)
        folded[:, :, some] += torch.einsum("cbd,bnd->bnc", jacobians, directions).to(folded.dtype)
    return outputs.detach(), folded


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
