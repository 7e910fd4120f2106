"""A Top-k gate whose samples crowd on few experts: maps under a load limit against a penalty on uneven use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_search.demo.model import EXPERTS_PER_SAMPLE, NUM_EXPERTS, TwoDigitsModel, make_model, two_task_loss
from moe_search.demo.settings import SearchSchedule
from moe_search.demo.training_run import evaluate
from moe_search.experiments.experiment import Experiment, Measure, Numbers
from moe_search.experiments.step_training import endless_batches, train_by_steps
from moe_search.experiments.two_image_trials import CURVE, DIGITS, MAPS, TwoImageSettings, load, smoke
from moe_search.experiments.warm_gate import clusters_of, warm_up
from moe_search.gates.top_k import TopK
from moe_search.problems.load_limited import LoadLimited
from moe_search.solvers.result import Result
from moe_search.training.balance import load_balancing_loss
from moe_search.training.batch import Batch
from moe_search.training.lowering import Lowering
from moe_search.training.permutation_search import OnSearch
from moe_search.training.search_record import SearchRecord

SEARCHES = ("none", "penalty", "search", "enforced")
"""The gate alone; with `load_balancing_loss`; with `PermutationSearch(load_limit=...)`; with maps that keep the limit
taken also where they cost some loss, as long as the present one breaks it."""


@dataclass(frozen=True)
class LoadLimitSettings:
    """Sizes of a trial.

    Attributes
    ----------
    images : TwoImageSettings
        Its data, model, steps, learning rate and schedule.
    slots_per_expert : int
        More than one: a map can move load only where an expert has several slots.
    crowded : int
        Experts whose slots the gate begins with: one k-means cluster of the images a slot.
    warming_steps : int
        That the gate alone is trained to send the clusters there.
    load_limit : float
        In multiples of the mean load.
    penalty_weight : float
        Of the penalty; 0.01 in Switch transformers.
    """

    images: TwoImageSettings
    slots_per_expert: int = 8
    crowded: int = 3
    warming_steps: int = 200
    load_limit: float = 1.25
    penalty_weight: float = 0.01


def run_trial(settings: LoadLimitSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train from fresh weights and a gate that begins with few experts for all samples.

    Raises
    ------
    ValueError
        If the gate or the search is unknown.
    """
    if gate != "Top-k":
        raise ValueError(f"gate must be Top-k, got {gate!r}")
    if search not in SEARCHES:
        raise ValueError(f"search must be one of {', '.join(SEARCHES)}, got {search!r}")
    images = settings.images
    data = load(images, seed)
    model = crowded_model(settings, seed)
    first_loads = loads_of_experts(model, data.test.inputs)
    run = train_by_steps(
        model,
        model.moe,
        two_task_loss,
        endless_batches(Batch(data.train.inputs, data.train.targets), images.model.batch_size, seed),
        lambda: evaluate(model, data.validation).loss,
        steps=images.steps,
        learning_rate=images.learning_rate,
        search="search" if search in ("search", "enforced") else "none",
        schedule=images.schedule,
        seed=seed,
        penalty=_penalty(model, settings.penalty_weight) if search == "penalty" else None,
        load_limit=settings.load_limit,
        on_search=keep_limit(model) if search == "enforced" else None,
    )
    model.load_state_dict(run.best)
    loads = loads_of_experts(model, data.test.inputs)
    test = evaluate(model, data.test)
    return run.numbers() | {
        "test_loss": test.loss,
        "accuracy": sum(test.accuracies) / len(test.accuracies),
        "first_highest_load": _highest(first_loads),
        "highest_load": _highest(loads),
        "dead_experts": float((loads == 0).sum()),
        "slots_moved": float((run.first_map != run.last_map).mean()),
    }


def crowded_model(settings: LoadLimitSettings, seed: int) -> TwoDigitsModel:
    """Return a fresh model whose gate sends the samples to the slots of its first experts."""
    model = make_model("Top-k", settings.images.model, seed)
    pixels = settings.images.model.canvas**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = TopK(pixels, NUM_EXPERTS, EXPERTS_PER_SAMPLE, settings.slots_per_expert * NUM_EXPERTS)
    inputs = load(settings.images, seed).train.inputs
    warm_up(
        gate,
        inputs,
        clusters_of(inputs, settings.crowded * settings.slots_per_expert, seed)[0],
        steps=settings.warming_steps,
        learning_rate=settings.images.model.learning_rate,
        batch_size=settings.images.model.batch_size,
        seed=seed,
    )
    model.moe.gate = gate
    return model


def keep_limit(model: TwoDigitsModel) -> OnSearch:
    """Return what takes the map of a search, better or not, if the present map breaks the limit where it searched."""

    def take(record: SearchRecord, lowering: Lowering, result: Result) -> None:
        expert_map = model.moe.gate.expert_map
        problem = lowering.problem
        assert isinstance(problem, LoadLimited)
        if record.outcome != "committed" and not problem.feasible(expert_map.permutation()):
            expert_map.assign_permutation(result.permutation)

    return take


@torch.no_grad()
def loads_of_experts(model: TwoDigitsModel, inputs: Tensor) -> Tensor:
    """Return the pairs of a sample and a slot with weight, by expert, shape [n]."""
    model.eval()
    gate = model.moe.gate
    slots = (gate(inputs).weights > 0).sum((0, 1))
    return torch.zeros(gate.num_experts, dtype=slots.dtype).index_add_(0, gate.expert_map.experts[0], slots)


def _penalty(model: TwoDigitsModel, weight: float) -> Callable[[], Tensor]:
    def penalty() -> Tensor:
        assert model.moe.routing is not None
        return weight * load_balancing_loss(model.moe.routing, model.moe.gate.expert_map)

    return penalty


def _highest(loads: Tensor) -> float:
    return float(loads.max() / loads.double().mean())


EXPERIMENTS = (
    Experiment(
        name="load-limit",
        title="A crowded Top-k gate under a load limit, digits",
        question=(
            "A Top-k gate begins with all samples on the slots of three experts out of eight. Do maps under a load "
            "limit of 1.25 times the mean, without any auxiliary loss, give the same loss or a better one, and how "
            "evenly are the experts used? Penalty: the auxiliary loss of Switch transformers, weight 0.01. Search: "
            "PermutationSearch(load_limit=1.25), which takes a map only if it lowers the loss. Enforced: its maps are "
            "also taken where they raise it, while the present map breaks the limit."
        ),
        gates=("Top-k",),
        searches=SEARCHES,
        seeds=10,
        settings=LoadLimitSettings(
            replace(
                DIGITS,
                # Experts so small that three cannot do the work of eight.
                model=replace(DIGITS.model, hidden_features=6),
                steps=600,
                learning_rate=3e-3,
                schedule=SearchSchedule(period=5, until=300, batches=4, iterations=2000),
            )
        ),
        smoke=LoadLimitSettings(smoke("digits")),
        run_trial=run_trial,
        measures=(
            Measure("test_loss", "test loss"),
            Measure("accuracy", "test accuracy", better="higher"),
            Measure("highest_load", "highest load / mean", digits=2),
            Measure("dead_experts", "dead experts", digits=1),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
        curve=CURVE,
        maps=MAPS,
    ),
)
