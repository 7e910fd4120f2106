"""Two ways to start: all weights fresh, or good specialists under a scrambled map."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from moe_search.bench.datasets.two_images import load_two_digits
from moe_search.bench.demo.optimum import ComparedSearch, compare_with_optimum
from moe_search.bench.demo.settings import GATES, SEARCHED, DemoSettings
from moe_search.bench.experiments.specialists import parts_of, train_specialists
from moe_search.bench.experiments.training import SearchSchedule, batches_of, rows_by_epoch, train_by_steps
from moe_search.bench.experiments.two_image_model import (
    DataTensors,
    TwoImageModel,
    evaluate,
    make_model,
    to_tensors,
    two_task_loss,
)
from moe_search.solvers import Result
from moe_search.training import Lowering, SearchRecord
from moe_search.training.search.permutation_search import OnSearch

OnTick = Callable[[str], None]
"""Told what was done, after every epoch of a run and every problem solved to optimality; from any thread."""


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


@dataclass(frozen=True, eq=False)
class Intact:
    """A model of specialists before its map was scrambled."""

    gate: str
    seed: int
    validation_loss: float
    expert_map: NDArray[np.int64]


@dataclass(frozen=True)
class ScenarioResult:
    """All that came of a scenario.

    Attributes
    ----------
    schedule : SearchSchedule
        Of the gates with a plus.
    runs : tuple of TrainingRun
        Seed by seed, each gate followed by its plus version.
    searches : tuple of ComparedSearch
        All searches of all runs.
    intact : tuple of Intact
        Where each gate and seed would have started without the scrambling; empty from scratch.
    """

    schedule: SearchSchedule
    runs: tuple[TrainingRun, ...]
    searches: tuple[ComparedSearch, ...]
    intact: tuple[Intact, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """What a scenario is run with.

    Attributes
    ----------
    settings : DemoSettings
    device : torch.device
        Where models are trained.
    executor : Executor
        Computes the exact optima beside the training.
    on_tick : callable
    """

    settings: DemoSettings
    device: torch.device
    executor: Executor
    on_tick: OnTick

    def train_from_scratch(self) -> ScenarioResult:
        """Train every gate from fresh weights, and the sparse ones again with search."""
        settings = self.settings
        runs: list[TrainingRun] = []
        searches: list[Future[ComparedSearch]] = []
        for seed, data in self._data():
            for gate in GATES:
                model = make_model(gate, settings, seed).to(self.device)
                schedule, rate = settings.from_scratch, settings.learning_rate
                runs += self._with_and_without_search(model, gate, data, seed, schedule, rate, searches)
        return ScenarioResult(settings.from_scratch, tuple(runs), tuple(each.result() for each in searches))

    def train_from_bad_initialization(self) -> ScenarioResult:
        """Train specialists and a gate that fits them, scramble the gate's map, then go on with all weights."""
        settings = self.settings
        runs: list[TrainingRun] = []
        searches: list[Future[ComparedSearch]] = []
        intact: list[Intact] = []
        for seed, data in self._data():
            for gate in GATES:
                model = make_model(gate, settings, seed).to(self.device)
                parts = parts_of(model, data.train.inputs, seed)
                on_epoch = partial(self.on_tick, f"{gate}, specialists, seed {seed}")
                train_specialists(model, data.train, parts, settings, seed, on_epoch)
                expert_map = model.moe.gate.expert_map.experts[0].cpu().numpy().copy()
                intact.append(Intact(gate, seed, evaluate(model, data.validation).loss, expert_map))
                model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
                schedule, rate = settings.bad_initialization, settings.tuning_learning_rate
                runs += self._with_and_without_search(model, gate, data, seed, schedule, rate, searches)
        compared = tuple(each.result() for each in searches)
        return ScenarioResult(settings.bad_initialization, tuple(runs), compared, tuple(intact))

    def _data(self) -> Iterator[tuple[int, DataTensors]]:
        for seed in range(self.settings.seeds):
            yield seed, load_data(self.settings, seed, self.device)

    def _with_and_without_search(
        self,
        model: TwoImageModel,
        gate: str,
        data: DataTensors,
        seed: int,
        schedule: SearchSchedule,
        learning_rate: float,
        searches: list[Future[ComparedSearch]],
    ) -> Iterator[TrainingRun]:
        """Train one model twice from the same weights on the same batches; a dense gate once."""

        def on_search(record: SearchRecord, lowering: Lowering, result: Result) -> None:
            future = self.executor.submit(compare_with_optimum, f"{gate}+", seed, record, lowering, result)
            future.add_done_callback(lambda _: self.on_tick("exact optima of the searches"))
            searches.append(future)

        for search, sign in (("none", ""), ("search", "+")) if gate in SEARCHED else (("none", ""),):
            on_epoch = partial(self.on_tick, f"{gate}{sign}, seed {seed}")
            chosen = copy.deepcopy(model)
            yield train(chosen, gate, data, self.settings, learning_rate, seed, search, schedule, on_epoch, on_search)


