"""Two ways to start: all weights fresh, or good specialists under a scrambled map; every search against the optimum."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from moe_search.bench.datasets.two_images import load_two_digits
from moe_search.bench.demo.settings import SEARCHED, SHOWN, DemoSettings
from moe_search.bench.experiments.pretraining import parts_of, train_specialists
from moe_search.bench.experiments.training import SearchSchedule, StepRun, batches_of, rows_by_epoch, train_by_steps
from moe_search.bench.experiments.two_image_model import (
    DataTensors,
    Evaluation,
    TwoImageModel,
    evaluate,
    make_model,
    to_tensors,
    two_task_loss,
)
from moe_search.problems import PermutationProblem
from moe_search.solvers import Enumeration, MaxRuntime, Result
from moe_search.solvers.engine.result import relative_gap
from moe_search.training import Lowering, SearchRecord
from moe_search.training.search.permutation_search import OnSearch

MOST_SECONDS = 60.0
ROUNDING = 1e-12

OnTick = Callable[[str], None]
"""Told what was done, after every epoch of a run and every problem solved to optimality; from any thread."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingRun(StepRun):
    """What came of one run, its validation loss taken before the first step and after every epoch.

    Attributes
    ----------
    gate : str
        With a plus if it searched.
    seed : int
    test : Evaluation
        On the test canvases, of the model of the best epoch.
    """

    gate: str
    seed: int
    test: Evaluation

    @property
    def best_epoch(self) -> int:
        """The epoch where the validation loss was least."""
        return self.losses.index(min(self.losses))

    @property
    def search_share(self) -> float:
        """Searching, verification included, as a share of the time of training, evaluation apart."""
        return self.seconds_searching / self.seconds


@dataclass(frozen=True, eq=False)
class Intact:
    """A model of specialists before its map was scrambled."""

    gate: str
    seed: int
    validation_loss: float
    expert_map: NDArray[np.int64]


@dataclass(frozen=True)
class ComparedSearch:
    """A search with the optimum of its problem.

    Attributes
    ----------
    gate, seed
        The records of the run that searched, the gate with its plus.
    record : SearchRecord
    optimum : float
        Least value over all maps, by enumeration.
    gap : float
        ``(found - optimum) / found``, 0 at the optimum.
    """

    gate: str
    seed: int
    record: SearchRecord
    optimum: float
    gap: float


@dataclass(frozen=True)
class ScenarioResult:
    """All that came of a scenario.

    Attributes
    ----------
    schedule : SearchSchedule
        When the gates with a plus search.
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
    """What a scenario is run with; the executor computes the exact optima beside the training."""

    settings: DemoSettings
    device: torch.device
    executor: Executor
    on_tick: OnTick

    def train_from_scratch(self) -> ScenarioResult:
        """Train every gate from fresh weights, and the sparse ones again with search."""
        return self._run(self.settings.from_scratch, self.settings.learning_rate, scrambled=False)

    def train_from_bad_initialization(self) -> ScenarioResult:
        """Train specialists and a gate that fits them, scramble the gate's map, then go on with all weights."""
        return self._run(self.settings.bad_initialization, self.settings.tuning_learning_rate, scrambled=True)

    def _run(self, schedule: SearchSchedule, learning_rate: float, scrambled: bool) -> ScenarioResult:
        """Train models from the same weights on the same batches, with and without search where the gate is sparse."""
        runs: list[TrainingRun] = []
        searches: list[Future[ComparedSearch]] = []
        intact: list[Intact] = []
        for seed in range(self.settings.seeds):
            data = load_data(self.settings, seed, self.device)
            for gate in SHOWN:
                model = make_model(gate, self.settings, seed).to(self.device)
                if scrambled:
                    intact.append(self._scramble_specialists(model, gate, data, seed))
                for name in (gate, f"{gate}+") if gate in SEARCHED else (gate,):
                    on_epoch = partial(self.on_tick, f"{name}, seed {seed}")
                    on_search = partial(self._compare, searches, name, seed)
                    chosen = copy.deepcopy(model)
                    run = train(chosen, name, data, self.settings, learning_rate, seed, schedule, on_epoch, on_search)
                    runs.append(run)
        return ScenarioResult(schedule, tuple(runs), tuple(each.result() for each in searches), tuple(intact))

    def _scramble_specialists(self, model: TwoImageModel, gate: str, data: DataTensors, seed: int) -> Intact:
        """Make a model one of specialists under a scrambled map, and return what it was before the scrambling."""
        parts = parts_of(model, data.train.inputs, seed)
        on_epoch = partial(self.on_tick, f"{gate}, specialists, seed {seed}")
        train_specialists(model, data.train, parts, self.settings, seed, on_epoch)
        expert_map = model.moe.gate.expert_map
        intact = Intact(gate, seed, evaluate(model, data.validation).loss, expert_map.experts[0].cpu().numpy().copy())
        expert_map.scramble(torch.Generator().manual_seed(seed))
        return intact

    def _compare(
        self,
        searches: list[Future[ComparedSearch]],
        gate: str,
        seed: int,
        record: SearchRecord,
        lowering: Lowering,
        result: Result,
    ) -> None:
        future = self.executor.submit(compare_with_optimum, gate, seed, record, lowering, result)
        future.add_done_callback(lambda _: self.on_tick("exact optima of the searches"))
        searches.append(future)


