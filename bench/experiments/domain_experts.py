"""Experts trained apart, each on a domain of its own, under a gate trained alone to tell the domains apart.

What one has who branches, trains and merges (Li et al. 2022, Branch-Train-Merge; Sukhbaatar et al. 2024,
Branch-Train-MiX): both sides agree on what the domains are, and nobody knows which expert is which domain.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from moe_search.bench.experiments.experiment import Numbers
from moe_search.bench.experiments.gates import TRAINED, ClusterGate
from moe_search.bench.experiments.pretraining import branch_off, make_warm_gate, train_apart
from moe_search.bench.experiments.two_image_model import (
    NUM_CLASSES,
    NUM_EXPERTS,
    NUM_TASKS,
    DataTensors,
    TwoImageModel,
    evaluate,
    make_model,
    two_task_loss,
)
from moe_search.bench.experiments.two_image_trials import (
    DIGITS,
    FASHION,
    SEEDS_APART,
    TwoImageSettings,
    load,
    recovery_experiments,
    train_on,
)
from moe_search.gates import Gate
from moe_search.training.lowering.batch import Batch

QUARTER_TURNS = 4
NUM_DOMAINS = 2 * QUARTER_TURNS
"""Domains that can be seen: eight styles, quarter turns of black on white and of white on black."""

NEAREST_MEAN = "Nearest mean"
"""A gate with nothing to learn: a sample goes to the slot of the domain whose mean canvas is nearest."""


def draw_domains(count: int, generator: torch.Generator) -> Tensor:
    """Return the domain of every sample by chance, shape [count], all equally often, give or take one."""
    return torch.randperm(count, generator=generator) % NUM_DOMAINS


def in_style(inputs: Tensor, domains: Tensor, canvas: int) -> Tensor:
    """Return canvases in the style of their domains.

    Domain d, in 0 .. 7, is turned counterclockwise by d modulo 4 quarters; from 4 on, its ink is inverted as well.
    Inputs are flat canvases, shape [N, canvas * canvas], pixels in [0, 1].
    """
    images = inputs.view(-1, canvas, canvas)
    styled = torch.empty_like(images)
    for domain in range(NUM_DOMAINS):
        turned = torch.rot90(images[domains == domain], domain % QUARTER_TURNS, (1, 2))
        styled[domains == domain] = 1.0 - turned if domain >= QUARTER_TURNS else turned
    return styled.flatten(1)


@dataclass(frozen=True)
class DomainSettings(TwoImageSettings):
    """Sizes of a trial. The experts have the logits for features, whatever the model's number of them.

    Attributes
    ----------
    frozen_steps : int
        Steps at the start in which a run with search leaves the weights as they are. They count as steps.
    seed_epochs : int
        Epochs in which one expert is trained on all domains, before all others branch off from it; 0 for experts that
        begin with weights of their own.
    """

    frozen_steps: int = 2
    seed_epochs: int = 0


@dataclass(frozen=True, eq=False)
class DomainData:
    """Canvases in the styles of their domains.

    `domains` and `validation_domains` are those of the training and validation canvases, integers in 0 .. 7, shape [N].
    """

    all: DataTensors
    domains: Tensor
    validation_domains: Tensor

    def half(self, which: int) -> tuple[Batch, Tensor]:
        """Return the first half of the training canvases (0), or the second (1), and their domains."""
        middle = len(self.domains) // 2
        rows = (middle * which, middle if which == 0 else len(self.domains))
        return self.all.train.part(*rows), self.domains[slice(*rows)]


@dataclass(frozen=True, eq=False)
class Merged:
    """Experts and a gate from two sides.

    Attributes
    ----------
    model : TwoImageModel
        It has the map of a fresh gate, slot j to expert j.
    right_map : Tensor
        The expert of the domain of every slot, shape [n].
    intact_loss, known_loss : float
        Validation loss under the right map, and that of the experts on their own domains, without a gate.
    gate_accuracy : float
        Share of the validation canvases that have the most weight on the slot of their domain.
    """

    model: TwoImageModel
    right_map: Tensor
    intact_loss: float
    known_loss: float
    gate_accuracy: float


def run_trial(settings: DomainSettings, seed: int, gate: str, search: str) -> Numbers:
    """Train experts and gate apart, join them in the order they came, and train on."""
    merged = merge(settings, seed, gate)
    model = copy.deepcopy(merged.model)
    frozen = settings.frozen_steps if search == "search" else 0
    numbers = train_on(model, settings, seed, search, merged.intact_loss, domain_data(settings, seed).all, frozen)
    last_map = torch.tensor(numbers["last_map"])
    return dict(numbers) | {
        "gate_accuracy": merged.gate_accuracy,
        "known_loss": merged.known_loss,
        "right_slots": float((last_map == merged.right_map).double().mean()),
    }


@lru_cache(maxsize=1)
def merge(settings: DomainSettings, seed: int, gate: str) -> Merged:
    """Return experts of domains under a gate of domains; the last are kept for the trials that share them."""
    data = domain_data(settings, seed)
    slots = torch.randperm(NUM_DOMAINS, generator=torch.Generator().manual_seed(seed + SEEDS_APART))
    model = copy.deepcopy(experts_of_domains(settings, seed))
    model.moe.gate = gate_of_domains(settings, seed, gate, slots)
    right_map = slots.argsort()
    expert_map = model.moe.gate.expert_map
    fresh = expert_map.experts.clone()
    expert_map.assign(right_map.expand_as(fresh))
    intact_loss = evaluate(model, data.all.validation).loss
    expert_map.assign(fresh)
    validation, domains = data.all.validation, data.validation_domains
    with torch.no_grad():
        right = model.moe.gate(validation.inputs).weights.sum(1).argmax(1) == slots[domains]
        own = functional.one_hot(domains, NUM_EXPERTS).to(validation.inputs.dtype)
        answers = model.classify(model.moe.combine(own, model.moe.expert_outputs(validation.inputs)))
    known_loss = float(two_task_loss(answers, validation.targets))
    return Merged(model, right_map, intact_loss, known_loss, float(right.double().mean()))


@lru_cache(maxsize=1)
def domain_data(settings: DomainSettings, seed: int) -> DomainData:
    """Return the canvases of a seed, each in the style of a domain drawn by chance; the last ones are kept."""
    plain = load(settings, seed)
    generator = torch.Generator().manual_seed(seed)
    splits, domains = [], []
    for split in (plain.train, plain.validation, plain.test):
        drawn = draw_domains(len(split.inputs), generator)
        splits.append(Batch(in_style(split.inputs, drawn, settings.model.canvas), split.targets))
        domains.append(drawn)
    return DomainData(DataTensors(*splits), domains[0], domains[1])


@lru_cache(maxsize=1)
def experts_of_domains(settings: DomainSettings, seed: int) -> TwoImageModel:
    """Return a model whose expert d was trained on domain d alone, on its canvases in the first half of the data.

    Its head passes the outputs of the experts on as logits: they have nothing in common. Its gate is none of theirs.
    """
    sizes = replace(settings.model, features=NUM_TASKS * NUM_CLASSES)
    model = make_model("Top-k", sizes, seed)
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(sizes.features))
        model.head.bias.zero_()
    data, domains = domain_data(settings, seed).half(0)
    if settings.seed_epochs:
        branch_off(model, data, settings.seed_epochs, sizes, seed)
    train_apart(model, data, domains, sizes, seed)
    return model


def gate_of_domains(settings: DomainSettings, seed: int, gate: str, slots: Tensor) -> Gate:
    """Return a gate trained on the second half of the data to give each domain its slot, of `slots` [8]."""
    data, domains = domain_data(settings, seed).half(1)
    parts = slots[domains]
    if gate == NEAREST_MEAN:
        means = [data.inputs[parts == slot].mean(0) for slot in range(NUM_DOMAINS)]
        return ClusterGate(torch.stack(means), NUM_EXPERTS)
    return make_warm_gate(gate, data.inputs, parts, settings.model, seed, seed + SEEDS_APART)


def sizes_of(images: TwoImageSettings) -> DomainSettings:
    """Return the sizes of this experiment on some images: it divides the training canvases by two, then by eight."""
    model = replace(images.model, num_train=16_000, pretraining_epochs=15)
    # Gradient alone gets there first with this rate, of 0.001, 0.003, 0.01 and 0.03.
    return DomainSettings(**vars(images) | {"model": model, "learning_rate": 0.01})


STYLES = (
    "Canvases come in eight styles, the domains: quarter turns, with and without inverted ink. Eight experts are "
    "trained apart, each on a domain of its own"
)
GATE = (
    "A gate is trained alone, on other canvases, to tell the domains apart, which it numbers in an order of its own "
    "(Nearest mean: by the nearest mean canvas). They are put together in the order they came. How many training steps "
    "does it take to get to the validation loss that the right order has from the start?"
)

EXPERIMENTS = (
    *recovery_experiments(
        name="domains",
        title="Experts of domains under a gate of domains",
        question=f"{STYLES}, from weights of its own. {GATE}",
        run_trial=run_trial,
        gates=(NEAREST_MEAN, *TRAINED),
        sizes=(sizes_of(DIGITS), sizes_of(FASHION)),
    ),
    *recovery_experiments(
        name="branched",
        title="Experts branched off for domains, under a gate of domains",
        question=f"{STYLES}, from the weights of one that was trained on all of them. {GATE}",
        run_trial=run_trial,
        gates=(NEAREST_MEAN, *TRAINED),
        sizes=(replace(sizes_of(DIGITS), seed_epochs=5),),
    ),
)
