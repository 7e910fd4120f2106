"""Training by single steps, with or without search of the expert map, and the validation loss along the way."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.bench.demo.settings import SearchSchedule
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.problems.random_instances import random_mixture
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.solvers.heuristic.local_search import LocalSearch
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.forward_pass import forward
from moe_search.training.lowering.sample_losses import Loss
from moe_search.training.search.permutation_search import OnSearch, PermutationSearch
from moe_search.training.sinkhorn import SinkhornPermutation

SEARCHES = ("none", "sinkhorn", "search")
"""No search; the published relaxation, annealed up to the last step of the schedule; ours."""

EVALUATIONS_PER_DOUBLING = 16


@dataclass(frozen=True, eq=False)
class StepRun:
    """What came of a run.

    Attributes
    ----------
    steps : tuple of int
        Where the validation loss was taken, from 0, before the first step, on.
    losses : tuple of float
        The validation losses there.
    best : dict
        The state of the model where the loss was least.
    first_map, last_map : ndarray of int64
        The expert map before and after, its rows one after the other.
    committed : int
        Maps that the search put into the gate.
    seconds : float
        Time of the steps, searches included, evaluations apart.
    seconds_searching : float
        Time of the searches of `PermutationSearch`.
    cpu_seconds : tuple of float
        Processor time that the process had spent on the steps, searches included, evaluations apart, at each of
        `steps`: what runs are compared by at equal time, since it does not grow while others have the machine. Empty
        where it was not taken.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    best: dict[str, Any]
    first_map: NDArray[np.int64]
    last_map: NDArray[np.int64]
    committed: int
    seconds: float
    seconds_searching: float
    cpu_seconds: tuple[float, ...] = ()

    def steps_to(self, loss: float) -> int | None:
        """Return the first of `steps` at which the loss is at most `loss`; None if there is none."""
        return next((step for step, here in zip(self.steps, self.losses, strict=True) if here <= loss), None)

    def numbers(self) -> dict[str, float | list[float]]:
        """Return the run as numbers of a trial."""
        return {
            "steps": [float(step) for step in self.steps],
            "validation_losses": list(self.losses),
            "cpu_seconds": list(self.cpu_seconds),
            "least_validation_loss": min(self.losses),
            "first_map": self.first_map.astype(float).tolist(),
            "last_map": self.last_map.astype(float).tolist(),
            "committed": float(self.committed),
            "training_seconds": self.seconds,
            "searching_seconds": self.seconds_searching,
        }