def train(
    model: TwoImageModel,
    gate: str,
    data: DataTensors,
    settings: DemoSettings,
    learning_rate: float,
    seed: int,
    schedule: SearchSchedule,
    on_epoch: Callable[[], None] | None = None,
    on_search: OnSearch | None = None,
) -> TrainingRun:
    """Train a model in place, on the device of the data; it searches if the name of its gate has a plus.

    The seed decides the order of the samples and the searches: runs of one seed see the same batches. `on_epoch`
    is called after every epoch, `on_search` as by `PermutationSearch`.
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
        search="search" if gate.endswith("+") else "none",
        schedule=schedule,
        seed=seed,
        evaluated=tuple(range(0, settings.steps + 1, settings.steps_per_epoch)),
        on_step=on_step,
        on_search=on_search,
    )
    model.load_state_dict(run.best)
    return TrainingRun(**vars(run), gate=gate, seed=seed, test=evaluate(model, data.test))


def count_ticks(settings: DemoSettings) -> int:
    """Return how often both scenarios together call `on_tick`."""
    schedules = (settings.from_scratch, settings.bad_initialization)
    searches = sum(schedule.count(settings.steps) for schedule in schedules) * len(SEARCHED)
    epochs = 2 * settings.epochs * (len(SHOWN) + len(SEARCHED)) + settings.pretraining_epochs * len(SHOWN)
    return settings.seeds * (searches + epochs)


def load_data(settings: DemoSettings, seed: int, device: torch.device) -> DataTensors:
    """Return the data of a seed, on a device."""
    data = load_two_digits(
        settings.num_train, settings.num_validation, settings.num_test, canvas=settings.canvas, seed=seed
    )
    return to_tensors(data, device)


def compare_with_optimum(
    gate: str, seed: int, record: SearchRecord, lowering: Lowering, result: Result
) -> ComparedSearch:
    """Try all maps of the problem that a search was given."""
    optimum = exact_value(lowering.problem)
    found = float(lowering.problem.value(result.permutation))
    gap = relative_gap(found, optimum)
    assert gap is not None
    # Below this both are the same map up to the rounding of sums taken in another order.
    return ComparedSearch(gate, seed, record, optimum, gap if gap > ROUNDING else 0.0)


def exact_value(problem: PermutationProblem) -> float:
    """Return the least value of a problem over all permutations, by trying each one within a minute."""
    # Not the solver that searched: Hungarian would vouch for itself.
    result = Enumeration().solve(problem, MaxRuntime(MOST_SECONDS))
    if result.status != "optimal":
        raise RuntimeError(f"the enumeration of a problem of size {problem.size} ended as {result.status}")
    return float(problem.value(result.permutation))
