"""The training loop of demo and experiments: steps of Adam, with or without search of the expert map."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from moe_search.checks import require_choice
from moe_search.layers import MixtureOfExperts
from moe_search.problems import random_mixture
from moe_search.solvers import LocalSearch, MaxIterations
from moe_search.training import PermutationSearch, SearchRecord, SinkhornPermutation
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.losses import Loss
from moe_search.training.search.permutation_search import OnSearch

SEARCHES = ("none", "sinkhorn", "search")
"""No search; the published relaxation, annealed up to the last step of the schedule; ours."""

EVALUATIONS_PER_DOUBLING = 16

Step = TypeVar("Step")
"""What a step of training takes: a batch, or the rows of one."""


@dataclass(frozen=True)
class SearchSchedule:
    """When and how long is searched.

    A search comes every `period` training steps, up to step `until`, and looks at so many batches; the one after them
    verifies. Its iterations are evaluated neighbors: a count and not seconds, so that a run can be repeated.
    """

    period: int
    until: int
    batches: int = 1
    iterations: int = 300

    def due(self, step: int) -> bool:
        """Return whether a search follows a step, counted from 1."""
        return step <= self.until and step % self.period == 0

    def count(self, steps: int) -> int:
        """Return the number of searches in a run of `steps` training steps."""
        return min(steps, self.until) // self.period


@dataclass(frozen=True, eq=False)
class StepRun:
    """What came of a run.

    Attributes
    ----------
    steps, losses : tuple
        Where the validation loss was taken, from 0, before the first step, on; and what it was there.
    best : dict
        The state of the model where the loss was least for the first time.
    first_map, last_map : ndarray of int64
        The expert map before and after, its rows one after the other.
    seconds : float
        Time of the steps, searches included, evaluations apart.
    cpu_seconds : tuple of float
        Processor time that the process had spent on the steps, searches included, evaluations apart, at each of
        `steps`: what runs are compared by at equal time, since it does not grow while others have the machine.
    history, seconds_searching
        What each `PermutationSearch` did, and their time.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    best: dict[str, Any]
    first_map: NDArray[np.int64]
    last_map: NDArray[np.int64]
    seconds: float
    cpu_seconds: tuple[float, ...]
    history: tuple[SearchRecord, ...] = ()
    seconds_searching: float = 0.0

    def searched_by(self, *searches: PermutationSearch) -> StepRun:
        """Return the run with what searches did in it."""
        history = tuple(record for search in searches for record in search.history)
        return replace(self, history=history, seconds_searching=sum(search.seconds for search in searches))

    @property
    def committed(self) -> int:
        """Maps that the search put into the gate."""
        return sum(record.outcome in ("committed", "enforced") for record in self.history)

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


def rows_by_epoch(
    count: int, size: int, epochs: int, seed: int, on_epoch: Callable[[], None] | None = None
) -> Iterator[Tensor]:
    """Yield `size` numbers below `count`, what is left over as well, in a new order every epoch.

    `on_epoch` is called when the last of an epoch have been used.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.split(torch.randperm(count, generator=generator), size)
        if on_epoch is not None:
            on_epoch()


def endless_rows(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield `size` numbers below `count` for ever, in a new order each time that all have been seen.

    What is left over at the end of an order is left out: every batch is whole.
    """
    if count < size:
        raise ValueError(f"there must be at least {size} samples to fill a batch of {size}, got {count}")
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].view(-1, size)


def batches_of(data: Batch, rows: Iterable[Tensor]) -> Iterator[Batch]:
    """Yield the samples of some rows after the other."""
    for each in rows:
        yield Batch.of({name: tensor[each] for name, tensor in data.named()})


def endless_batches(data: Batch, size: int, seed: int) -> Iterator[Batch]:
    """Yield batches of the `endless_rows` of some data."""
    return batches_of(data, endless_rows(len(data), size, seed))


