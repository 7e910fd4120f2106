"""Experts of a trained language model are dropped: the best of several criteria against each of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_search.bench.datasets.library_text import LibraryText, load_library_text
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.checks import require_choice
from moe_search.huggingface import PruningPlan, moe_layers, prune_experts
from moe_search.huggingface.calibration import SequenceLosses, checked_batches, record_rows, sequence_losses
from moe_search.huggingface.pruning import CRITERIA, SCORES, expert_scores, inner_products
from moe_search.huggingface.routing_rule import routing_rule
from moe_search.huggingface.selection import kept_only
from moe_search.problems import ExpertSubset
from moe_search.solvers import MaxRuntime, SubsetEnumeration, SubsetSearch

AUTO = "auto"
BALANCED, SKEWED = 0.01, 0.0
KEPT = {
    "half": (0.5, BALANCED),
    "a quarter": (0.25, BALANCED),
    "half, skewed": (0.5, SKEWED),
    "a quarter, skewed": (0.25, SKEWED),
}
"""The part of the experts that stay, and the weight of the loss that balanced them in training."""


@dataclass(frozen=True)
class PruningSettings:
    """Sizes of a trial.

    Attributes
    ----------
    tokens, vocabulary, characters, sequences : int
        As in `load_library_text`.
    layers, width, expert_width, experts, top_k : int
        Of an OLMoE, whose softmax comes before the choice of experts.
    steps, batch_size : int
        Of its training.
    calibration : int
        Sequences, of the test part, by which experts are chosen; a third of them decides on the criterion. All others
        are fresh.
    rows : int
        As in `prune_experts`.
    """

    tokens: int = 64
    vocabulary: int = 1024
    characters: int = 400_000
    sequences: int = 2400
    layers: int = 4
    width: int = 64
    expert_width: int = 48
    experts: int = 32
    top_k: int = 4
    steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 3e-3
    calibration: int = 960
    rows: int = 2048


def run_trial(settings: PruningSettings, seed: int, gate: str, search: str) -> Numbers:
    """Prune a trained model by one criterion, and measure on fresh texts what that costs."""
    require_choice("gate", gate, tuple(KEPT))
    require_choice("search", search, (AUTO, *CRITERIA))
    keep, balance = KEPT[gate]
    model = trained(settings, seed, balance)
    plan = planned(settings, seed, keep, balance)
    candidate = plan.best if search == AUTO else next(each for each in plan.candidates if each.criterion == search)
    with kept_only(moe_layers(model), [np.array(each) for each in candidate.kept]):
        pruned = sequence_losses(model, checked_batches("fresh", fresh(settings)))
    increase, error = intact(settings, seed, balance).increase(pruned)
    ratio = candidate.forecast / increase
    return {
        "increase": increase,
        "increase_error": error,
        "forecast": candidate.forecast,
        "forecast_off": max(ratio, 1 / ratio),
        "intact_loss": intact(settings, seed, balance).mean,
    }


@lru_cache(maxsize=1)
def text(settings: PruningSettings) -> LibraryText:
    """Return the texts, the same in all trials."""
    return load_library_text(
        tokens=settings.tokens,
        vocabulary=settings.vocabulary,
        characters=settings.characters,
        sequences=settings.sequences,
        test_share=0.2,
    )


def fresh(settings: PruningSettings) -> list[Tensor]:
    """Return the batches that neither training nor pruning has seen."""
    return list(torch.split(torch.from_numpy(text(settings).test[settings.calibration :]), settings.batch_size))


@lru_cache(maxsize=2)
def trained(settings: PruningSettings, seed: int, balance: float) -> Any:
    """Return a trained model."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    data = torch.from_numpy(text(settings).train)
    config = OlmoeConfig(
        vocab_size=text(settings).vocabulary,
        hidden_size=settings.width,
        intermediate_size=settings.expert_width,
        num_hidden_layers=settings.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=settings.experts,
        num_experts_per_tok=settings.top_k,
        max_position_embeddings=settings.tokens,
        router_aux_loss_coef=balance,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OlmoeForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
        )
        for _ in range(settings.steps):
            ids = data[torch.randint(len(data), (settings.batch_size,))]
            model(input_ids=ids, labels=ids, use_cache=False, output_router_logits=True).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            rate.step()
    model.train(False)
    return model


@lru_cache(maxsize=2)
def intact(settings: PruningSettings, seed: int, balance: float) -> SequenceLosses:
    """Return the losses of the intact model on the fresh texts."""
    return sequence_losses(trained(settings, seed, balance), checked_batches("fresh", fresh(settings)))


