"""Lowering: from a model, a batch and a loss to the problem of placing the experts at the slots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.training.arguments import require_int
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.cut import check_model
from moe_search.training.lowering.exact_costs import pair_costs, slot_costs
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.mixture_arrays import Deviation, mixture_arrays, mixture_problem
from moe_search.training.lowering.opened import Opened, open_batch
from moe_search.training.lowering.process_group import ALONE, Ranks
from moe_search.training.lowering.recognize_loss import RecognizedLoss, recognize_loss
from moe_search.training.lowering.tasks import Layer, TaskLoss, Tasks

CHUNK_SIZE = 1024
"""Samples that go through the model at once, by default: enough to keep it busy, few for the experts' outputs."""

ProblemKind: TypeAlias = Literal["auto", "linear", "pairwise", "mixture"]


@dataclass(frozen=True, eq=False)
class Lowering:
    """A search problem made from a model, and what is known of how it was made.

    Parameters
    ----------
    problem : LinearAssignment, PairwiseAssignment or MixtureAssignment
        Its value is the mean loss of the batch under a map, summed over tasks. A `LoadLimited` one of these after
        `limit_load`.
    initial : ndarray of int64
        The permutation of the gate's present map.
    linearized : bool
        Whether the head is not affine, so that the problem holds its linearization around the present mixture. The
        value of `initial` is the true loss in any case, to rounding in the precision of the model, autocast or not.
    batch_loss : float
        Mean loss of the batch under the present map, summed over tasks, by a true forward.
    num_samples : int
        Number of samples in the batch.
    losses : tuple of RecognizedLoss or None
        What the loss of every task was recognized as, for a `MixtureAssignment`; None for the others, which take any.
    slot_loads : ndarray of int64
        Number of samples with weight on every slot, shape (size,); summed over tasks.
    """

    problem: LinearAssignment | PairwiseAssignment | MixtureAssignment | LoadLimited
    initial: NDArray[np.int64]
    linearized: bool
    batch_loss: float
    num_samples: int
    losses: tuple[RecognizedLoss, ...] | None
    slot_loads: NDArray[np.int64]


def lower(
    model: nn.Module,
    moe: Layer,
    inputs: Tensor,
    targets: Tensor,
    loss: TaskLoss,
    ids: Tensor | None = None,
    *,
    problem: ProblemKind = "auto",
    max_samples: int | None = None,
    chunk_size: int = CHUNK_SIZE,
) -> Lowering:
    """Make the search problem of a model's mixture layer on one batch, experts and gate weights frozen.

    What the samples of the batch allow decides the class of the problem:

    ``linear``
        Every sample has one slot, and the gate one row of slots: `LinearAssignment`, exact through any head and any
        loss, at the price of a forward for each expert.
    ``mixture``
        The loss is a recognized one: `MixtureAssignment`, with the head folded into the outputs of the experts; exact
        for an affine head, a linearization around the present mixture for any other.
    ``pairwise``
        No sample has more than two slots: `PairwiseAssignment`, exact through any head and any loss, at the price of a
        forward for each of the n^2 pairs of experts, and of memory for (m n)^2 costs.

    The first of these that fits is made, or the one asked for.

    A `MultiGateMixtureOfExperts` whose tasks share a map gives one problem too, of the summed loss of the tasks: what
    is said of a sample holds for each pair of a sample and a task, with the slot weights of the task's gate, the task's
    loss, and the experts' outputs on the sample. The head of a task must see no mixture but its own, which is tried.

    Where the model enters autocast on its way to the layer, or leaves it, the experts are run as they are there.

    The model is run in eval mode and left as it was:
    training flags, gradients, buffers and random generators.

    Parameters
    ----------
    model : Module
        Called as ``model(inputs)``, or ``model(inputs, ids=ids)`` if ids are given. In eval mode, the output of a
        sample must not depend on the other samples of the batch.
    moe : MixtureOfExperts or MultiGateMixtureOfExperts
        A submodule of `model` (or `model` itself) that runs once in a forward, on one row for each sample. One of
        several gates must share their map; the model then returns outputs of shape [B, tasks, ...].
    inputs, targets : Tensor
        Shape [B, ...], on the device of the model; targets [B, tasks, ...] for a layer of several gates.
    loss : callable, or sequence of callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples. For a layer of several gates, the
        loss of a task, called with its ``outputs[:, t]`` and ``targets[:, t]``: one for all, or one for each. In a
        ``mixture``, all must be of one kind; factors may differ.
    ids : Tensor, optional
        Shape [B], for gates that route by id.
    problem : {"auto", "linear", "mixture", "pairwise"}
        The class of the problem.
    max_samples : int, optional
        Only the last ``max_samples`` samples are looked at; all by default. A mixture holds n * D numbers for each of
        them, and for each task, D being the width of the model's outputs (for one task).
    chunk_size : int, default 1024
        The most samples (times tasks) that go through the model, and through every expert, at once. It bounds what
        lowering takes beside the arrays of the problem: the outputs of n experts on ``chunk_size`` samples.

    Returns
    -------
    Lowering

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `moe` is not inside `model` or not run on one row for each sample, if the batch is empty, its parts differ in
        length or lie on another device than the model, if the loss is not the mean over the samples, if no class of
        problem fits or not the one asked for, or if a pairwise problem would be too large. With several gates also if
        they do not share a map, if losses, targets or outputs are not as many as the tasks, if the outputs of a task
        depend on the mixture of another, or, in a ``mixture``, not differentiably on its own.
    NonFiniteLossError
        If the loss, or what an expert answers, is NaN or infinite.
    """
    check_model(model, moe)
    tasks = Tasks.of(moe, loss)
    require_problem_kind(problem)
    require_int("chunk_size", chunk_size, 1)
    batch = Batch(inputs, targets, ids)
    batch.require(1)
    tasks.rows("targets", batch.targets)
    batch.check_device(model)
    if max_samples is not None:
        require_int("max_samples", max_samples, 1)
        batch = batch.last(max_samples)
    lowering, _ = lower_batch(model, tasks, batch, problem, chunk_size)
    assert lowering is not None
    return lowering


