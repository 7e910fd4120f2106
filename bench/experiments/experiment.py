"""What an experiment is: gates and searches, each pair trained on the same seeds; and all of them by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

from moe_search.checks import require_choice, require_integer

HOMES = {
    "scrambled-digits": "recovery_experiments",
    "scrambled-fashion": "recovery_experiments",
    "new-gate-digits": "recovery_experiments",
    "new-gate-fashion": "recovery_experiments",
    "attached-digits": "recovery_experiments",
    "domains-digits": "domain_experts",
    "domains-fashion": "domain_experts",
    "branched-digits": "domain_experts",
    "fresh-digits": "fresh_experts",
    "hidden-groups": "hidden_groups",
    "user-table": "user_table",
    "token-table": "token_table",
    "dense-to-moe": "dense_to_moe",
    "language": "language_students",
    "load-limit": "load_limit",
    "cardinality-digits": "cardinality",
    "cardinality-movielens": "cardinality",
    "cardinality-tokens": "cardinality",
    "pruning": "pruning",
    "token-maps": "token_maps",
    "token-maps-intact": "token_maps",
    "pruning-subsets": "pruning",
    "published": "published",
    "specialize-clusters": "specialize",
    "specialize-styles": "specialize",
    "specialize-digits": "specialize",
    "specialize-movielens": "specialize",
}
"""The module of `moe_search.bench.experiments` that holds an experiment in its ``EXPERIMENTS``."""

LOSS = "least_validation_loss"
"""The key of the loss by which draws of hyperparameters are compared."""

FRESH = 1_000_000
"""Between the seeds of a draw of hyperparameters: draw d is trained anew with d + FRESH, d + 2 FRESH and so on."""

BEST = 0.05
"""The part of the draws that is the best."""

CURVE = ("steps", "validation_losses", "cpu_seconds")
"""The keys of a curve: lists of the steps, the same in all trials, the losses there, and the seconds spent by then."""

MAPS = ("first_map", "last_map")
"""The keys of the expert maps before and after training, lists of the expert of every slot."""

Numbers: TypeAlias = Mapping[str, float | Sequence[float]]
"""What a trial measured: numbers, and curves or maps as lists of them."""

RunTrial: TypeAlias = Callable[[Any, int, str, str], Numbers]
"""``run_trial(settings, seed, gate, search)`` trains one gate with one search from one seed and returns what was
measured; a module-level function, so that any process can call it."""


@dataclass(frozen=True)
class Measure:
    """A number of every trial that searches are compared by.

    Attributes
    ----------
    name : str
        Its key among the numbers of a trial.
    digits : int
        Shown after the point.
    factor : float or None
        Given for counts and other positive numbers: the claim is that the baseline needs more than `factor` times as
        much, and ratios are compared. None for a difference, tested two-sided against 0.
    """

    name: str
    title: str
    better: Literal["lower", "higher"] = "lower"
    digits: int = 3
    factor: float | None = None


@dataclass(frozen=True, order=True)
class Trial:
    """One run: trials of one seed and gate differ in nothing but the search."""

    seed: int
    gate: str
    search: str


@dataclass(frozen=True)
class Experiment:
    """A frozen description; `moe_search.bench.experiments.run.run_experiment` runs it.

    Attributes
    ----------
    name, question : str
        Its name on the command line, and what it is to find out. Numbers of the settings stand in the question as
        fields of ``str.format``, such as ``{steps}``: they are those of the run that is told of.
    gates, searches : tuple of str
        Each search is tried with every gate; the first search is the baseline of the others.
    pairs : tuple of two str each
        Searches that are compared, a baseline and another, where they are others than the first and each of the rest.
    settings, smoke : frozen dataclass
        What `run_trial` is given: the full sizes, and sizes that take seconds and only show that all works. A field
        `path`, if there is one, says where the data lie.
    seeds : int
        Paired repetitions.
    curves, maps : bool
        Whether the report draws the `CURVE` and the `MAPS` of the trials.
    space : callable, optional
        Makes the seeds draws of a random search, the same under all searches, of which the best by `LOSS` counts. From
        a gate to what is drawn for it: Optuna's distributions, by name. The gates may then be on several tasks, with
        what is before the last comma in common: ``"digits, m = n, COMET"``.
    fresh_seeds : int
        How often the best draws of each gate and search are trained anew, from fresh weights, once all draws are done.
    equal_time : tuple of two str, optional
        A peer and a search, compared by the losses that they reach in the same time, not in the same number of steps.
    """

    name: str
    title: str
    question: str
    gates: tuple[str, ...]
    searches: tuple[str, ...]
    settings: Any
    smoke: Any
    run_trial: RunTrial
    measures: tuple[Measure, ...]
    seeds: int = 10
    curves: bool = True
    maps: bool = True
    space: Callable[[str], Mapping[str, Any]] | None = None
    fresh_seeds: int = 0
    equal_time: tuple[str, str] | None = None
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def compared(self) -> tuple[tuple[str, str], ...]:
        """The searches that are compared, a baseline and another."""
        return self.pairs or tuple((self.searches[0], search) for search in self.searches[1:])

    def __post_init__(self) -> None:
        for what in ("gates", "searches", "measures"):
            if not getattr(self, what):
                raise ValueError(f"{what} of the experiment {self.name} must hold at least one, got none")
        require_integer("seeds", self.seeds)
        for search in self.equal_time or ():
            require_choice("a search of equal_time", search, self.searches)
        for search in chain.from_iterable(self.pairs):
            require_choice("a search of pairs", search, self.searches)

    def trials(self, seeds: int, first_seed: int = 0) -> list[Trial]:
        """Return all trials, seed by seed, so that a run cut short has whole pairs."""
        return [
            Trial(seed, gate, search)
            for seed in range(first_seed, first_seed + seeds)
            for gate in self.gates
            for search in self.searches
        ]

    def fresh_trials(self, losses: Mapping[Trial, float]) -> list[Trial]:
        """Return the trials that train the best draws anew, of which these are the losses, fresh seed by fresh seed."""
        return [
            Trial(draw.seed + FRESH * number, gate, search)
            for number in range(1, self.fresh_seeds + 1)
            for gate in self.gates
            for search in self.searches
            for draw in best_draws(losses, gate, search)
        ]


def draw_of(seed: int) -> int:
    """Return the draw of hyperparameters that a seed is of: itself, or that which it trains anew."""
    return seed % FRESH


def best_draws(losses: Mapping[Trial, float], gate: str, search: str) -> list[Trial]:
    """Return the best part of the draws of a gate and search, at least one, the best first; `losses` may hold more."""
    drawn = [
        trial for trial in losses if (trial.gate, trial.search) == (gate, search) and draw_of(trial.seed) == trial.seed
    ]
    return sorted(drawn, key=lambda trial: (losses[trial], trial.seed))[: math.ceil(BEST * len(drawn))]


def find_experiment(name: str) -> Experiment:
    """Import the experiment of a name."""
    require_choice("an experiment", name, tuple(HOMES))
    module = importlib.import_module(f"moe_search.bench.experiments.{HOMES[name]}")
    (found,) = (each for each in module.EXPERIMENTS if each.name == name)
    return found


def require_libraries(*names: str) -> None:
    """Raise ImportError with the pip command if a library that experiments need is missing."""
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"experiments need {error.name}, which is missing: pip install 'moe-search[experiments]'"
        ) from error
