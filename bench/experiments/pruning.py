"""Experts of a trained language model are dropped: the best of several criteria against each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_search.bench.datasets.library_text import LibraryText, load_library_text
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.checks import require_choice
from moe_search.huggingface import PruningPlan, moe_layers, prune_experts
from moe_search.huggingface.calibration import SequenceLosses, checked_batches, sequence_losses
from moe_search.huggingface.pruning import CRITERIA
from moe_search.huggingface.selection import kept_only

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
    steps: int = 800
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
        "intact_loss": pruned.mean - increase,
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
    return list(torch.from_numpy(text(settings).test[settings.calibration :]).split(settings.batch_size))


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
    return model.eval()


@lru_cache(maxsize=2)
def intact(settings: PruningSettings, seed: int, balance: float) -> SequenceLosses:
    """Return the losses of the intact model on the fresh texts."""
    return sequence_losses(trained(settings, seed, balance), checked_batches("fresh", fresh(settings)))


@lru_cache(maxsize=len(KEPT))
def planned(settings: PruningSettings, seed: int, keep: float, balance: float) -> PruningPlan:
    """Return what all criteria propose."""
    batches = torch.from_numpy(text(settings).test[: settings.calibration]).split(settings.batch_size)
    return prune_experts(trained(settings, seed, balance), batches, keep, rows=settings.rows, seed=seed)


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
        smoke=PruningSettings(
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
        ),
        run_trial=run_trial,
        measures=(
            Measure("increase", "rise of the loss, nats a token"),
            Measure("forecast_off", "factor between forecast and rise", digits=2),
        ),
        seeds=3,
        curves=False,
        maps=False,
    ),
)
