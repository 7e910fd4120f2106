"""What an experiment is: gates and searches, each pair trained on the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from moe_search.checks import require_choice, require_integer

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
    title : str
    better : str
        ``"lower"`` or ``"higher"``.
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
class Budget:
    """A random search: every seed draws hyperparameters, the same under all searches, and the best draw counts.

    Attributes
    ----------
    loss : str
        The key of the loss whose best of r draws is of interest.
    space : callable
        From a gate to what is drawn for it: Optuna's distributions, by name.
    """

    loss: str
    space: Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class EqualTime:
    """Two searches to compare by the losses that they reach in the same time, not in the same number of steps.

    Attributes
    ----------
    peer, search : str
        The loss of the second less that of the first is tested.
    seconds : str
        The key of the seconds spent at the steps of the curve, a list as long as it.
    """

    peer: str
    search: str
    seconds: str


@dataclass(frozen=True)
class Experiment:
    """A frozen description; `moe_search.bench.experiments.run.run_experiment` runs it.

    Attributes
    ----------
    name : str
        Its name on the command line.
    title, question : str
        What it is, and what it is to find out.
    gates, searches : tuple of str
        Each search is tried with every gate; the first search is the baseline of the others.
    seeds : int
        Paired repetitions.
    settings, smoke : frozen dataclass
        What `run_trial` is given: the full sizes, and sizes that take seconds and only show that all works. A field
        `path`, if there is one, says where the data lie.
    run_trial : RunTrial
    measures : tuple of Measure
    curve : tuple of two str, optional
        The keys of a curve's steps and losses, lists as long as each other, the same steps in all trials.
    maps : tuple of str
        The keys of expert maps, lists of the expert of every slot, in the order of time.
    budget : Budget, optional
        Given where seeds are draws of hyperparameters.
    equal_time : EqualTime, optional
        Compares two of the searches; it takes a curve.
    """

    name: str
    title: str
    question: str
    gates: tuple[str, ...]
    searches: tuple[str, ...]
    seeds: int
    settings: Any
    smoke: Any
    run_trial: RunTrial
    measures: tuple[Measure, ...]
    curve: tuple[str, str] | None = None
    maps: tuple[str, ...] = ()
    budget: Budget | None = None
    equal_time: EqualTime | None = None

    def __post_init__(self) -> None:
        for what in ("gates", "searches", "measures"):
            if not getattr(self, what):
                raise ValueError(f"{what} of the experiment {self.name} must hold at least one, got none")
        require_integer("seeds", self.seeds)
        if self.equal_time is not None:
            if self.curve is None:
                raise ValueError(f"the experiment {self.name} must have a curve to be compared at equal time, got none")
            for search in (self.equal_time.peer, self.equal_time.search):
                require_choice("a search of equal_time", search, self.searches)

    def trials(self, seeds: int, first_seed: int = 0) -> list[Trial]:
        """Return all trials, seed by seed, so that a run cut short has whole pairs."""
        return [
            Trial(seed, gate, search)
            for seed in range(first_seed, first_seed + seeds)
            for gate in self.gates
            for search in self.searches
        ]
