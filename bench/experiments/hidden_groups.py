"""Static gates over many tasks, some of which are alike and should share an expert."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.datasets.hidden_groups import make_hidden_groups
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.gates import GATES, TaskGate, make_task_gate
from moe_search.bench.experiments.pretraining import warm_up
from moe_search.bench.experiments.training import SearchSchedule, endless_batches, train_by_steps
from moe_search.checks import require_choice
from moe_search.gates import Gate
from moe_search.layers import MixtureOfExperts, StackedExperts
from moe_search.training.lowering.batch import Batch

SEARCHES = ("none", "own slots", "sinkhorn", "search")
"""The gate alone from fresh weights; alone, from a start that gives every task a slot of its own; the published
relaxation and ours, from that start."""

CERTAIN = 1 - 1e-9
SCHEDULE = SearchSchedule(period=10, until=300, batches=4, iterations=2000)


@dataclass(frozen=True)
class HiddenGroupsSettings:
    """Sizes of a trial.

    Attributes
    ----------
    tasks, groups : int
        There are as many experts as groups.
    samples_per_task, hidden_features : int
        Samples of a task in each split, and hidden units of an expert.
    slots_per_expert : int
        Slots of the gates that start from fresh weights; the slots of all others are the tasks.
    warming_steps : int
        Steps in which a gate alone is trained to give every task a slot of its own.
    """

    tasks: int = 32
    groups: int = 8
    samples_per_task: int = 100
    hidden_features: int = 16
    slots_per_expert: int = 2
    warming_steps: int = 100
    warming_rate: float = 3e-2
    batch_size: int = 256
    steps: int = 400
    learning_rate: float = 1e-2
    schedule: SearchSchedule = SCHEDULE


class GroupedModel(nn.Module):
    """A mixture of experts with one output, which is the answer."""

    def __init__(self, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.moe = moe

    def forward(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """Return the answers, shape [B, 1], of samples of the tasks `ids`."""
        return self.moe(inputs, ids)


def start_gate(name: str, settings: HiddenGroupsSettings, search: str, seed: int) -> Gate:
    """Return the gate that a trial starts with, drawn from torch's global generator.

    Fresh for the search ``"none"``; for the others every task has a slot of its own, so that the map says which tasks
    share an expert, and to find that out is left to the search.
    """
    tasks, n = settings.tasks, settings.groups
    if search == "none":
        return make_task_gate(name, tasks, n, settings.slots_per_expert * n)
    gate = make_task_gate(name, tasks, n, tasks)
    if isinstance(gate, TaskGate):
        warm_up(
            gate.gate,
            torch.eye(tasks),
            torch.arange(tasks),
            steps=settings.warming_steps,
            learning_rate=settings.warming_rate,
            batch_size=2 * tasks,
            seed=seed,
        )
    return gate


@lru_cache(maxsize=1)
def load(settings: HiddenGroupsSettings, seed: int) -> tuple[list[Batch], NDArray[np.int64]]:
    """Return the training, validation and test data of a seed, and the group of every task; the last ones are kept."""
    splits = [
        make_hidden_groups(settings.tasks, settings.groups, settings.samples_per_task, seed=seed, split=split)
        for split in range(3)
    ]
    as_tensor = torch.from_numpy
    batches = [
        Batch(as_tensor(split.inputs), as_tensor(split.targets[:, None]), as_tensor(split.tasks)) for split in splits
    ]
    return batches, splits[0].groups


def run_trial(settings: HiddenGroupsSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train fresh experts under the gate that the search starts with; the map starts scrambled."""
    require_choice("search", search, SEARCHES)
    (train, validation, test), groups = load(settings, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = StackedExperts(settings.groups, train.inputs.shape[1], 1, settings.hidden_features)
        model = GroupedModel(MixtureOfExperts(experts, start_gate(gate, settings, search, seed)))
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    run = train_by_steps(
        model,
        model.moe,
        functional.mse_loss,
        endless_batches(train, settings.batch_size, seed),
        lambda: _loss(model, validation),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        search=search if search in ("sinkhorn", "search") else "none",
        schedule=settings.schedule,
        seed=seed,
    )
    model.load_state_dict(run.best)
    agreement = adjusted_rand_score(groups, experts_of_tasks(model, settings.tasks).numpy())
    return run.numbers() | {
        "test_loss": _loss(model, test),
        "agreement": float(agreement),
        "recovered": float(agreement > CERTAIN),
    }


@torch.no_grad()
def experts_of_tasks(model: GroupedModel, tasks: int) -> Tensor:
    """Return the expert with the largest weight in every task, shape [tasks]."""
    model.eval()
    gate = model.moe.gate
    experts = model.moe.experts
    assert isinstance(experts, StackedExperts)
    weights = gate(torch.zeros(tasks, experts.in_features), torch.arange(tasks)).weights
    return gate.expert_map(weights).argmax(1)


@torch.no_grad()
def _loss(model: GroupedModel, data: Batch) -> float:
    model.eval()
    assert data.ids is not None
    return float(functional.mse_loss(model(data.inputs, ids=data.ids), data.targets))


EXPERIMENTS = (
    Experiment(
        name="hidden-groups",
        title="Static gates over tasks in hidden groups",
        question=(
            "Tasks of a hidden group have the same answer, but for a small part of their own, and there are as many "
            "experts as groups. Does the gate give each group an expert of its own (recovered), and how well do the "
            "experts of tasks agree with the groups (adjusted Rand index)? The gates see the task alone. None: the "
            "gate from fresh weights, two slots an expert. The others start with a slot for every task, an equal "
            "number of them for every expert, and which ones an expert has is drawn by chance: own slots leaves that "
            "as it is, Sinkhorn and search look for better. Hash is nothing but such a table from tasks to experts."
        ),
        gates=GATES,
        searches=SEARCHES,
        settings=HiddenGroupsSettings(),
        smoke=HiddenGroupsSettings(
            tasks=8,
            groups=2,
            samples_per_task=20,
            hidden_features=4,
            warming_steps=5,
            batch_size=32,
            steps=12,
            schedule=SearchSchedule(period=4, until=8, batches=2, iterations=100),
        ),
        run_trial=run_trial,
        measures=(
            Measure("recovered", "recovered", better="higher", digits=2),
            Measure("agreement", "agreement", better="higher"),
            Measure("test_loss", "test loss", digits=4),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
    ),
)
