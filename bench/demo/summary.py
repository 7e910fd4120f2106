"""All that the demo measured, and what came out of it, the gains first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe_search.bench.demo.devices import SEARCH, STATIC, DevicesResult, devices_sentence, outcome_of
from moe_search.bench.demo.neurons import ENOUGH, EXPERTS, RANDOM, SEARCHED, TOLD, NeuronsResult, neurons_sentence
from moe_search.bench.demo.scenarios import ScenarioResult
from moe_search.bench.demo.settings import SEARCHED as SEARCHED_GATES, DemoSettings
from moe_search.bench.demo.tables import compare, slots_sentence
from moe_search.bench.experiments.paired_statistics import mean_and_error
from moe_search.plotting.table import Table
from moe_search.serving import PolicyOutcome

AFTER_SCRAMBLING = "after the map was scrambled"
FROM_FRESH_WEIGHTS = "from fresh weights"


@dataclass(frozen=True)
class DemoResult:
    """All that the demo measured."""

    settings: DemoSettings
    from_scratch: ScenarioResult
    bad_initialization: ScenarioResult
    devices: DevicesResult
    neurons: NeuronsResult
    device: str
    seconds: float


def headlines(result: DemoResult) -> tuple[str, ...]:
    """Return what came of each part where there is something to gain, a sentence each."""
    return (
        slots_sentence(result.bad_initialization, AFTER_SCRAMBLING),
        devices_sentence(result.devices),
        neurons_sentence(result.neurons),
    )


def summary_table(result: DemoResult) -> Table:
    """Return a row for each comparison: those with something to gain, and below them those without."""
    parts = (
        _slots_rows(result.bad_initialization, "scrambled"),
        [_drifting_row(result.devices), _neurons_row(result.neurons, TOLD)],
        _slots_rows(result.from_scratch, "fresh"),
        [_steady_row(result.devices), _neurons_row(result.neurons, ENOUGH)],
    )
    return Table(
        "With search and without",
        ("choice", "measured", "without", "with search", "gain", "gap, %"),
        tuple(row for part in parts for row in part),
        rules=(sum(map(len, parts[:2])) - 1,),
        note="Gain: mean over the seeds, or tasks, ± standard error. Gap: how far what was searched may be above the "
        "optimum, (found - bound) / found, at worst for slots, where the optimum is known, else on average.",
    )


def _slots_rows(result: ScenarioResult, start: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for gate in SEARCHED_GATES:
        comparison = compare(result, gate)
        without, found = (
            f"{np.mean([run.test.loss for run in runs]):.3f}" for runs in (comparison.without, comparison.with_search)
        )
        gain = mean_and_error([-difference for difference in comparison.loss_differences]).text(3)
        gaps = [search.gap for search in result.searches if search.gate == f"{gate}+"]
        gap = f"{100 * max(gaps):.2f}" if gaps else "-"
        rows.append((f"slots, {start}, {gate}", "test loss", without, found, gain, gap))
    return rows


def _drifting_row(result: DevicesResult) -> tuple[str, ...]:
    return _devices_row("devices, drifting", [[outcome_of(result.drifting, policy)] for policy in (STATIC, SEARCH)])


def _steady_row(result: DevicesResult) -> tuple[str, ...]:
    return _devices_row("devices, steady", [result.steady_outcomes(policy) for policy in (STATIC, SEARCH)])


def _devices_row(name: str, outcomes: list[list[PolicyOutcome]]) -> tuple[str, ...]:
    kept, near = ([float(each.balance.mean()) for each in of_policy] for of_policy in outcomes)
    # A device bears the mean load at least, so what was planned is no further from its bound than from being even.
    gap = 1 - np.mean([each.planned.mean() for each in outcomes[1]])
    gain = mean_and_error(np.subtract(near, kept).tolist()).text(3)
    return name, "balance", f"{np.mean(kept):.3f}", f"{np.mean(near):.3f}", gain, f"{100 * gap:.2f}"


def _neurons_row(result: NeuronsResult, active: int) -> tuple[str, ...]:
    at_random, searched = (result.accuracies(how, active) for how in (RANDOM, SEARCHED))
    bounds, lost = (
        result.column(measure, SEARCHED, active) for measure in (lambda split: split.bound, lambda split: split.lost)
    )
    gap = np.mean(1 - np.divide(bounds, lost))
    gain = mean_and_error(np.subtract(searched, at_random).tolist()).text(3)
    numbers = f"{np.mean(at_random):.3f}", f"{np.mean(searched):.3f}", gain, f"{100 * gap:.2f}"
    return f"neurons, {active} of {EXPERTS}", "accuracy", *numbers
