"""Different pre-trained experts under a new gate that knows the parts of the data, but not who knows which part.

What one has who takes over n experts from elsewhere: the gate is made anew from the data, by clustering them, and its
clusters come in an order of their own.
"""

from __future__ import annotations

import copy
from functools import lru_cache

from torch import Tensor

from moe_search.bench.demo.model import NUM_EXPERTS, TwoDigitsModel, make_model
from moe_search.bench.demo.specialists import train_specialists
from moe_search.bench.demo.training_run import evaluate
from moe_search.bench.experiments.cluster_gate import ClusterGate
from moe_search.bench.experiments.experiment import Numbers
from moe_search.bench.experiments.new_gate import SEEDS_APART
from moe_search.bench.experiments.two_image_trials import WAY_BACK_GATES, TwoImageSettings, load, train_on, ways_back
from moe_search.bench.experiments.warm_gate import clusters_of, make_warm_gate
from moe_search.gates.gate import Gate

RESTARTS = 10
"""Of k-means, so that two clusterings of the same data are much alike."""


def run_trial(settings: TwoImageSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train specialists on clusters, put them under a gate made of clusters found anew, and train on."""
    trained, intact_loss = experts_of_clusters(settings, seed, gate)
    model = copy.deepcopy(trained)
    model.moe.gate = new_gate(settings, seed, gate)
    return train_on(model, settings, seed, search, intact_loss)


@lru_cache(maxsize=1)
def experts_of_clusters(settings: TwoImageSettings, seed: int, gate: str) -> tuple[TwoDigitsModel, float]:
    """Return specialists of clusters under the gate that was trained with them, and the validation loss.

    The last ones are kept for the trials that share them.
    """
    data = load(settings, seed)
    parts, centres = _clusters(settings, seed, seed)
    model = make_model("Hash" if gate == "Clusters" else gate, settings.model, seed)
    if gate == "Clusters":
        model.moe.gate = ClusterGate(centres, NUM_EXPERTS)
    train_specialists(model, data.train, parts, settings.model, seed, lambda: None)
    return model, evaluate(model, data.validation).loss


def new_gate(settings: TwoImageSettings, seed: int, gate: str) -> Gate:
    """Return a gate made of clusters found from another start, numbered in another order."""
    inputs = load(settings, seed).train.inputs
    parts, centres = _clusters(settings, seed, seed + SEEDS_APART)
    if gate == "Clusters":
        return ClusterGate(centres, NUM_EXPERTS)
    return make_warm_gate(gate, inputs, parts, settings.model, seed, seed + SEEDS_APART)


@lru_cache(maxsize=2)
def _clusters(settings: TwoImageSettings, seed: int, kmeans_seed: int) -> tuple[Tensor, Tensor]:
    return clusters_of(load(settings, seed).train.inputs, NUM_EXPERTS, kmeans_seed, RESTARTS)


EXPERIMENTS = ways_back(
    name="attached",
    title="Pre-trained specialists attached to a new gate",
    question=(
        "Experts are trained as specialists of k-means clusters. A new gate is made of clusters of the same data found "
        "from another start, in an order of their own (Clusters: by the nearest centre; the others trained alone to "
        "tell the clusters apart), and the experts are attached to it in the order they came. How many training steps "
        "does it take to get back to the validation loss under the old gate?"
    ),
    run_trial=run_trial,
    gates=("Clusters", *WAY_BACK_GATES[1:]),
)
