"""The arrays of a mixture problem, filled chunk by chunk: slot weights, expert outputs with the head folded in."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_search.problems.mixture import MixtureAssignment
from moe_search.training.lowering.forward_pass import Chunk, Opened, run_head, weights_by_expert
from moe_search.training.lowering.losses import NonFiniteLossError, RecognizedLoss, as_numpy, at_least_single


@dataclass(frozen=True, eq=False)
class MixtureArrays:
    """What a `MixtureAssignment` is made of, for the rows of one rank: R = samples times tasks, as in `Tasks`.

    Slot weights have shape (R, map rows, m), outputs (R, n, D). There is a loss for each task, all of one name. The
    weights of a row sum to 1: what those of the gate sum to is in its outputs.
    """

    slot_weights: NDArray[Any]
    outputs: NDArray[Any]
    losses: tuple[RecognizedLoss, ...]
    deviation: Deviation

    @property
    def targets(self) -> NDArray[Any]:
        """The targets by rows, as `MixtureAssignment` takes them."""
        of_tasks = [loss.targets for loss in self.losses]
        return of_tasks[0] if len(of_tasks) == 1 else np.stack(of_tasks, 1).reshape(-1, *of_tasks[0].shape[1:])

    @property
    def sample_weights(self) -> NDArray[np.float64]:
        """The factor of the loss of every row."""
        return np.tile([loss.scale for loss in self.losses], len(self.outputs) // len(self.losses))


@dataclass(frozen=True)
class Deviation:
    """How a true forward under a second map differs from the folded one, as maxima over samples and outputs.

    The error is what the folded outputs are off by, the change that of the outputs from the present map to the second,
    the size that of the outputs, and eps their machine epsilon.
    """

    error: float = 0.0
    change: float = 0.0
    size: float = 0.0
    eps: float = 0.0

    @property
    def affine(self) -> bool:
        """Whether it is rounding only, the head affine."""
        # The second term is the rounding that is left when the two maps give the same outputs.
        return self.error <= self.eps**0.5 * self.change + 20 * self.eps * self.size

    def joined(self, other: Deviation) -> Deviation:
        """Return the deviation over the samples of both."""
        return Deviation(*map(max, astuple(self), astuple(other)))


def mixture_arrays(opened: Opened, losses: tuple[RecognizedLoss, ...]) -> MixtureArrays:
    """Run every expert on every sample and fold the head into what they answer."""
    tasks = opened.tasks
    slot_weights: NDArray[Any] | None = None
    of_experts: NDArray[Any] | None = None
    deviations = [Deviation()] * tasks.count
    for chunk in opened.chunks:
        answers = opened.expert_outputs(chunk)
        # What the weights of a row sum to is the same under all maps: experts are multiplied by it.
        totals = chunk.total_weights
        simplex = torch.where(totals > 0, chunk.slot_weights / totals, 1 / chunk.slot_weights[0].numel())
        answers = at_least_single(answers) * totals.reshape(-1, *[1] * (answers.ndim - 1))
        # Weights that sum to 1 add it once.
        answers = chunk.with_shared(answers)
        weights = weights_by_expert(simplex, tasks.expert_map.experts, answers.shape[1])
        folded = fold_head(opened, chunk, weights, answers)
        if not bool(folded.isfinite().all()):
            raise NonFiniteLossError("the outputs of every expert must be finite, got NaN or infinite ones")
        here = _deviations(opened, chunk, simplex, answers, folded)
        deviations = [old.joined(new) for old, new in zip(deviations, here, strict=True)]
        if slot_weights is None or of_experts is None:
            slot_weights, of_experts = _room_for(opened.num_rows, simplex), _room_for(opened.num_rows, folded)
        # Nothing waits for a copy before the last: the next chunk is computed meanwhile.
        _copy(simplex, slot_weights[chunk.start : chunk.stop])
        _copy(folded, of_experts[chunk.start : chunk.stop])
    assert slot_weights is not None
    assert of_experts is not None
    of_model = opened.chunks[0].outputs
    if of_model.is_cuda:
        torch.cuda.current_stream(of_model.device).synchronize()
    outputs = losses[0].flatten(of_experts.reshape(*of_experts.shape[:2], *of_model.shape[1:]), leading=2)
    for t, deviation in enumerate(deviations if tasks.count > 1 else ()):
        of_task = outputs[tasks.of_task(t)]
        if not deviation.affine and bool((of_task == of_task[:, :1]).all()):
            raise ValueError(
                f"the outputs of task {t} must depend on its mixture by differentiable operations, they do not"
            )
    return MixtureArrays(slot_weights, outputs, losses, functools.reduce(Deviation.joined, deviations))


def _room_for(num_rows: int, part: Tensor) -> NDArray[Any]:
    """Return an array for all rows, of which ``part`` holds some; CUDA copies to pinned memory by itself."""
    shape = (num_rows, *part.shape[1:])
    if part.is_cuda:
        return torch.empty(shape, dtype=part.dtype, pin_memory=True).numpy()
    return np.empty(shape, as_numpy(part[:0]).dtype)


def _copy(part: Tensor, room: NDArray[Any]) -> None:
    """Copy a tensor, from CUDA while Python goes on."""
    if part.is_cuda:
        torch.from_numpy(room).copy_(part, non_blocking=True)
    else:
        room[...] = as_numpy(part)


def mixture_problem(parts: Sequence[MixtureArrays]) -> MixtureAssignment:
    """Return the problem of the samples of all ranks; its value is their mean loss, summed over tasks."""
    weights = _joined([part.sample_weights for part in parts])
    return MixtureAssignment(
        _joined([part.slot_weights for part in parts]),
        _joined([part.outputs for part in parts]),
        _joined([part.targets for part in parts]),
        parts[0].losses[0].name,
        weights * len(parts[0].losses) / len(weights),
    )


def fold_head(opened: Opened, chunk: Chunk, expert_weights: Tensor, expert_outputs: Tensor) -> Tensor:
    """Fold the head, linearized around the mixture, into the outputs of the experts.

    With the head o(z) of a row and its mixture z0, expert e is given o(z0) + J (f_e - sum_e w_e f_e), where J is the
    Jacobian of o at z0. Because the weights w of a row sum to 1, mixing these is the same as the linearized head of the
    mixed f_e: exact for an affine head. The sum is z0 but for rounding; with the sum itself, the present weights mix
    what experts are given to o(z0) in half precision too.

    The weights w of the present map have shape [rows, n], and f_e shape [rows, n, ...]. The result has shape
    [rows, n, C], the axes of an output flattened to C, and is float32 where the outputs have less.
    """
    with torch.enable_grad():
        point = chunk.mixture.detach().clone().requires_grad_()
        # No output depends on another sample or task: the gradient of a sum is a row of every one's Jacobian.
        totals = run_head(opened.model, opened.tasks, chunk.batch, point).reshape(len(point), -1).sum(0)
    with torch.autocast(point.device.type, enabled=False):
        answers = at_least_single(expert_outputs).flatten(2)
        directions = answers - torch.einsum("bn,bnd->bd", expert_weights.to(answers.dtype), answers).unsqueeze(1)
        folded = at_least_single(chunk.outputs).reshape(len(point), 1, -1).repeat(1, answers.shape[1], 1)
        # As many at once as there are experts take no more memory than their outputs.
        for some in torch.split(torch.arange(len(totals), device=totals.device), answers.shape[1]):
            jacobians = _gradients(totals, point, some).flatten(2).to(directions.dtype)
            folded[:, :, some] += torch.einsum("cbd,bnd->bnc", jacobians, directions).to(folded.dtype)
    return folded


def _deviations(opened: Opened, chunk: Chunk, slot_weights: Tensor, answers: Tensor, folded: Tensor) -> list[Deviation]:
    """Compare the true forward with the folded one under a second map, task by task."""
    n = answers.shape[1]
    if n == 1:
        return [Deviation()] * opened.tasks.count  # there is no second map
    # Shifting the experts of every row by a random step gives a valid map that leaves no slot its expert.
    experts = opened.tasks.expert_map.experts
    steps = torch.from_numpy(np.random.default_rng(0).integers(1, n, size=(len(experts), 1))).to(experts.device)
    shifted = weights_by_expert(slot_weights, (experts + steps) % n, n)
    with chunk.autocast.again():
        mixture = opened.tasks.combine(shifted, answers).to(chunk.mixture.dtype)
    true = run_head(opened.model, opened.tasks, chunk.batch, mixture).flatten(1)
    with torch.autocast(true.device.type, enabled=False):
        predicted = torch.einsum("bn,bnc->bc", shifted.to(folded.dtype), folded)
    error, change, size = (true - predicted).abs(), (true - chunk.outputs.flatten(1)).abs(), true.abs()
    rows = [opened.tasks.of_task(t) for t in range(opened.tasks.count)]
    return [Deviation(float(error[r].max()), float(change[r].max()), float(size[r].max()), chunk.eps) for r in rows]


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


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