def train(
    model: TwoImageModel,
    gate: str,
    data: DataTensors,
    settings: DemoSettings,
    learning_rate: float,
    seed: int,
    search: str,
    schedule: SearchSchedule,
    on_epoch: Callable[[], None] | None = None,
    on_search: OnSearch | None = None,
) -> TrainingRun:
    """Train a model in place, on the device of the data.

    Parameters
    ----------
    model : TwoImageModel
    gate : str
        Name of the run's gate; a plus is added if it searches.
    data : DataTensors
    settings : DemoSettings
    learning_rate : float
        The rate of Adam.
    seed : int
        Decides the order of the samples and the searches; runs of one seed see the same batches.
    search : {"none", "search"}
    schedule : SearchSchedule
    on_epoch : callable, optional
        Called after every epoch.
    on_search : callable, optional
        As in `PermutationSearch`.
    """
    rows = rows_by_epoch(len(data.train), settings.batch_size, settings.epochs, seed)

    def on_step(step: int) -> None:
        if on_epoch is not None and step % settings.steps_per_epoch == 0:
            on_epoch()

    run = train_by_steps(
        model,
        model.moe,
        two_task_loss,
        batches_of(data.train, rows),
        lambda: evaluate(model, data.validation).loss,
        steps=settings.steps,
        learning_rate=learning_rate,
        search=search,
        schedule=schedule,
        seed=seed,
        evaluated=tuple(range(0, settings.steps + 1, settings.steps_per_epoch)),
        on_step=on_step,
        on_search=on_search,
    )
    model.load_state_dict(run.best)
    test = evaluate(model, data.test)
    return TrainingRun(
        gate=f"{gate}+" if search == "search" else gate,
        seed=seed,
        validation_losses=np.array(run.losses),
        best_epoch=int(np.argmin(run.losses)),
        test_loss=test.loss,
        accuracies=test.accuracies,
        experts_per_sample=test.experts_per_sample,
        history=run.history,
        search_share=run.seconds_searching / run.seconds,
        first_map=run.first_map,
        last_map=run.last_map,
    )


def count_ticks(settings: DemoSettings) -> int:
    """Return how often both scenarios together call `on_tick`."""
    schedules = (settings.from_scratch, settings.bad_initialization)
    searches = sum(schedule.count(settings.steps) for schedule in schedules) * len(SEARCHED)
    epochs = 2 * settings.epochs * (len(GATES) + len(SEARCHED)) + settings.pretraining_epochs * len(GATES)
    return settings.seeds * (searches + epochs)


def load_data(settings: DemoSettings, seed: int, device: torch.device) -> DataTensors:
    """Return the data of a seed, on a device."""
    data = load_two_digits(
        settings.num_train, settings.num_validation, settings.num_test, canvas=settings.canvas, seed=seed
    )
    return to_tensors(data, device)