def descend(
    parameters: Iterable[Tensor], steps: Iterable[Step], loss: Callable[[Step], Tensor], learning_rate: float
) -> None:
    """Train by Adam, a step for each of `steps`, from which `loss` computes what is to become less."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for step in steps:
        _take_step(optimizer, loss(step))


@contextmanager
def one_thread() -> Iterator[None]:
    """Give torch one thread: models this small gain nothing from more, which wait for each other on busy cores."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def compile_once() -> None:
    """Compile the kernels before the first search of a process, so that no run is billed for it."""
    LocalSearch().solve(
        random_mixture(4, num_samples=16, seed=0, num_outputs=4, loss="cross_entropy"), MaxIterations(10)
    )


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Step],
    loss: Callable[[Step], Tensor],
    validation_loss: Callable[[], float],
    read_map: Callable[[], NDArray[np.int64]],
    *,
    steps: int,
    evaluated: tuple[int, ...],
    after_step: Callable[[int, Step], None],
    frozen_steps: int = 0,
) -> StepRun:
    """Train a model in place.

    Parameters
    ----------
    batches : iterator
        What the steps take, and `loss` computes their loss from; at least `steps` of them.
    validation_loss : callable
        May leave the model in eval mode.
    read_map : callable
        Returns the expert map.
    evaluated : tuple of int
        Steps at which the validation loss is taken, rising, 0 the first.
    after_step : callable
        Called with the number of the step, from 1, and what it took, after each, within the time of the steps.
    frozen_steps : int
        So many first steps leave the weights as they are: a search looks at their batches before a wrong map does harm.
    """
    first_map = read_map()
    losses = [validation_loss()]
    best = copy.deepcopy(model.state_dict())
    seconds = cpu = 0.0
    cpu_seconds = [0.0]
    for step in range(1, steps + 1):
        batch = next(batches)
        start, cpu_start = time.perf_counter(), time.process_time()
        model.train()
        if step > frozen_steps:
            _take_step(optimizer, loss(batch))
        after_step(step, batch)
        seconds += time.perf_counter() - start
        cpu += time.process_time() - cpu_start
        if step in evaluated:
            cpu_seconds.append(cpu)
            losses.append(validation_loss())
            if losses[-1] < min(losses[:-1]):
                best = copy.deepcopy(model.state_dict())
    return StepRun(evaluated, tuple(losses), best, first_map, read_map(), seconds, tuple(cpu_seconds))


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
    frozen_steps: int = 0,
    gate_rate: float | None = None,
    searched: tuple[nn.Module, Loss] | None = None,
) -> StepRun:
    """Train a model of one mixture layer in place, with a search of its map or without.

    Parameters
    ----------
    model, moe
        The model and its mixture layer, whose gate the search ``"sinkhorn"`` wraps.
    loss : callable
        ``loss(outputs, targets)``, the mean over samples.
    batches, validation_loss, steps, evaluated, frozen_steps
        What `train` takes; the steps evaluated are `evaluation_steps` by default.
    learning_rate, gate_rate : float
        The rate of Adam, and that of the gate if it is another.
    search : str
        One of `SEARCHES`.
    seed : int
        Decides the searches and the start of the relaxation.
    relaxation_steps : int, optional
        The step at which the relaxation is rounded; the last one of the schedule by default.
    on_step : callable, optional
        Called with the number of the step, from 1, after each, within the time of the steps.
    penalty : callable, optional
        Called after every forward; what it returns is added to the loss of the step.
    load_limit, on_search
        What `PermutationSearch` takes.
    searched : tuple of Module and callable, optional
        The model and the loss that ours searches by, where they are not those of the training.
    """
    require_choice("search", search, SEARCHES)
    ours, relaxation = None, None
    if search == "search":
        compile_once()
        searched_model, searched_loss = (model, loss) if searched is None else searched
        ours = PermutationSearch(
            searched_model,
            moe,
            loss=searched_loss,
            period=schedule.period,
            until=schedule.until,
            batches=schedule.batches,
            stop=MaxIterations(schedule.iterations),
            seed=seed,
            on_search=on_search,
            load_limit=load_limit,
        )
    if search == "sinkhorn":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            relaxation = SinkhornPermutation(moe.gate, relaxation_steps or schedule.until)
        moe.gate = relaxation
    gate = list(moe.gate.parameters())
    others = [parameter for parameter in model.parameters() if all(parameter is not own for own in gate)]
    groups: list[dict[str, Any]] = [{"params": others}, {"params": gate}]
    if gate_rate is not None:
        groups[1]["lr"] = gate_rate

    def step_loss(batch: Batch) -> Tensor:
        outputs = model(batch.inputs) if batch.ids is None else model(batch.inputs, ids=batch.ids)
        total = loss(outputs, batch.targets) + moe.regularization()
        return total if penalty is None else total + penalty()

    def after_step(step: int, batch: Batch) -> None:
        if relaxation is not None:
            relaxation.step()
        if ours is not None:
            ours.step(batch.inputs, batch.targets, batch.ids)
        if on_step is not None:
            on_step(step)

    run = train(
        model,
        torch.optim.Adam(groups, lr=learning_rate),
        batches,
        step_loss,
        validation_loss,
        lambda: moe.gate.expert_map.experts.flatten().cpu().numpy().copy(),
        steps=steps,
        evaluated=evaluation_steps(steps) if evaluated is None else evaluated,
        after_step=after_step,
        frozen_steps=frozen_steps,
    )
    return run if ours is None else run.searched_by(ours)


def _take_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
