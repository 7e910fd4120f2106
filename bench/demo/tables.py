"""Tables of a scenario, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from moe_search.bench.demo.comparison import compare, mean_and_error
from moe_search.bench.demo.model import GATES, SEARCHED
from moe_search.bench.demo.optimum import ComparedSearch
from moe_search.bench.demo.scenarios import ScenarioResult
from moe_search.bench.demo.training_run import TrainingRun
from moe_search.plotting.table import Table


def runs_by_gate(result: ScenarioResult) -> dict[str, list[TrainingRun]]:
    """Return the runs of every gate in order of seeds, each gate followed by its plus version."""
    names = [name for gate in GATES for name in ((gate, f"{gate}+") if gate in SEARCHED else (gate,))]
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
    by_gate = runs_by_gate(result)
    return tuple(compare(by_gate[gate], by_gate[f"{gate}+"]).sentences() for gate in SEARCHED)


def _result_cells(runs: Sequence[TrainingRun]) -> list[str]:
    cells = [mean_and_error([run.test_loss for run in runs]).text(3)]
    for task in range(len(runs[0].accuracies)):
        cells.append(mean_and_error([run.accuracies[task] for run in runs]).text(1, 100.0))
    return [*cells, f"{mean_and_error([run.experts_per_sample for run in runs]).mean:.2f}"]


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