def evaluation_steps(steps: int) -> tuple[int, ...]:
    """Return the steps at which a run is evaluated: all of the first ones, then 16 to 31 in every doubling."""
    chosen = [0]
    for step in range(1, steps + 1):
        stride = max(1, 2 ** (step.bit_length() - 1) // EVALUATIONS_PER_DOUBLING)
        if step % stride == 0 or step == steps:
            chosen.append(step)
    return tuple(chosen)


def endless_batches(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of `size` samples for ever, in a new order each time that all have been seen.

    What is left over at the end of an order is left out: every batch is whole.

    Raises
    ------
    ValueError
        If there are fewer samples than a batch takes.
    """
    data.require(size, f" to fill a batch of {size}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(data), generator=generator)
        for rows in order[: len(order) // size * size].view(-1, size):
            yield Batch(data.inputs[rows], data.targets[rows], None if data.ids is None else data.ids[rows])


def train_by_steps(
    model: nn.Module,
    moe: MixtureOfExperts,
    loss: Loss,
    batches: Iterator[Batch],
    validation_loss: Callable[[], float],
    *,
    steps: int,
    learning_rate: float,
    search: str,
    schedule: SearchSchedule,
    seed: int,
    relaxation_steps: int | None = None,
    evaluated: tuple[int, ...] | None = None,
    on_step: Callable[[int], None] | None = None,
    penalty: Callable[[], Tensor] | None = None,
    load_limit: float | None = None,
    on_search: OnSearch | None = None,
    held: int = 0,
    gate_rate: float | None = None,
) -> StepRun:
    """Train a model in place.

    Parameters
    ----------
    model : Module
    moe : MixtureOfExperts
        Its mixture layer. With the search ``"sinkhorn"`` its gate is wrapped.
    loss : callable
        ``loss(outputs, targets)``, the mean over samples.
    batches : iterator of Batch
        At least `steps` of them.
    validation_loss : callable
        May leave the model in eval mode.
    steps : int
    learning_rate : float
        Of Adam.
    search : str
        One of `SEARCHES`.
    schedule : SearchSchedule
        When and how long is searched.
    seed : int
        Decides the searches and the start of the relaxation.
    relaxation_steps : int, optional
        The step at which the relaxation is rounded; the last one of the schedule by default.
    evaluated : tuple of int, optional
        Steps at which the validation loss is taken, rising, 0 the first; `evaluation_steps` by default.
    on_step : callable, optional
        Called with the number of the step, from 1, after each, within the time of the steps.
    penalty : callable, optional
        Called after every forward; what it returns is added to the loss of the step.
    load_limit, on_search : optional
        Of `PermutationSearch`.
    held : int
        So many first steps leave the weights as they are: a search looks at their batches before a wrong map does harm.
    gate_rate : float, optional
        The learning rate of the gate, if it is another.

    Returns
    -------
    StepRun

    Raises
    ------
    ValueError
        If the search is unknown.
    """
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    first_map = _flat_map(moe)
    ours = None
    if search == "search":
        _compile_once()
        ours = PermutationSearch(
            model,
            moe,
            loss=loss,
            period=schedule.period,
            until=schedule.until,
            batches=schedule.batches,
            stop=MaxIterations(schedule.iterations),
            seed=seed,
            on_search=on_search,
            load_limit=load_limit,
        )
    rounded = schedule.until if relaxation_steps is None else relaxation_steps
    relaxation = _relax(moe, rounded, seed) if search == "sinkhorn" else None
    gate = list(moe.gate.parameters())
    others = [parameter for parameter in model.parameters() if all(parameter is not own for own in gate)]
    rate = learning_rate if gate_rate is None else gate_rate
    groups: list[dict[str, Any]] = [{"params": others}, {"params": gate, "lr": rate}]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    evaluated = evaluation_steps(steps) if evaluated is None else evaluated
    due = set(evaluated)
    losses = [validation_loss()]
    best = copy.deepcopy(model.state_dict())
    seconds = cpu = 0.0
    cpu_seconds = [0.0]
    for step in range(1, steps + 1):
        batch = next(batches)
        start, cpu_start = time.perf_counter(), time.process_time()
        model.train()
        if step > held:
            total = loss(forward(model, batch), batch.targets) + moe.regularization()
            if penalty is not None:
                total = total + penalty()
            optimizer.zero_grad()
            torch.autograd.backward(total)
            optimizer.step()
        if relaxation is not None:
            relaxation.step()
        if ours is not None:
            ours.step(batch.inputs, batch.targets, batch.ids)
        if on_step is not None:
            on_step(step)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - cpu_start
        if step in due:
            cpu_seconds.append(cpu)
            losses.append(validation_loss())
            if losses[-1] == min(losses):
                best = copy.deepcopy(model.state_dict())
    return StepRun(
        steps=evaluated,
        losses=tuple(losses),
        best=best,
        first_map=first_map,
        last_map=_flat_map(moe),
        committed=0 if ours is None else sum(record.outcome in ("committed", "enforced") for record in ours.history),
        seconds=seconds,
        seconds_searching=0.0 if ours is None else ours.seconds,
        cpu_seconds=tuple(cpu_seconds),
    )


@lru_cache(maxsize=1)
def _compile_once() -> None:
    """Compile the kernels before the first search of a process, so that no trial is billed for it."""
    LocalSearch().solve(random_mixture(16, 4, seed=0, num_outputs=4, loss="cross_entropy"), MaxIterations(10))


def _relax(moe: MixtureOfExperts, steps: int, seed: int) -> SinkhornPermutation:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        relaxation = SinkhornPermutation(moe.gate, steps)
    moe.gate = relaxation
    return relaxation


def _flat_map(moe: MixtureOfExperts) -> NDArray[np.int64]:
    flat: NDArray[np.int64] = moe.gate.expert_map.experts.flatten().cpu().numpy().copy()
    return flat
