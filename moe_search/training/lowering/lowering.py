"""Lowering: from a model, a batch and a loss to the problem of placing the experts at the slots."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.checks import require_choice, require_integer
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.load_limited import LoadLimited
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.exact_costs import pair_costs, slot_costs
from moe_search.training.lowering.forward_pass import Opened, check_model, open_batch
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.losses import RecognizedLoss, recognize_loss
from moe_search.training.lowering.mixture_arrays import Deviation, MixtureArrays, mixture_arrays, mixture_problem
from moe_search.training.lowering.process_group import ALONE, Ranks
from moe_search.training.lowering.tasks import Layer, TaskLoss, Tasks

CHUNK_SIZE = 1024
"""Samples that go through the model at once, by default: enough to keep it busy, few for the experts' outputs."""

ProblemKind: TypeAlias = Literal["auto", "linear", "pairwise", "mixture"]


class TooManySlotsError(ValueError):
    """A problem that was asked for, or the only one for a loss, takes fewer slots a sample than the batch has."""


@dataclass(frozen=True, eq=False)
class Lowering:
    """A search problem made from a model, and what is known of how it was made.

    Parameters
    ----------
    problem : LinearAssignment, PairwiseAssignment or MixtureAssignment
        Its value is the mean loss of the batch under a map, summed over tasks. After `limit_load` it is a `LoadLimited`
        one of these.
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
    experts_per_sample : float or None
        Mean number of experts that a sample has weight on under the present map, for each task; None for samples that
        are sequences of tokens.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> inputs = torch.randn(64, 8)
    >>> targets = moe(inputs).detach()  # so that the present map is the best one
    >>> moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    >>> lowering = ms.lower(moe, moe, inputs, targets, torch.nn.functional.mse_loss)
    >>> type(lowering.problem).__name__, lowering.num_samples, lowering.linearized
    ('LinearAssignment', 64, False)
    >>> abs(lowering.problem.value(lowering.initial) - lowering.batch_loss) < 1e-6
    True
    """

    problem: LinearAssignment | PairwiseAssignment | MixtureAssignment | LoadLimited
    initial: NDArray[np.int64]
    linearized: bool
    batch_loss: float
    num_samples: int
    losses: tuple[RecognizedLoss, ...] | None
    slot_loads: NDArray[np.int64]
    experts_per_sample: float | None = None


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

    The model is run in eval mode and left as it was: training flags, gradients, buffers and random generators.

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

    Raises
    ------
    ValueError
        If the model, the loss or the batch is not as described above, if no class of problem fits or not the one asked
        for, or if a pairwise problem would be too large.
    NonFiniteLossError
        If the loss, or what an expert answers, is NaN or infinite.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> inputs = torch.randn(64, 8)
    >>> targets = moe(inputs).detach()  # so that the present map is the best one
    >>> moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    >>> lowering = ms.lower(moe, moe, inputs, targets, torch.nn.functional.mse_loss)
    >>> result = ms.solve(lowering.problem)
    >>> lowering.batch_loss > 0.001, abs(result.value) < 1e-6
    (True, True)
    """
    check_model(model, moe)
    tasks = Tasks.of(moe, loss)
    require_choice("problem", problem, get_args(ProblemKind))
    require_integer("chunk_size", chunk_size)
    batch = Batch(inputs, targets, ids)
    batch.require(1)
    tasks.rows("targets", batch.targets)
    batch.check_device(model)
    if max_samples is not None:
        require_integer("max_samples", max_samples)
        batch = batch.last(max_samples)
    lowering, _ = lower_batches(model, tasks, [batch], problem, chunk_size)
    assert lowering is not None
    return lowering


def lower_batches(
    model: nn.Module,
    tasks: Tasks,
    batches: Iterable[Batch],
    problem: ProblemKind,
    chunk_size: int,
    known: tuple[RecognizedLoss, ...] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[Lowering | None, tuple[RecognizedLoss, ...] | None]:
    """Make one problem of the samples of all batches and ranks, from checked arguments.

    Batches are opened one after another, and the first one decides the class of the problem. Costs of linear and
    pairwise problems are added up; a mixture keeps arrays of all samples.

    Parameters
    ----------
    model, problem, chunk_size
        As in `lower`.
    batches : iterable of Batch
        The batches of this rank, one at least. Later ones must fit the class that the first decided.
    known : tuple of RecognizedLoss, optional
        What the losses were recognized as before, which is tried first.
    ranks : Ranks
        All of them must call this together; they may have different numbers of batches. An error of one comes on all.

    Returns
    -------
    lowering : Lowering or None
        It is None on all ranks but the first.
    recognized : tuple of RecognizedLoss or None
        What the losses were recognized as in the first batch, if they were looked at.
    """
    with frozen(model):
        all_opened = (open_batch(model, tasks, batch, chunk_size) for batch in batches)
        first = ranks.agree(lambda: _first(all_opened))
        kind, recognized = _choose(problem, first, known, ranks)

        def add_up() -> _Sums:
            sums = _Sums()
            sums.add(first, kind, recognized)
            for opened in all_opened:
                _require_slots(kind, opened.slots_per_sample, opened)
                sums.add(opened, kind, None if recognized is None else _recognize(opened, recognized))
            return sums

        sums = ranks.agree(add_up)
        losses = np.concatenate(ranks.collect(np.concatenate(sums.losses)))
        num_samples = len(losses) // tasks.count
        slot_loads = ranks.sum(sums.slot_loads)
        num_pairs = ranks.sum(np.array(sums.num_pairs))
        made: LinearAssignment | PairwiseAssignment | MixtureAssignment | None
        deviation = Deviation()
        if kind == "linear":
            made = LinearAssignment(ranks.sum(sums.costs) / num_samples)
        elif kind == "pairwise":
            made = PairwiseAssignment(ranks.sum(sums.costs) / num_samples, block_size=tasks.expert_map.num_slots)
        else:
            arrays = [each for of_rank in ranks.gather(sums.arrays) for each in of_rank]
            made = ranks.agree(lambda: mixture_problem(arrays) if arrays else None)
            deviation = functools.reduce(Deviation.joined, (part.deviation for part in arrays), deviation)
    if made is None or ranks.index > 0:
        return None, recognized
    initial = tasks.expert_map.permutation()
    mean = float(losses.sum() / num_samples)
    experts = float(num_pairs) / len(losses)
    return (
        Lowering(made, initial, not deviation.affine, mean, num_samples, recognized, slot_loads, experts),
        recognized,
    )


class _Sums:
    """What the batches of one rank add up to."""

    def __init__(self) -> None:
        self.losses: list[NDArray[np.float64]] = []
        self.slot_loads: Any = 0
        self.num_pairs = 0
        # What is 0 here becomes an array, which is then added to in place: that of a pairwise problem is large.
        self.costs: Any = 0
        self.arrays: list[MixtureArrays] = []

    def add(self, opened: Opened, kind: ProblemKind, recognized: tuple[RecognizedLoss, ...] | None) -> None:
        """Add a batch; ``recognized`` is what its losses are, for a mixture."""
        if kind == "linear":
            self.costs += slot_costs(opened)
        elif kind == "pairwise":
            self.costs += pair_costs(opened)
        else:
            assert recognized is not None
            self.arrays.append(mixture_arrays(opened, recognized))
        self.losses.append(opened.losses)
        self.slot_loads += opened.slot_loads
        self.num_pairs += opened.num_pairs


def _first(all_opened: Iterator[Opened]) -> Opened:
    opened = next(all_opened, None)
    if opened is None:
        raise ValueError("batches must hold at least one batch, got none")
    return opened


def _choose(
    problem: ProblemKind, opened: Opened, known: tuple[RecognizedLoss, ...] | None, ranks: Ranks
) -> tuple[ProblemKind, tuple[RecognizedLoss, ...] | None]:
    """Return the kind of problem that all ranks make, and what the losses were recognized as if it is a mixture."""
    most = max(ranks.collect(opened.slots_per_sample))
    if problem == "auto" and most == 1 and len(opened.tasks.expert_map.experts) == 1:
        problem = "linear"
    if problem in ("auto", "mixture"):

        def recognize() -> tuple[tuple[RecognizedLoss, ...] | None, ValueError | None]:
            try:
                return _recognize(opened, known), None
            except ValueError as no_mixture:
                return None, no_mixture

        recognized, error = ranks.agree(recognize)
        errors = [text for text in ranks.collect(None if error is None else str(error)) if text]
        if not errors:
            return "mixture", recognized
        if problem == "mixture":
            raise error or ValueError(errors[0])
        if most > 2:
            raise TooManySlotsError(f"{errors[0]}, and up to {most} slots a sample where any other loss takes two")
        problem = "pairwise"
    _require_slots(problem, most, opened)
    return problem, None


def _require_slots(kind: ProblemKind, most: int, opened: Opened) -> None:
    """Raise ValueError if samples of up to ``most`` slots are too many for a kind of problem."""
    map_rows = len(opened.tasks.expert_map.experts)
    if kind == "linear" and (most > 1 or map_rows > 1):
        raise TooManySlotsError(
            f"a linear problem must have one slot a sample and one row of slots, got up to {most} slots a sample "
            f"and {map_rows} rows"
        )
    if kind == "pairwise" and most > 2:
        raise TooManySlotsError(f"a pairwise problem must have at most two slots a sample, got {most}")


def _recognize(opened: Opened, known: tuple[RecognizedLoss, ...] | None) -> tuple[RecognizedLoss, ...]:
    """Return what the loss of every task is, or raise ValueError if a mixture cannot be searched under it."""
    found: list[RecognizedLoss] = []
    all_outputs, all_targets = opened.outputs, opened.targets
    for t, loss in enumerate(opened.tasks.losses):
        rows = opened.tasks.of_task(t)
        outputs, targets = all_outputs[rows], all_targets[rows]
        before = None if known is None else known[t].with_targets(targets)
        if before is not None and before.fits(outputs, opened.losses[rows]):
            found.append(before)
        else:
            found.append(recognize_loss(loss, outputs, targets))
    kinds = sorted({loss.name for loss in found})
    if len(kinds) > 1:
        raise ValueError(
            f"the losses of tasks that share a map must be of one kind to be searched as a mixture, got {kinds}"
        )
    return tuple(found)
