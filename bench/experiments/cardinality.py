"""How many experts a sample has under gates of trees and of codes, and what it costs to come down to k."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.gates import SMOOTH, make_gate
from moe_search.bench.experiments.two_image_model import (
    EXPERTS_PER_SAMPLE,
    NUM_EXPERTS,
    TwoImageModel,
    make_model,
)
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    SEEDS_APART,
    TwoImageSettings,
    load,
    shrunk,
    train_on_images,
)
from moe_search.checks import require_choice
from moe_search.gates import COMET, DSelectK
from moe_search.training import GammaAnnealing, RoutingStatistics, RoutingSummary

VARIANTS: dict[str, dict[str, float]] = {
    "defaults": {},
    "annealed": {},
    "annealed, no entropy": {"entropy": 0.0},
}
"""What the gates are given beside their defaults; the last two have a `GammaAnnealing` around them."""

IN_USE = 0.01
"""An expert of a smaller part of the samples is not in use."""

LAST_EVALUATIONS = 6


@dataclass(frozen=True)
class CardinalitySettings:
    """Sizes of a trial.

    Attributes
    ----------
    annealed : float
        Part of the steps in which gamma falls. All variants are evaluated after these alone, and the best of
        `LAST_EVALUATIONS` models counts: before, an annealed gate has more experts a sample.
    """

    images: TwoImageSettings
    annealed: float = 0.8


def run_trial(settings: CardinalitySettings, seed: int, gate: str, variant: str) -> Numbers:
    """Train from fresh weights."""
    require_choice("a variant", variant, tuple(VARIANTS))
    images = settings.images
    annealed = round(images.steps * settings.annealed)
    model, on_step = fresh_model(images, seed, gate, variant, annealed)
    rest = images.steps - annealed
    steps = {images.steps - rest * i // LAST_EVALUATIONS for i in range(LAST_EVALUATIONS)}
    _, numbers = train_on_images(
        model,
        load(images, seed),
        images.model.batch_size,
        seed,
        steps=images.steps,
        learning_rate=images.learning_rate,
        search="none",
        schedule=images.schedule,
        evaluated=(0, *sorted(steps)),
        on_step=on_step,
    )
    routing = routing_of(model, load(images, seed).test.inputs)
    shares = routing.experts_per_sample.double() / routing.num_samples
    return numbers | {
        "experts_per_sample": routing.mean_experts,
        "more_than_k": float(shares[EXPERTS_PER_SAMPLE + 1 :].sum()),
        "experts_in_use": float((routing.load > IN_USE * routing.num_samples).sum()),
    }


def fresh_model(
    images: TwoImageSettings, seed: int, gate: str, variant: str, annealed: int
) -> tuple[TwoImageModel, Callable[[int], None] | None]:
    """Return a fresh model, all variants with the same weights, and what is to be called after its steps."""
    model = make_model(gate, images.model, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + SEEDS_APART)
        own = make_gate(gate, images.model.canvas**2, NUM_EXPERTS, k=EXPERTS_PER_SAMPLE, **VARIANTS[variant])
    model.moe.gate = own
    if not variant.startswith("annealed"):
        return model, None
    assert isinstance(own, COMET | DSelectK)
    schedule = GammaAnnealing(own, annealed)
    model.moe.gate = schedule
    return model, lambda _: schedule.step()


@torch.no_grad()
def routing_of(model: TwoImageModel, inputs: torch.Tensor) -> RoutingSummary:
    """Return how samples are spread over the experts; the model is left in eval mode."""
    statistics = RoutingStatistics()
    with statistics.watch(model.eval().moe):
        model(inputs)
    return statistics.summary()


EXPERIMENTS = (
    Experiment(
        name="cardinality-digits",
        title="Experts a sample, digits",
        question=(
            f"COMET with {EXPERTS_PER_SAMPLE} trees, DSelect-k with {EXPERTS_PER_SAMPLE} selectors, {NUM_EXPERTS} "
            "experts: how many has a sample in the end, and at what loss? Defaults: gamma is 1, the weight of the "
            "entropy 0.01. Annealed: gamma falls from 1 to 0.01 in the first 80 % of the steps, with this entropy and "
            "without any. "
            f"An expert is in use if it has at least {IN_USE:.0%} of the samples."
        ),
        gates=tuple(SMOOTH),
        searches=tuple(VARIANTS),
        settings=CardinalitySettings(replace(DIGITS, steps=1500)),
        smoke=CardinalitySettings(shrunk(DIGITS)),
        run_trial=run_trial,
        measures=(
            Measure("experts_per_sample", "experts a sample", digits=2),
            Measure("more_than_k", "samples with more than k", digits=3),
            Measure("experts_in_use", "experts in use", better="higher", digits=1),
            Measure("test_loss", "test loss"),
            Measure("accuracy", "test accuracy", better="higher"),
        ),
        curves=False,
        maps=False,
    ),
)