@lru_cache(maxsize=len(KEPT))
def planned(settings: PruningSettings, seed: int, keep: float, balance: float) -> PruningPlan:
    """Return what all criteria propose."""
    batches = torch.split(torch.from_numpy(text(settings).test[: settings.calibration]), settings.batch_size)
    return prune_experts(trained(settings, seed, balance), batches, keep, rows=settings.rows, seed=seed)


LAYERS = tuple(f"layer {number}" for number in range(4))
SEARCHES = ("search", "greedy", *SCORES)


def run_subset_trial(settings: PruningSettings, seed: int, gate: str, search: str) -> Numbers:
    """Keep half of some random experts of a layer, which are a layer of their own, and enumerate what could be kept."""
    require_choice("gate", gate, LAYERS)
    require_choice("search", search, SEARCHES)
    problem, scores, optimum = enumerated(settings, seed, LAYERS.index(gate))
    if search in SCORES:
        value = problem.value(problem.best_by(scores[search]))
    else:
        value = SubsetSearch(exchanges=search == "search").solve(problem, MaxRuntime(math.inf)).value
    return {
        "excess": 100 * (value / optimum - 1),
        "optimal": float(value <= optimum * (1 + 1e-9)),
        "optimum": optimum / problem.ordinary_value(),
        "subsets": problem.num_subsets,
    }


@lru_cache(maxsize=1)
def enumerated(settings: PruningSettings, seed: int, number: int) -> tuple[ExpertSubset, dict[str, Any], float]:
    """Return the problem of half of a layer's experts, their scores, and the least value of all subsets."""
    model = trained(settings, seed, BALANCED)
    batches = checked_batches("batches", torch.split(torch.from_numpy(text(settings).test), settings.batch_size))
    layer = moe_layers(model)[number]
    (met,), _ = record_rows(model, batches, [layer], settings.rows, seed)
    gram, products = inner_products(layer, met)
    half, n = settings.experts // 2, settings.experts
    rule = routing_rule(layer, met, half)
    assert rule is not None
    whole = rule.problem(gram, products, met.outputs.double().square().sum(1).numpy(), half, layer.top_k)
    some = np.sort(np.random.default_rng([seed, number]).choice(n, half, replace=False))
    weights = whole.weights(some)
    given = np.einsum("tef,tf->te", whole.gram, weights)
    problem = ExpertSubset(
        whole.scores[:, some],
        whole.strengths[:, some],
        whole.gram[:, some][:, :, some],
        given[:, some],
        (given * weights).sum(1),
        keep=half // 2,
        k=layer.top_k,
        share=whole.share,
    )
    best = SubsetEnumeration().solve(problem, MaxRuntime(math.inf))
    norms = np.sqrt(np.einsum("tee->te", problem.gram))
    return problem, expert_scores(weights[:, some], norms), float(best.value)


SMOKE = PruningSettings(
    tokens=16,
    vocabulary=280,
    characters=6000,
    sequences=60,
    layers=2,
    width=16,
    expert_width=8,
    experts=8,
    top_k=2,
    steps=6,
    batch_size=8,
    calibration=24,
    rows=64,
)

EXPERIMENTS = (
    Experiment(
        name="pruning",
        title="Experts dropped from a trained language model",
        question=(
            "An OLMoE of {layers} layers and {experts} experts, {top_k} a token, is trained on documentation, code, "
            "headers and tables, with a loss that balances the experts or without (skewed), and keeps half of them or "
            "a quarter. By how many nats a token does the loss on fresh texts rise? Auto: what prune_experts takes, by "
            "a forward on held-out texts. Error: greedy on the exact error of the layer. The others are published "
            "scores."
        ),
        gates=tuple(KEPT),
        searches=(AUTO, *CRITERIA),
        settings=PruningSettings(),
        smoke=SMOKE,
        run_trial=run_trial,
        measures=(
            Measure("increase", "rise of the loss, nats a token"),
            Measure("forecast_off", "factor between forecast and rise", digits=2),
        ),
        seeds=3,
        curves=False,
        maps=False,
    ),
    Experiment(
        name="pruning-subsets",
        title="Which experts stay, against all subsets",
        question=(
            "Half of the {experts} experts of a layer, drawn at random, are a layer of their own and keep half of them "
            "again. By how many percent is the error of what is found above the least of all subsets? Search: greedy, "
            "then exchanges. The others are published scores."
        ),
        gates=LAYERS,
        searches=SEARCHES,
        settings=PruningSettings(),
        smoke=replace(SMOKE, layers=4),
        run_trial=run_subset_trial,
        measures=(
            Measure("excess", "error above the optimum, %", digits=2),
            Measure("optimal", "subset is the optimum", better="higher"),
        ),
        seeds=2,
        curves=False,
        maps=False,
    ),
)
