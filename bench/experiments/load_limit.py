"""A Top-k gate whose samples crowd on few experts: maps under a load limit against a penalty on uneven use."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.pretraining import clusters_of, make_warm_gate
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.bench.experiments.two_image_model import NUM_EXPERTS, TwoImageModel, make_model
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    TwoImageSettings,
    load,
    shrunk,
    train_on_images,
)
from moe_search.checks import require_choice
from moe_search.solvers import Result
from moe_search.training import LossFreeBalancing, Lowering, SearchRecord, load_balancing_loss

GATE = "Top-k"
SEARCHES = ("none", "penalty", "slow", "biases", "maps", "search")
"""The gate alone; with `load_balancing_loss`; a slow gate alone, with `LossFreeBalancing`, with
`PermutationSearch(load_limit=...)` and with both."""


@dataclass(frozen=True)
class LoadLimitSettings:
    """Sizes of a trial.

    Attributes
    ----------
    slots_per_expert : int
        There are many, since a map can move load only slot by slot.
    gate_rate : float
        Learning rate of a slow gate. At the rate of all else, the gate crowds samples faster than biases spread them.
    crowded : int
        Experts whose slots the gate begins with: one k-means cluster of the images a slot.
    warming_steps : int
        Steps in which the gate alone is trained to send the clusters there.
    load_limit : float
        What a search asks for, in multiples of the mean load.
    bias_rate, expert_limit, slot_limit : float
        What `LossFreeBalancing` is given.
    penalty_weight : float
        It is 0.01 in Switch transformers.
    """

    images: TwoImageSettings
    slots_per_expert: int = 32
    gate_rate: float = 1e-3
    crowded: int = 3
    warming_steps: int = 200
    load_limit: float = 1.1
    bias_rate: float = 0.03
    expert_limit: float = 1.1
    slot_limit: float = 0.6
    penalty_weight: float = 0.01


def run_trial(settings: LoadLimitSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train from fresh weights and a gate that begins with few experts for all samples."""
    require_choice("gate", gate, (GATE,))
    require_choice("search", search, SEARCHES)
    images = settings.images
    data = load(images, seed)
    model = crowded_model(settings, seed)
    first_loads = loads_of_experts(model, data.test.inputs)
    limits: list[float] = []
    balancing = LossFreeBalancing(
        model.moe, rate=settings.bias_rate, expert_limit=settings.expert_limit, slot_limit=settings.slot_limit
    )

    def note_limit(record: SearchRecord, lowering: Lowering, result: Result) -> None:
        assert isinstance(record.load_limit, float)
        limits.append(record.load_limit)

    def penalty() -> Tensor:
        assert model.moe.routing is not None
        return settings.penalty_weight * load_balancing_loss(model.moe.routing, model.moe.gate.expert_map)

    run, numbers = train_on_images(
        model,
        data,
        images.model.batch_size,
        seed,
        steps=images.steps,
        learning_rate=images.learning_rate,
        search="search" if search in ("maps", "search") else "none",
        schedule=images.schedule,
        penalty=penalty if search == "penalty" else None,
        load_limit=settings.load_limit,
        on_search=note_limit,
        on_step=(lambda _: balancing.step()) if search in ("biases", "search") else None,
        gate_rate=None if search in ("none", "penalty") else settings.gate_rate,
    )
    loads = loads_of_experts(model, data.test.inputs)
    return numbers | {
        "first_highest_load": _highest(first_loads),
        "highest_load": _highest(loads),
        "training_load": _highest(loads_of_experts(model, data.train.inputs)),
        "raised_limits": float(sum(limit > settings.load_limit * (1 + 1e-9) for limit in limits)),
        "dead_experts": float((loads == 0).sum()),
        "slots_moved": float((run.first_map != run.last_map).mean()),
    }


def crowded_model(settings: LoadLimitSettings, seed: int) -> TwoImageModel:
    """Return a fresh model whose gate sends the samples to the slots of its first experts."""
    model = make_model("Top-k", settings.images.model, seed)
    inputs = load(settings.images, seed).train.inputs
    model.moe.gate = make_warm_gate(
        "Top-k",
        inputs,
        clusters_of(inputs, settings.crowded * settings.slots_per_expert, seed)[0],
        settings.images.model,
        seed,
        seed,
        steps=settings.warming_steps,
        num_slots=settings.slots_per_expert * NUM_EXPERTS,
    )
    return model


@torch.no_grad()
def loads_of_experts(model: TwoImageModel, inputs: Tensor) -> Tensor:
    """Return the pairs of a sample and a slot with weight, by expert, shape [n]."""
    model.eval()
    gate = model.moe.gate
    slots = (gate(inputs).weights > 0).sum((0, 1))
    return torch.zeros(gate.num_experts, dtype=slots.dtype).index_add_(0, gate.expert_map.experts[0], slots)


def _highest(loads: Tensor) -> float:
    return float(loads.max() / loads.double().mean())


EXPERIMENTS = (
    Experiment(
        name="load-limit",
        title="A crowded Top-k gate under a load limit, digits",
        question=(
            "A Top-k gate begins with all samples on the slots of three experts out of eight. Do maps under a load "
            "limit, without any auxiliary loss, give the same loss or a better one at a load of 1.25 times the mean? "
            "Penalty: the auxiliary loss of Switch transformers, weight {penalty_weight}. Slow: a gate that learns "
            "three times more slowly than all else; such a gate with LossFreeBalancing (biases), with "
            "PermutationSearch(load_limit={load_limit}) in the first {images[schedule][until]} steps (maps), and with "
            "both (search)."
        ),
        gates=(GATE,),
        searches=SEARCHES,
        settings=LoadLimitSettings(
            replace(
                DIGITS,
                # Experts so small that three cannot do the work of eight.
                model=replace(DIGITS.model, hidden_features=6),
                steps=1000,
                learning_rate=3e-3,
                # Many samples: the loads of few break a limit by chance, and each time the map must change.
                schedule=SearchSchedule(period=20, until=200, batches=20, iterations=500),
            )
        ),
        smoke=LoadLimitSettings(shrunk(DIGITS), slots_per_expert=8),
        run_trial=run_trial,
        measures=(
            Measure("test_loss", "test loss"),
            Measure("accuracy", "test accuracy", better="higher"),
            Measure("training_load", "highest load / mean, training samples", digits=2),
            Measure("highest_load", "highest load / mean, test samples", digits=2),
            Measure("dead_experts", "dead experts", digits=1),
            Measure("training_seconds", "seconds of training", digits=1),
        ),
    ),
)
