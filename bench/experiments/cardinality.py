"""How many experts a sample has under gates of trees and of codes, and what it costs to come down to k."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from moe_search.bench.experiments.cardinality_tasks import Task, digits_task, films_task, tokens_task
from moe_search.bench.experiments.experiment import Experiment, Measure, Numbers
from moe_search.bench.experiments.gates import SMOOTH, make_gate
from moe_search.bench.experiments.token_teacher import TokenTableSettings
from moe_search.bench.experiments.training import SearchSchedule, endless_batches, train_by_steps
from moe_search.bench.experiments.two_image_trials import DIGITS, SEEDS_APART, TwoImageSettings, shrunk
from moe_search.bench.experiments.user_table import UserTableSettings
from moe_search.checks import require_choice
from moe_search.gates import COMET, DSelectK
from moe_search.training import GammaAnnealing, RoutingStatistics, RoutingSummary
from moe_search.training.lowering.batch import Batch

K = 2
"""Trees of COMET, selectors of DSelect-k: the experts that a sample should come down to."""


VARIANTS = ("defaults", "annealed")
"""The gate as it is by default, and with a `GammaAnnealing` around it."""

ANNEALED = 0.2
"""The first part of the steps, in which gamma falls."""

LAST = 0.2
"""The last part of the steps, in which alone variants are evaluated: the best of `LAST_EVALUATIONS` models counts."""

LAST_EVALUATIONS = 6

IN_USE = 0.01
"""An expert of a smaller part of the samples is not in use."""

NO_SEARCH = SearchSchedule(period=1, until=0)


def run_on_digits(settings: TwoImageSettings, seed: int, gate: str, variant: str) -> Numbers:
    """Train on canvases of two digits."""
    sizes = (settings.steps, settings.learning_rate, settings.model.batch_size)
    return run_task(digits_task(settings, seed), *sizes, seed, gate, variant)


def run_on_films(settings: UserTableSettings, seed: int, gate: str, variant: str) -> Numbers:
    """Train on pairs of a user and a film."""
    sizes = (settings.steps, settings.learning_rate, settings.batch_size)
    return run_task(films_task(settings, seed), *sizes, seed, gate, variant)


def run_on_tokens(settings: TokenTableSettings, seed: int, gate: str, variant: str) -> Numbers:
    """Train on tokens of film reviews."""
    sizes = (settings.steps, settings.learning_rate, settings.batch_size)
    return run_task(tokens_task(settings, seed), *sizes, seed, gate, variant)


def run_task(
    task: Task, steps: int, learning_rate: float, batch_size: int, seed: int, gate: str, variant: str
) -> Numbers:
    """Train from fresh weights, the same for all variants."""
    model, last = task.model, round(steps * LAST)
    on_step = put_gate(task, seed, gate, variant, steps)

    @torch.no_grad()
    def loss_on(data: Batch) -> float:
        return float(task.loss(answer(task, data), data.targets))

    run = train_by_steps(
        model,
        task.moe,
        task.loss,
        endless_batches(task.train, batch_size, seed),
        lambda: loss_on(task.validation),
        steps=steps,
        learning_rate=learning_rate,
        search="none",
        schedule=NO_SEARCH,
        seed=seed,
        evaluated=(0, *sorted({steps - last * i // LAST_EVALUATIONS for i in range(LAST_EVALUATIONS)})),
        on_step=on_step,
    )
    model.load_state_dict(run.best)
    routing = routing_of(task)
    shares = routing.experts_per_sample.double() / routing.num_samples
    return run.numbers() | {
        "test_loss": loss_on(task.test),
        "experts_per_sample": routing.mean_experts,
        "more_than_k": float(shares[K + 1 :].sum()),
        "experts_in_use": float((routing.load > IN_USE * routing.num_samples).sum()),
        "largest_share": float(routing.load.max() / routing.num_samples),
    }


def put_gate(task: Task, seed: int, gate: str, variant: str, steps: int) -> Callable[[int], None] | None:
    """Put a fresh gate into the model, and return what is to be called after the steps of its training."""
    require_choice("a variant", variant, VARIANTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + SEEDS_APART)
        own = make_gate(gate, task.in_features, task.moe.gate.num_experts, k=K)
    task.moe.gate = own
    if variant == VARIANTS[0]:
        return None
    assert isinstance(own, COMET | DSelectK)
    schedule = GammaAnnealing(own, round(steps * ANNEALED))
    task.moe.gate = schedule
    return lambda _: schedule.step()


def answer(task: Task, data: Batch) -> Tensor:
    """Return what the model makes of some data; it is left in eval mode."""
    model = task.model.eval()
    return model(data.inputs) if data.ids is None else model(data.inputs, ids=data.ids)


@torch.no_grad()
def routing_of(task: Task) -> RoutingSummary:
    """Return how the test samples are spread over the experts; the model is left in eval mode."""
    statistics = RoutingStatistics()
    with statistics.watch(task.moe):
        answer(task, task.test)
    return statistics.summary()


FILMS = UserTableSettings(batch_size=512, steps=600)
TOKENS = TokenTableSettings(layers=1, experts=8, neurons=32, batch_size=256, steps=400, learning_rate=3e-3)

EXPERIMENTS = tuple(
    Experiment(
        name=f"cardinality-{name}",
        title=f"Experts a sample, {title}",
        question=(
            f"COMET with {K} trees, DSelect-k with {K} selectors, 8 experts: how many has a sample after {{steps:,}} "
            "steps, and at what loss? Defaults: gamma is 1, the weight of the entropy 0.01. Annealed: by "
            f"GammaAnnealing, gamma falls to 0.01 in the first {ANNEALED:.0%} of the steps, while a penalty on uneven "
            "importance keeps experts in use. "
            f"An expert is in use if it has at least {IN_USE:.0%} of the samples."
        ),
        gates=tuple(SMOOTH),
        searches=VARIANTS,
        settings=settings,
        smoke=smoke,
        run_trial=run_trial,
        measures=(
            Measure("experts_per_sample", "experts a sample", digits=2),
            Measure("more_than_k", "samples with more than k", digits=3),
            Measure("experts_in_use", "experts in use", better="higher", digits=1),
            Measure("largest_share", "samples of the fullest expert", digits=2),
            Measure("test_loss", "test loss", digits=4),
        ),
        curves=False,
        maps=False,
    )
    for name, title, run_trial, settings, smoke in (
        ("digits", "digits", run_on_digits, replace(DIGITS, steps=1500), shrunk(DIGITS)),
        (
            "movielens",
            "MovieLens-100k",
            run_on_films,
            FILMS,
            replace(FILMS, hidden_features=8, batch_size=64, steps=12),
        ),
        (
            "tokens",
            "tokens of film reviews",
            run_on_tokens,
            TOKENS,
            replace(TOKENS, neurons=4, max_tokens=12, snippets=90, batch_size=32, steps=12, made=True),
        ),
    )
)
