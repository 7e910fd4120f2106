"""Expert maps of all layers of a trained language model, scrambled or intact, and one pass of searches over them."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import moe_search as ms
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.pruning import BALANCED, EXPERIMENTS as PRUNING, PruningSettings, text, trained
from moe_search.solvers import MaxIterations
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.token_layers import give_map

STEPS = "training"
SEARCHES = {"search": "auto", "first order alone": "linear"}
SCRAMBLES = 5
"""Seeds that share a trained model."""


@dataclass(frozen=True)
class TokenMapSettings:
    """Sizes of a trial.

    Attributes
    ----------
    model : PruningSettings
        The texts and the model, and its training.
    steps, learning_rate
        Of the training that is to undo what scrambling did, with the batches of `model`.
    searched, verified : int
        Sequences of the training part that a pass is made on, and that its maps are tried on.
    iterations : int
        Of the solver, for every problem.
    swaps : int
        Maps that the forecast is compared by: of one, two, four or sixteen swaps.
    """

    model: PruningSettings = field(default_factory=PruningSettings)
    steps: int = 50
    learning_rate: float = 3e-3
    searched: int = 16
    verified: int = 16
    iterations: int = 1000
    swaps: int = 40


def recover(settings: TokenMapSettings, seed: int, gate: str, search: str) -> Numbers:
    """Scramble all maps of a trained model, and let a pass of searches or some steps of training undo it."""
    model = copy.deepcopy(trained(settings.model, seed // SCRAMBLES, BALANCED))
    layers = ms.moe_layers(model)
    generator = torch.Generator().manual_seed(seed)
    intact = test_loss(settings, model)
    warm_up(settings, seed // SCRAMBLES)
    for layer in layers:
        give_map(layer).scramble(generator)
    scrambled = test_loss(settings, model)
    before = time.process_time()
    if search == STEPS:
        train(settings, model, seed)
    else:
        one_pass(settings, model, seed, SEARCHES[search])
    seconds = time.process_time() - before
    after = test_loss(settings, model)
    return {
        "left": 100 * (after - intact) / (scrambled - intact),
        "cpu_seconds": seconds,
        "intact_loss": intact,
        "damage": scrambled - intact,
    }


@lru_cache(maxsize=1)
def warm_up(settings: TokenMapSettings, seed: int) -> None:
    """Load the kernels, which is on no clock: a model as it was trained is searched by all problems."""
    one_pass(settings, copy.deepcopy(trained(settings.model, seed, BALANCED)), seed, "auto")


def leave(settings: TokenMapSettings, seed: int, gate: str, search: str) -> Numbers:
    """Search the maps of an intact model, and compare forecasts of small changes with what they do."""
    model = copy.deepcopy(trained(settings.model, seed, BALANCED))
    before = test_loss(settings, model)
    one_pass(settings, model, seed, SEARCHES[search])
    after = test_loss(settings, model)
    correlations, ratios = [], []
    ids = drawn(settings, seed + 1, settings.searched)
    rng = np.random.default_rng([seed, 1])
    layers = ms.moe_layers(model)
    lowerings = ms.lower_tokens(model, layers, ids, ids, next_token_loss)
    for layer, lowering in zip(layers, lowerings, strict=True):
        expert_map = give_map(layer)
        kept, foretold, true = expert_map.experts.clone(), [], []
        for number in range(settings.swaps):
            permutation = lowering.initial.copy()
            for _ in range((1, 2, 4, 16)[number % 4]):
                pair = rng.choice(len(permutation), 2, replace=False)
                permutation[pair] = permutation[pair[::-1]]
            foretold.append(lowering.forecast(permutation))
            expert_map.assign_permutation(permutation)
            true.append(mean_loss(model, ids) - lowering.loss)
            expert_map.assign(kept)
        correlations.append(float(spearmanr(foretold, true).statistic))
        ratios.append(float(np.sum(foretold) / np.sum(true)))
    return {
        "change": after - before,
        "correlation": min(correlations),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
    }


def one_pass(settings: TokenMapSettings, model: Any, seed: int, problem: Any) -> None:
    """Search every layer once."""
    search = ms.PermutationSearch(
        model,
        ms.moe_layers(model),
        loss=next_token_loss,
        stop=MaxIterations(settings.iterations),
        seed=seed,
        problem=problem,
        chunk_size=4096,
    )
    searched = drawn(settings, 2 * seed, settings.searched)
    verified = drawn(settings, 2 * seed + 1, settings.verified)
    search.search_batches([(searched, searched)], verify=[(verified, verified)])


def train(settings: TokenMapSettings, model: Any, seed: int) -> None:
    """Train all parameters for some steps."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.95))
    for step in range(settings.steps):
        ids = drawn(settings, 10_000 * (seed + 1) + step, settings.model.batch_size)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the mean loss of the tokens that follow another."""
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def drawn(settings: TokenMapSettings, seed: int, count: int) -> Tensor:
    """Return some sequences of the training part."""
    data = torch.from_numpy(text(settings.model).train)
    return data[torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]]


def mean_loss(model: Any, ids: Tensor) -> float:
    """Return the mean loss of a token."""
    with frozen(model):
        return float(next_token_loss(model(ids, use_cache=False).logits, ids))


def test_loss(settings: TokenMapSettings, model: Any) -> float:
    """Return the mean loss on the test part."""
    batches = torch.split(torch.from_numpy(text(settings.model).test), 64)
    return sum(mean_loss(model, ids) * len(ids) for ids in batches) / sum(map(len, batches))


SMOKE = TokenMapSettings(PRUNING[0].smoke, steps=2, searched=12, verified=12, iterations=100, swaps=4)

EXPERIMENTS = (
    Experiment(
        name="token-maps",
        title="Scrambled maps of all layers of a trained language model",
        question=(
            "The experts of all layers of a trained OLMoE change places under routers that stay as they are. How much "
            "of the damage is left after {steps} steps of training, and after one pass of searches on {searched} "
            "sequences, by first order alone and as PermutationSearch has it, and what do they take? Five scrambles of "
            "each trained model."
        ),
        gates=("OLMoE",),
        searches=(STEPS, *SEARCHES),
        settings=TokenMapSettings(),
        smoke=SMOKE,
        run_trial=recover,
        measures=(
            Measure("left", "damage left, %", digits=2),
            Measure("cpu_seconds", "processor time, s", digits=2),
        ),
        seeds=10,
        curves=False,
        maps=False,
    ),
    Experiment(
        name="token-maps-intact",
        title="Intact maps of a trained language model",
        question=(
            "What does a pass of searches do to a trained OLMoE whose maps are as they were trained? And how well does "
            "the quadratic forecast, its scale measured by eight other maps, tell what {swaps} maps near them do to "
            "the loss: the lowest rank correlation of a layer, and the ratio of what is foretold to what comes?"
        ),
        gates=("OLMoE",),
        searches=tuple(SEARCHES),
        settings=TokenMapSettings(),
        smoke=SMOKE,
        run_trial=leave,
        measures=(
            Measure("change", "change of the test loss, nats", digits=4),
            Measure("correlation", "rank correlation", better="higher"),
            Measure("lowest_ratio", "forecast over truth, lowest of a layer", better="higher", digits=2),
            Measure("highest_ratio", "forecast over truth, highest of a layer", digits=2),
        ),
        seeds=3,
        curves=False,
        maps=False,
    ),
)
