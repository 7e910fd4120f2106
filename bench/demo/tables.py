"""Tables of a scenario, for the terminal and the report, and a gate with search against the same gate without."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from moe_search.bench.demo.scenarios import ComparedSearch, ScenarioResult, TrainingRun
from moe_search.bench.demo.settings import SEARCHED, SHOWN
from moe_search.bench.experiments.paired_statistics import MeanAndError, mean_and_error
from moe_search.plotting.table import Table


def runs_by_gate(result: ScenarioResult) -> dict[str, list[TrainingRun]]:
    """Return the runs of every gate in order of seeds, each gate followed by its plus version."""
    names = [name for gate in SHOWN for name in ((gate, f"{gate}+") if gate in SEARCHED else (gate,))]
    return {name: [run for run in result.runs if run.gate == name] for name in names}


def results_table(result: ScenarioResult) -> Table:
    """Return one row a gate: means over the seeds, with standard errors."""
    by_gate = runs_by_gate(result)
    groups = [len(list(group)) for _, group in groupby(by_gate, key=lambda name: name.rstrip("+"))]
    return Table(
        "Results",
        ("gate", "test loss", "accuracy upper left, %", "accuracy lower right, %", "experts a sample"),
        tuple((name, *_result_cells(runs)) for name, runs in by_gate.items()),
        rules=tuple(sum(groups[: i + 1]) - 1 for i in range(len(groups) - 1)),
    )


def searches_table(result: ScenarioResult) -> Table:
    """Return one row a gate that searched: counts, gaps to the optimum, share of time."""
    by_gate = runs_by_gate(result)
    names = [f"{gate}+" for gate in SEARCHED]
    return Table(
        "Searches, with the gap to the exact optimum",
        ("gate", "searches", "found", "committed", "refused", "gap mean, %", "gap worst, %", "share of time, %"),
        tuple(
            (name, *_search_cells(by_gate[name], [search for search in result.searches if search.gate == name]))
            for name in names
        ),
    )


def every_search_table(result: ScenarioResult) -> Table:
    """Return one row a search."""
    columns = ("gate", "seed", "step", "problem", "loss before", "loss found", "optimum", "gap, %")
    rows = []
    for search in result.searches:
        record = search.record
        rows.append(
            (
                search.gate,
                str(search.seed),
                str(record.step),
                record.problem or "-",
                _number(record.value_before),
                _number(record.value_found),
                _number(search.optimum),
                f"{100 * search.gap:.3f}",
                _number(record.verified_gain),
                _number(record.standard_error),
                record.outcome,
                f"{1000 * record.seconds:.1f}",
            )
        )
    return Table("Every search", (*columns, "verified gain", "standard error", "outcome", "ms"), tuple(rows))


def findings(result: ScenarioResult) -> tuple[str, ...]:
    """Return one finding for each gate with and without search."""
    return tuple(compare(result, gate).sentences() for gate in SEARCHED)


def slots_sentence(result: ScenarioResult, start: str) -> str:
    """Return what search did to the test losses from a start, and how near to their optima the searches came."""
    told: dict[str, list[str]] = {"gain": [], "harm": [], "no clear difference": []}
    for gate in SEARCHED:
        comparison = compare(result, gate)
        without, found = (
            mean_and_error([run.test.loss for run in runs]).mean
            for runs in (comparison.without, comparison.with_search)
        )
        told[comparison.verdict].append(f"{gate} ({without:.3f} without, {found:.3f} with)")
    lines = (
        ("search lowers the test loss of ", told["gain"]),
        ("search raises the test loss of ", told["harm"]),
        ("there is no clear difference for ", told["no clear difference"]),
    )
    gaps = [search.gap for search in result.searches]
    parts = [words + ", ".join(gates) for words, gates in lines if gates]
    if gaps:
        worst = f"no search ended more than {max(gaps):.2%} above" if max(gaps) else "every search ended at"
        parts.append(f"{worst} the exact optimum of its problem")
    return f"Slots: {start}, {'; '.join(parts)}."


def compare(result: ScenarioResult, gate: str) -> Comparison:
    """Return the runs of a sparse gate without and with search."""
    by_gate = runs_by_gate(result)
    return Comparison(by_gate[gate], by_gate[f"{gate}+"])


def verdict_of(differences: Sequence[float]) -> str:
    """Return ``gain`` (below 0) or ``harm`` if all seeds agree and the mean exceeds two standard errors; else neither.

    Differences are with search minus without, of what is better if it is less.
    """
    found = mean_and_error(differences)
    if len(differences) > 1 and abs(found.mean) > 2 * found.error:
        if max(differences) < 0:
            return "gain"
        if min(differences) > 0:
            return "harm"
    return "no clear difference"


@dataclass(frozen=True)
class Comparison:
    """Runs of a gate with search against the same gate without, paired by seed; differences are with minus without."""

    without: Sequence[TrainingRun]
    with_search: Sequence[TrainingRun]

    def __post_init__(self) -> None:
        first, other = ([run.seed for run in runs] for runs in (self.without, self.with_search))
        if not first or first != other:
            raise ValueError(f"runs must be pairs of the same seeds, got {first} and {other}")

    @property
    def pairs(self) -> list[tuple[TrainingRun, TrainingRun]]:
        """The runs without and with search of every seed."""
        return list(zip(self.without, self.with_search, strict=True))

    @property
    def loss_differences(self) -> list[float]:
        """Differences of the test losses, one a seed; negative means that search did better."""
        return [b.test.loss - a.test.loss for a, b in self.pairs]

    @property
    def verdict(self) -> str:
        """What `verdict_of` says of the losses."""
        return verdict_of(self.loss_differences)

    def sentences(self) -> str:
        """Return the comparison in plain words."""
        gate, losses = self.without[0].gate, self.loss_differences
        if not any(losses) and not any(run.committed for run in self.with_search):
            return f"{gate}+ against {gate}: no difference, no map was committed."
        accuracy = mean_and_error(
            [float(np.mean(b.test.accuracies) - np.mean(a.test.accuracies)) for a, b in self.pairs]
        )
        of_seeds = f"of {len(losses)} {'seed' if len(losses) == 1 else 'seeds'}"
        lower = sum(difference < 0 for difference in losses)
        matched = (_first_at_most(b.losses, min(a.losses)) for a, b in self.pairs)
        return (
            f"{gate}+ against {gate}: {self.verdict}. "
            f"Test loss {_change(mean_and_error(losses), 3, 'lower', 'higher')}, lower in {lower} {of_seeds}; "
            f"accuracy {_change(accuracy, 2, 'points lower', 'points higher', scale=100.0)}. "
            f"Validation loss after one epoch: {np.mean([run.losses[1] for run in self.with_search]):.3f} with search, "
            f"{np.mean([run.losses[1] for run in self.without]):.3f} without. "
            f"Epoch at the least validation loss of {gate}, by seed: {', '.join(matched)} with search, "
            f"{', '.join(str(run.best_epoch) for run in self.without)} without."
        )


def _result_cells(runs: Sequence[TrainingRun]) -> list[str]:
    cells = [mean_and_error([run.test.loss for run in runs]).text(3)]
    for task in range(len(runs[0].test.accuracies)):
        cells.append(mean_and_error([run.test.accuracies[task] for run in runs]).text(1, 100.0))
    return [*cells, f"{mean_and_error([run.test.experts_per_sample for run in runs]).mean:.2f}"]


def _search_cells(runs: Sequence[TrainingRun], searches: Sequence[ComparedSearch]) -> list[str]:
    outcomes = [record.outcome for run in runs for record in run.history]
    committed, refused = outcomes.count("committed"), outcomes.count("refused")
    gaps = [100 * search.gap for search in searches]
    return [
        *map(str, (len(outcomes), committed + refused, committed, refused)),
        *((f"{mean_and_error(gaps).mean:.3f}", f"{max(gaps):.3f}") if gaps else ("-", "-")),
        f"{100 * mean_and_error([run.search_share for run in runs]).mean:.1f}",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _first_at_most(losses: Sequence[float], target: float) -> str:
    return next((str(epoch) for epoch, loss in enumerate(losses) if loss <= target), "never")


def _change(change: MeanAndError, digits: int, down: str, up: str, scale: float = 1.0) -> str:
    error = "" if math.isnan(change.error) else f" (standard error {scale * change.error:.{digits}f})"
    return f"{abs(scale * change.mean):.{digits}f} {down if change.mean < 0 else up}{error}"
