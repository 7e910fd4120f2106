"""Lowering: from a model, a batch and a loss to the problem of placing the experts at the slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.training.batch import Batch
from moe_search.training.cut import Cut, check_model, cut, fold_head, run_head
from moe_search.training.frozen import frozen
from moe_search.training.recognize_loss import RecognizedLoss, recognize_loss
from moe_search.training.sample_losses import Loss, NonFiniteLossError, sample_losses


@dataclass(frozen=True, eq=False)
class Lowering:
    """A search problem made from a model, and what is known of how it was made.

    Parameters
    ----------
    problem : LinearAssignment or MixtureAssignment
        Its value is the mean loss of the batch under a map.
    initial : ndarray of int64
        The permutation of the gate's present map.
    linearized : bool
        Whether the head is not affine, so that the problem holds its linearization around the present mixture. The
        value of `initial` is the true loss in any case.
    batch_loss : float
        Mean loss of the batch under the present map, by a true forward.
    num_samples : int
        Number of samples in the batch.
    loss : RecognizedLoss or None
        What the loss was recognized as; None for a `LinearAssignment`, which takes any.
    """

    problem: LinearAssignment | MixtureAssignment
    initial: NDArray[np.int64]
    linearized: bool
    batch_loss: float
    num_samples: int
    loss: RecognizedLoss | None


def lower(
    model: nn.Module,
    moe: MixtureOfExperts,
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    ids: Tensor | None = None,
) -> Lowering:
    """Make the search problem of a model's mixture layer on one batch, experts and gate weights frozen.

    If every sample of the batch has one slot and the gate has one row of slots, the problem is a `LinearAssignment`:
    exact through any head and any loss, at the price of a forward for each expert. Otherwise it is a
    `MixtureAssignment` for a recognized loss, with the head folded into the outputs of the experts: exact for an affine
    head, a linearization around the present mixture for any other.

    The model is run in eval mode and left as it was: training flags, gradients, buffers and random generators.

    Parameters
    ----------
    model : Module
        Called as ``model(inputs)``, or ``model(inputs, ids=ids)`` if ids are given. In eval mode, the output of a
        sample must not depend on the other samples of the batch.
    moe : MixtureOfExperts
        A submodule of `model` (or `model` itself) that runs once in a forward, on one row for each sample.
    inputs, targets : Tensor
        Shape [B, ...], on the device of the model.
    loss : callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples.
    ids : Tensor, optional
        Shape [B], for gates that route by id.

    Returns
    -------
    Lowering

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `moe` is not inside `model` or not run on one row for each sample, if the batch is empty, its parts differ in
        length or lie on another device than the model, if the loss is not the mean over the samples, or not one that a
        mixture can be searched under.
    NonFiniteLossError
        If the loss, or what an expert answers, is NaN or infinite.
    """
    check_model(model, moe)
    if not callable(loss):
        raise TypeError(f"loss must be a callable (outputs, targets) -> scalar, got {type(loss).__name__}")
    batch = Batch(inputs, targets, ids)
    batch.require(1)
    batch.check_device(model)

    expert_map = moe.gate.expert_map
    with frozen(model):
        opened = cut(model, moe, batch)
        of_samples = sample_losses(loss, opened.outputs, targets)
        weights = opened.slot_weights
        if len(expert_map.experts) == 1:
            # One map for all selectors: it cannot tell the same slot of two selectors apart.
            weights = weights.sum(1, keepdim=True)
        expert_outputs = moe.expert_outputs(opened.moe_inputs)
        recognized, linearized = None, False
        problem: LinearAssignment | MixtureAssignment
        if weights.shape[1] == 1 and bool(((weights > 0).sum((1, 2)) == 1).all()):
            problem = _linear(model, moe, batch, weights[:, 0].argmax(1), expert_outputs, loss)
        else:
            recognized = recognize_loss(loss, opened.outputs, targets)
            outputs, folded = fold_head(model, moe, batch, opened.mixture, expert_outputs)
            if not bool(folded.isfinite().all()):
                raise NonFiniteLossError("the outputs of every expert must be finite, got NaN or infinite ones")
            linearized = not _is_affine(model, moe, batch, opened, weights, expert_outputs, folded)
            problem = MixtureAssignment(
                _float64(weights),
                recognized.flatten(_float64(folded).reshape(*folded.shape[:2], *outputs.shape[1:]), leading=2),
                recognized.targets,
                recognized.name,
                np.full(len(batch), recognized.scale / len(batch)),
            )
    return Lowering(problem, expert_map.permutation(), linearized, float(of_samples.mean()), len(batch), recognized)


def _linear(
    model: nn.Module, moe: MixtureOfExperts, batch: Batch, slots: Tensor, expert_outputs: Tensor, loss: Loss
) -> LinearAssignment:
    n, m = expert_outputs.shape[1], moe.gate.num_slots
    slot_of_sample = slots.cpu().numpy()
    cost = np.empty((m, n))
    for e in range(n):
        losses = sample_losses(loss, run_head(model, moe, batch, expert_outputs[:, e]), batch.targets)
        cost[:, e] = np.bincount(slot_of_sample, losses, minlength=m) / len(batch)
    return LinearAssignment(cost)


def _is_affine(
    model: nn.Module,
    moe: MixtureOfExperts,
    batch: Batch,
    opened: Cut,
    weights: Tensor,
    expert_outputs: Tensor,
    folded: Tensor,
) -> bool:
    """Compare the true forward with the folded one under a second map."""
    n = expert_outputs.shape[1]
    if n == 1:
        return True  # there is no second map
    # Shifting the experts of every row by a random step gives a valid map that leaves no slot its expert.
    experts = moe.gate.expert_map.experts
    steps = torch.from_numpy(np.random.default_rng(0).integers(1, n, size=(len(experts), 1))).to(experts.device)
    shifted = (experts + steps) % n
    expert_weights = weights.new_zeros(len(batch), n).index_add(1, shifted.flatten(), weights.flatten(1))
    true = run_head(model, moe, batch, moe.combine(expert_weights, expert_outputs)).flatten(1)
    predicted = torch.einsum("bn,bnc->bc", expert_weights, folded)
    here = opened.outputs.flatten(1)
    eps = torch.finfo(true.dtype).eps
    error, change, size = ((true - predicted).abs().max(), (true - here).abs().max(), true.abs().max())
    # The second term is the rounding that is left when the two maps give the same outputs.
    return bool(error <= eps**0.5 * change + 20 * eps * size)


def _float64(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()
