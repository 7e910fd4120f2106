"""One training run, with or without search."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe_search.bench.demo.model import TwoDigitsModel, two_task_loss
from moe_search.bench.demo.settings import DemoSettings, SearchSchedule
from moe_search.bench.demo.tensors import DataTensors, SplitTensors
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.search.permutation_search import OnSearch, PermutationSearch
from moe_search.training.search.search_record import SearchRecord


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """What came of one run.

    Attributes
    ----------
    gate : str
        With a plus if it searched.
    seed : int
    validation_losses : ndarray, shape (epochs + 1,)
        Before the first step and after every epoch.
    best_epoch : int
        Where the validation loss was least; the test values are of the model of that epoch.
    test_loss : float
    accuracies : tuple of float
        Share of test canvases with the right digit, by task.
    experts_per_sample : float
        Mean number of experts with weight on a test canvas.
    history : tuple of SearchRecord
    search_share : float
        Searching, verification included, as a share of the time of training, evaluation apart.
    first_map, last_map : ndarray of int64, shape (m,)
        The expert map before the first and after the last step.
    """

    gate: str
    seed: int
    validation_losses: NDArray[np.float64]
    best_epoch: int
    test_loss: float
    accuracies: tuple[float, ...]
    experts_per_sample: float
    history: tuple[SearchRecord, ...]
    search_share: float
    first_map: NDArray[np.int64]
    last_map: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Loss, accuracy by task and experts used a sample."""

    loss: float
    accuracies: tuple[float, ...]
    experts_per_sample: float


def train(
    model: TwoDigitsModel,
    gate: str,
    data: DataTensors,
    settings: DemoSettings,
    learning_rate: float,
    seed: int,
    schedule: SearchSchedule | None,
    on_epoch: Callable[[], None],
    on_search: OnSearch | None = None,
) -> TrainingRun:
    """Train a model in place.

    Parameters
    ----------
    model : TwoDigitsModel
        On the device of the data.
    gate : str
        Name of the run's gate; a plus is added if there is a schedule.
    data : DataTensors
    settings : DemoSettings
    learning_rate : float
        Of Adam.
    seed : int
        Decides the order of the samples and the searches; runs of one seed see the same batches.
    schedule : SearchSchedule or None
        None for a run without search.
    on_epoch : callable
        Called after every epoch.
    on_search : callable, optional
        As in `PermutationSearch`.

    Returns
    -------
    TrainingRun
    """
    search = None
    if schedule is not None:
        search = PermutationSearch(
            model,
            model.moe,
            loss=two_task_loss,
            period=schedule.period,
            until=schedule.until,
            batches=schedule.batches,
            stop=MaxIterations(schedule.iterations),
            seed=seed,
            on_search=on_search,
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(seed)
    first_map = current_map(model)
    losses = [evaluate(model, data.validation).loss]
    best_epoch, best_state = 0, copy.deepcopy(model.state_dict())
    seconds = 0.0
    for epoch in range(1, settings.epochs + 1):
        start = time.perf_counter()
        model.train()
        for rows in torch.split(torch.randperm(len(data.train.inputs), generator=generator), settings.batch_size):
            inputs, targets = data.train.inputs[rows], data.train.targets[rows]
            loss = two_task_loss(model(inputs), targets) + model.moe.regularization()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if search is not None:
                search.step(inputs, targets)
        seconds += time.perf_counter() - start
        losses.append(evaluate(model, data.validation).loss)
        if losses[-1] < losses[best_epoch]:
            best_epoch, best_state = epoch, copy.deepcopy(model.state_dict())
        on_epoch()
    last_map = current_map(model)
    model.load_state_dict(best_state)
    test = evaluate(model, data.test)
    return TrainingRun(
        gate=gate if search is None else f"{gate}+",
        seed=seed,
        validation_losses=np.array(losses),
        best_epoch=best_epoch,
        test_loss=test.loss,
        accuracies=test.accuracies,
        experts_per_sample=test.experts_per_sample,
        history=() if search is None else tuple(search.history),
        search_share=0.0 if search is None else search.seconds / seconds,
        first_map=first_map,
        last_map=last_map,
    )


@torch.no_grad()
def evaluate(model: TwoDigitsModel, split: SplitTensors) -> Evaluation:
    """Evaluate a model on all of a split; the model is left in eval mode."""
    model.eval()
    outputs = model(split.inputs)
    right = outputs.argmax(-1) == split.targets
    expert_weights = model.moe.gate.expert_map(model.moe.gate(split.inputs).weights)
    return Evaluation(
        loss=float(two_task_loss(outputs, split.targets)),
        accuracies=tuple(right.double().mean(0).tolist()),
        experts_per_sample=float((expert_weights > 0).double().sum(1).mean()),
    )


def current_map(model: TwoDigitsModel) -> NDArray[np.int64]:
    """Return a copy of the expert of every slot, shape (m,)."""
    experts: NDArray[np.int64] = model.moe.gate.expert_map.experts[0].cpu().numpy().copy()
    return experts
