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
from moe_search.bench.demo.model import GATES, SEARCHED, TwoDigitsModel, make_model
from moe_search.bench.demo.optimum import ComparedSearch, compare_with_optimum
from moe_search.bench.demo.settings import DemoSettings, SearchSchedule
from moe_search.bench.demo.specialists import parts_of, train_specialists
from moe_search.bench.demo.tensors import DataTensors, to_tensors
from moe_search.bench.demo.training_run import TrainingRun, current_map, evaluate, train
from moe_search.solvers.engine.result import Result
from moe_search.training.lowering.lowering import Lowering
from moe_search.training.search.search_record import SearchRecord

OnTick = Callable[[str], None]
"""Told what was done, after every epoch of a run and every problem solved to optimality; from any thread."""


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
                intact.append(Intact(gate, seed, evaluate(model, data.validation).loss, current_map(model)))
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
        model: TwoDigitsModel,
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

        for chosen in (None, schedule) if gate in SEARCHED else (None,):
            on_epoch = partial(self.on_tick, f"{gate}{'+' if chosen else ''}, seed {seed}")
            yield train(
                copy.deepcopy(model), gate, data, self.settings, learning_rate, seed, chosen, on_epoch, on_search
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
