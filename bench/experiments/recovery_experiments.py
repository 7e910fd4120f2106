"""Trained specialists put into disorder: the steps back under a scrambled map, a fresh gate, or a gate made elsewhere.

Attached experts are what one has who takes over n experts from others: the gate is made anew from the data, by
clustering them, so that it knows the parts of the data, but not who knows which part; its clusters come in an order of
their own.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from moe_search.bench.experiments.experiment import Numbers
from moe_search.bench.experiments.gates import TRAINED, ClusterGate
from moe_search.bench.experiments.pretraining import clusters_of, make_warm_gate, parts_of, train_specialists
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.bench.experiments.two_image_model import NUM_EXPERTS, TwoImageModel, evaluate, make_model
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    FASHION,
    SEEDS_APART,
    TwoImageSettings,
    load,
    recovery_experiments,
    train_on,
)

SHORT = SearchSchedule(period=2, until=10, iterations=2000)
"""Under a scrambled map, the first search finds the right one, and those that follow it only take time."""

RESTARTS = 10
"""Starts of k-means, so that two clusterings of the same data are much alike."""

CLUSTERS = "Clusters"
"""A gate with nothing to learn: a sample goes to the slot of the nearest centre."""


def specialists(
    settings: TwoImageSettings, seed: int, gate: str, of_clusters: bool = False
) -> tuple[TwoImageModel, float]:
    """Return a model of specialists under a gate that was trained to fit them, and its validation loss.

    Their parts are those of `parts_of`, or the clusters that attached experts are of.
    """
    model, intact_loss = _trained_specialists(settings, seed, gate, of_clusters)
    return copy.deepcopy(model), intact_loss


@lru_cache(maxsize=1)
def _trained_specialists(
    settings: TwoImageSettings, seed: int, gate: str, of_clusters: bool
) -> tuple[TwoImageModel, float]:
    """Return what the trials of a seed and gate begin with; the last one is kept for the trials that share it."""
    data = load(settings, seed)
    model = make_model("Hash" if gate == CLUSTERS else gate, settings.model, seed)
    if of_clusters:
        parts, centres = _clusters(settings, seed, seed)
        if gate == CLUSTERS:
            model.moe.gate = ClusterGate(centres, NUM_EXPERTS)
    else:
        parts = parts_of(model, data.train.inputs, seed)
    train_specialists(model, data.train, parts, settings.model, seed)
    return model, evaluate(model, data.validation).loss


def scramble(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists, scramble the map of their gate, and train on."""
    model, intact_loss = specialists(settings, seed, gate)
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    return train_on(model, settings, seed, search, intact_loss)


def replace_gate(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists, put a fresh gate of the same kind in place of theirs, and train on."""
    model, intact_loss = specialists(settings, seed, gate)
    model.moe.gate = make_model(gate, settings.model, seed + SEEDS_APART).moe.gate
    return train_on(model, settings, seed, search, intact_loss)


def attach(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists on clusters, put them under a gate made of clusters found anew, and train on."""
    model, intact_loss = specialists(settings, seed, gate, of_clusters=True)
    # The clusters are found from another start, and numbered in another order.
    parts, centres = _clusters(settings, seed, seed + SEEDS_APART)
    if gate == CLUSTERS:
        model.moe.gate = ClusterGate(centres, NUM_EXPERTS)
    else:
        inputs = load(settings, seed).train.inputs
        model.moe.gate = make_warm_gate(gate, inputs, parts, settings.model, seed, seed + SEEDS_APART)
    return train_on(model, settings, seed, search, intact_loss)


@lru_cache(maxsize=2)
def _clusters(settings: TwoImageSettings, seed: int, kmeans_seed: int) -> tuple[Tensor, Tensor]:
    return clusters_of(load(settings, seed).train.inputs, NUM_EXPERTS, kmeans_seed, RESTARTS)


EXPERIMENTS = (
    *recovery_experiments(
        name="scrambled",
        title="A scrambled map under trained specialists",
        question=(
            "Experts are trained as specialists with a gate that fits them; then the gate's map is scrambled. How many "
            "training steps does it take to get back to the validation loss before the scrambling?"
        ),
        run_trial=scramble,
        sizes=tuple(replace(sizes, schedule=SHORT) for sizes in (DIGITS, FASHION)),
    ),
    *recovery_experiments(
        name="new-gate",
        title="Pre-trained specialists under a new gate",
        question=(
            "Experts are trained as specialists; then their gate is replaced by a fresh one of the same kind. How many "
            "training steps does it take to get back to the validation loss under the old gate?"
        ),
        run_trial=replace_gate,
    ),
    *recovery_experiments(
        name="attached",
        title="Pre-trained specialists attached to a new gate",
        question=(
            "Experts are trained as specialists of k-means clusters. A new gate is made of clusters of the same data "
            "found from another start, in an order of their own (Clusters: by the nearest centre; the others trained "
            "alone to tell the clusters apart), and the experts are attached to it in the order they came. How many "
            "training steps does it take to get back to the validation loss under the old gate?"
        ),
        run_trial=attach,
        gates=(CLUSTERS, *TRAINED),
        sizes=(DIGITS,),
    ),
)
