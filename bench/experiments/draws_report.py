"""The report of a random search over hyperparameters: its best draws, what a budget buys, all comparisons at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from matplotlib.figure import Figure

from moe_search.bench.experiments.best_of_trials import (
    Losses,
    budget_figure,
    budget_table,
    fewer_trials_table,
    others_reached,
)
from moe_search.bench.experiments.experiment import (
    FRESH,
    LOSS,
    Experiment,
    Measure,
    Numbers,
    Trial,
    best_draws,
    draw_of,
)
from moe_search.bench.experiments.paired_statistics import (
    PairedComparison,
    PairedRow,
    compare,
    holm,
    mean_and_error,
    paired_table,
)
from moe_search.plotting.table import Table

Measured = Mapping[Trial, Numbers]
"""What all trials of an experiment measured, draws and those trained anew."""

Treatment = tuple[str, str]
"""A gate and a search."""

LEVEL = 0.05


def draws_tables(experiment: Experiment, measured: Measured) -> tuple[Table, ...]:
    """Return the best draws of every task, the trials that a budget saves, and all comparisons."""
    losses = drawn_losses(experiment, measured)
    return (
        *(best_table(experiment, measured, task, gates) for task, gates in tasks(experiment)),
        *((budget_table(losses), fewer_trials_table(losses)) if losses else ()),
        *reach_tables(experiment, measured),
        comparisons_table(experiment, measured),
    )


def draws_figures(experiment: Experiment, measured: Measured) -> Iterator[tuple[str, Figure]]:
    """Yield the expected best by the number of trials with its task, for every task of which draws are done."""
    losses = drawn_losses(experiment, measured)
    for task, gates in tasks(experiment):
        found = {short(gate): losses[gate] for gate in gates if gate in losses}
        if found:
            yield task, budget_figure(found)


def draws_headlines(experiment: Experiment, measured: Measured) -> tuple[str, ...]:
    """Return how many comparisons of searches are significant, all comparisons of the page adjusted for."""
    measure = experiment.measures[0]
    found = all_comparisons(experiment, measured)
    adjusted = holm([comparison.p for _, _, comparison in found])
    sign = 1 if measure.better == "higher" else -1
    lines = []
    for first, search in experiment.compared:
        mine = [
            sign * comparison.mean
            for (one, other, comparison), p in zip(found, adjusted, strict=True)
            if one[0] == other[0] and (one[1], other[1]) == (first, search) and p <= LEVEL
        ]
        count = sum(one[0] == other[0] and (one[1], other[1]) == (first, search) for one, other, _ in found)
        if count:
            better = sum(effect > 0 for effect in mine)
            lines.append(
                f"{experiment.title}: {measure.title}, {search} against {first}: better in {better} of {count}, worse "
                f"in {len(mine) - better} (Holm over all {len(found)} comparisons, {LEVEL:.0%})."
            )
    return tuple(lines)


def tasks(experiment: Experiment) -> list[tuple[str, tuple[str, ...]]]:
    """Return the tasks, what is before the last comma of a gate or empty, and the gates of each."""
    return [(task, tuple(gates)) for task, gates in groupby(experiment.gates, lambda gate: gate.rpartition(", ")[0])]


def short(gate: str) -> str:
    """Return the name of a gate without its task."""
    return gate.rpartition(", ")[2]


def drawn_losses(experiment: Experiment, measured: Measured) -> Losses:
    """Return the losses of the draws that ended under all searches, in their order, by gate and search."""
    found = {}
    for gate in experiment.gates:
        by_search = {search: _drawn(measured, (gate, search), LOSS) for search in experiment.searches}
        seeds = sorted(set.intersection(*map(set, by_search.values())))
        if seeds:
            found[gate] = {search: [values[seed] for seed in seeds] for search, values in by_search.items()}
    return found


def best_table(experiment: Experiment, measured: Measured, task: str, gates: Sequence[str]) -> Table:
    """Return one row a gate and search: the means of the best draws, trained anew where that has been done."""
    losses = {trial: float(numbers[LOSS]) for trial, numbers in measured.items()}  # type: ignore[arg-type]
    measures = [each for each in experiment.measures if any(each.name in measured[one] for one in _of(measured, gates))]
    rows = []
    for gate in gates:
        for search in experiment.searches:
            best = best_draws(losses, gate, search)
            again = [
                trial
                for trial in measured
                if trial.seed >= FRESH and Trial(draw_of(trial.seed), trial.gate, trial.search) in best
            ]
            if best:
                draws = len(_drawn(measured, (gate, search), LOSS))
                cells = (
                    mean_and_error([measured[trial][each.name] for trial in again or best]).text(each.digits)  # type: ignore[misc]
                    for each in measures
                )
                rows.append((f"{short(gate)}, {search}", str(draws), str(len(best)), str(len(again)), *cells))
    note = (
        "The best draws by validation loss, and their means ± standard error: over fresh seeds, or, where none has "
        "run, over the best draws themselves."
    )
    columns = ("gate, search", "draws", "best", "fresh runs", *(each.title for each in measures))
    return Table(f"Best draws: {task}" if task else "Best draws", columns, tuple(rows), note=note)


def reach_tables(experiment: Experiment, measured: Measured) -> tuple[Table, ...]:
    """Return one row a gate, one column a search: the trials that reach the median best of the others on its task."""
    rows, budgets = [], set()
    for task, gates in tasks(experiment):
        losses = {
            (gate, search): _drawn(measured, (gate, search), LOSS) for gate in gates for search in experiment.searches
        }
        seeds = sorted(set.intersection(*map(set, losses.values())))
        if len(seeds) < 2:
            continue
        reached = others_reached({key: [values[seed] for seed in seeds] for key, values in losses.items()})
        budgets.add(len(seeds) // 2)
        for gate in gates:
            cells = []
            for search in experiment.searches:
                one = reached[gate, search]
                ends = (f"{one.budget / times:.1f}" if times else "never" for times in (one.high, one.low))
                needed = "never" if one.needed is None else f"{one.needed:.1f}"
                cells.append(f"{needed} ({' to '.join(ends)})")
            rows.append((f"{task}, {short(gate)}" if task else gate, str(len(seeds)), *cells))
    if not rows:
        return ()
    note = (
        "The least number of trials whose expected best validation loss is the median of what the others, gates and "
        f"searches, have as the best of {' or '.join(map(str, sorted(budgets)))} trials, half of the draws. In "
        "brackets, the middle 90 % of bootstrap samples of the draws, the losses of a draw taken together. Never: all "
        "draws are not enough."
    )
    columns = ("task, gate", "draws", *experiment.searches)
    return (Table("Trials to reach the others' median best", columns, tuple(rows), note=note),)


def all_comparisons(experiment: Experiment, measured: Measured) -> list[tuple[Treatment, Treatment, PairedComparison]]:
    """Return a baseline, another treatment, and their comparison by the first measure over the draws that both have.

    Searches are compared for every gate, and the last gate of a task, alone and with the last search, with all other
    gates alone.
    """
    measure = experiment.measures[0]
    alone, ours = experiment.searches[0], experiment.searches[-1]
    wanted: list[tuple[Treatment, Treatment]] = []
    for _, gates in tasks(experiment):
        wanted += [((gate, first), (gate, search)) for gate in gates for first, search in experiment.compared]
        wanted += [((gate, alone), (gates[-1], search)) for search in (alone, ours) for gate in gates[:-1]]
    found = []
    for first, other in wanted:
        baseline, values = (_drawn(measured, each, measure.name) for each in (first, other))
        seeds = sorted(set(baseline) & set(values))
        if seeds:
            pair = ([each[seed] for seed in seeds] for each in (baseline, values))
            found.append((first, other, compare(measure, *pair)))
    return found


def comparisons_table(experiment: Experiment, measured: Measured) -> Table:
    """Return one row a comparison, every p-value also adjusted for all of them."""
    measure: Measure = experiment.measures[0]
    rows = [
        PairedRow(f"{', '.join(other)} against {short(first[0])}, {first[1]}", comparison)
        for first, other, comparison in all_comparisons(experiment, measured)
    ]
    note = (
        "All draws, good and bad, in pairs, which share what both gates draw and the batches; under all searches, also "
        "the first weights."
    )
    return paired_table(f"{measure.title} of all draws", ("compared",), rows, measure, note)


def _of(measured: Measured, gates: Sequence[str]) -> Iterator[Trial]:
    return (trial for trial in measured if trial.gate in gates)


def _drawn(measured: Measured, treatment: Treatment, name: str) -> dict[int, float]:
    """Return a number of the draws of a gate and search, by draw."""
    return {
        trial.seed: float(numbers[name])  # type: ignore[arg-type]
        for trial, numbers in measured.items()
        if trial.seed < FRESH and (trial.gate, trial.search) == treatment
    }