def lower_batch(
    model: nn.Module,
    tasks: Tasks,
    batch: Batch,
    problem: ProblemKind,
    chunk_size: int,
    known: tuple[RecognizedLoss, ...] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Lowering | None, tuple[RecognizedLoss, ...] | None]:
    """Make the problem of the samples of all ranks together, from checked arguments.

    Parameters
    ----------
    model, batch, problem, chunk_size
        As in `lower`; the batch is that of this rank.
    tasks : Tasks
        The layer and the losses.
    known : tuple of RecognizedLoss, optional
        What the losses were recognized as before: looked at first.
    ranks : Ranks
        All of them must call this together.

    Returns
    -------
    lowering : Lowering or None
        None on all ranks but the first.
    recognized : tuple of RecognizedLoss or None
        What the losses were recognized as, if they were looked at.

    Raises
    ------
    ValueError, NonFiniteLossError
        As in `lower`, on all ranks if on one.
    """
    with frozen(model):
        opened = ranks.agree(lambda: open_batch(model, tasks, batch, chunk_size))
        losses = np.concatenate(ranks.collect(opened.losses))
        num_samples = len(losses) // tasks.count
        slot_loads = ranks.sum(opened.slot_loads)
        made: LinearAssignment | PairwiseAssignment | MixtureAssignment | None
        deviation = Deviation()
        kind, recognized = _choose(problem, opened, known, ranks)
        if kind == "linear":
            made = LinearAssignment(ranks.sum(ranks.agree(lambda: slot_costs(opened))) / num_samples)
        elif kind == "pairwise":
            costs = ranks.sum(ranks.agree(lambda: pair_costs(opened))) / num_samples
            made = PairwiseAssignment(costs, block_size=tasks.expert_map.num_slots)
        else:
            assert recognized is not None
            arrays = ranks.gather(ranks.agree(lambda: mixture_arrays(opened, recognized)))
            made = mixture_problem(arrays) if arrays else None
            for part in arrays:
                deviation = deviation.joined(part.deviation)
    if made is None or ranks.index > 0:
        return None, recognized
    initial = tasks.expert_map.permutation()
    mean = float(losses.sum() / num_samples)
    return Lowering(made, initial, not deviation.affine, mean, num_samples, recognized, slot_loads), recognized


def require_problem_kind(problem: object) -> None:
    """Raise ValueError if ``problem`` is no kind of problem."""
    if problem not in get_args(ProblemKind):
        raise ValueError(f"problem must be one of {', '.join(get_args(ProblemKind))}, got {problem!r}")


def _choose(
    problem: ProblemKind, opened: Opened, known: tuple[RecognizedLoss, ...] | None, ranks: Ranks
) -> tuple[ProblemKind, tuple[RecognizedLoss, ...] | None]:
    """Return the kind of problem that all ranks make, and what the losses were recognized as if it is a mixture."""
    most = max(ranks.collect(opened.slots_per_sample))
    map_rows = len(opened.tasks.expert_map.experts)
    one_slot = most == 1 and map_rows == 1
    if problem == "linear" or (problem == "auto" and one_slot):
        if not one_slot:
            raise ValueError(
                f"a linear problem must have one slot a sample and one row of slots, got up to {most} slots a sample "
                f"and {map_rows} rows"
            )
        return "linear", None
    if problem != "pairwise":
        recognized, error = _recognize(opened, known)
        errors = [text for text in ranks.collect(None if error is None else str(error)) if text]
        if not errors:
            return "mixture", recognized
        if problem == "mixture" or most > 2:
            raise error or ValueError(errors[0])
    if most > 2:
        raise ValueError(f"a pairwise problem must have at most two slots a sample, got {most}")
    return "pairwise", None


def _recognize(
    opened: Opened, known: tuple[RecognizedLoss, ...] | None
) -> tuple[tuple[RecognizedLoss, ...] | None, ValueError | None]:
    found: list[RecognizedLoss] = []
    all_outputs, all_targets = opened.outputs, opened.targets
    for t, loss in enumerate(opened.tasks.losses):
        rows = opened.tasks.of_task(t)
        outputs, targets = all_outputs[rows], all_targets[rows]
        before = None if known is None else known[t].with_targets(targets)
        if before is not None and before.fits(outputs, opened.losses[rows]):
            found.append(before)
            continue
        try:
            found.append(recognize_loss(loss, outputs, targets))
        except ValueError as error:
            return None, error
    kinds = sorted({loss.name for loss in found})
    if len(kinds) > 1:
        return None, ValueError(
            f"the losses of tasks that share a map must be of one kind to be searched as a mixture, got {kinds}"
        )
    return tuple(found), None
