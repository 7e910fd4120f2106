"""The page of one or more experiments: tables with their statistics, loss curves, expert maps."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from moe_search.bench.experiments.draws_report import LEVEL, draws_figures, draws_headlines, draws_tables
from moe_search.bench.experiments.experiment import (
    CURVE,
    FRESH,
    MAPS,
    Experiment,
    Measure,
    Numbers,
    Trial,
    find_experiment,
)
from moe_search.bench.experiments.journal import FILE_NAMES, Entry, Journal, plain_settings, read_journal
from moe_search.bench.experiments.paired_statistics import (
    PairedComparison,
    PairedRow,
    TimedRun,
    compare,
    equal_time_table,
    holm,
    mean_and_error,
    paired_table,
)
from moe_search.plotting.expert_maps import MapPanel, NamedMap, expert_maps
from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO
from moe_search.plotting.report import Report, ReportFigure, Section, figure_svg
from moe_search.plotting.table import Table

MOST_SLOTS_DRAWN = 64
SMOKE_WARNING = "These are the sizes of --smoke: they show that all works, and nothing else."

HOW_TO_READ = (
    "Means over the seeds ± standard error. Comparisons are paired: trials of one seed share data, first weights and "
    "batches. p: Wilcoxon's signed-rank test, two-sided for differences; for ratios one-sided, of the claim in the "
    "column's name. Holm: adjusted for all comparisons in the table. d_z: mean over standard deviation of the "
    "differences (of logarithms, for ratios). r: rank-biserial correlation, from -1, all seeds lower, to 1, all higher."
)


@dataclass(frozen=True)
class Finished:
    """An experiment with the trials in its journal."""

    experiment: Experiment
    journal: Journal
    entries: dict[Trial, Entry]

    @property
    def is_smoke(self) -> bool:
        """Whether the trials have the sizes of ``--smoke``."""
        return self.journal.header.get("settings") == plain_settings(self.experiment.smoke)

    @property
    def title(self) -> str:
        """The title of the experiment, and whether it is but a trial run."""
        return f"{self.experiment.title} (smoke)" if self.is_smoke else self.experiment.title

    def measured(self, gate: str, search: str) -> dict[int, Numbers]:
        """Return what the trials of a gate and search measured, by seed."""
        return {
            trial.seed: entry.numbers
            for trial, entry in sorted(self.entries.items())
            if (trial.gate, trial.search) == (gate, search)
        }

    def numbers(self, gate: str, search: str, name: str) -> dict[int, float]:
        """Return a number of the trials of a gate and search, by seed."""
        return {seed: float(numbers[name]) for seed, numbers in self.measured(gate, search).items()}  # type: ignore[arg-type]

    def pairs(self, gate: str, searches: tuple[str, str], name: str) -> tuple[list[float], list[float]]:
        """Return a number under a baseline and under another search, of the seeds that ended under both."""
        baseline, other = (self.numbers(gate, each, name) for each in searches)
        seeds = [seed for seed in baseline if seed in other]
        return [baseline[seed] for seed in seeds], [other[seed] for seed in seeds]

    @property
    def all_measured(self) -> dict[Trial, Numbers]:
        """What all trials measured."""
        return {trial: entry.numbers for trial, entry in self.entries.items()}

    def timed_runs(self, gate: str, search: str) -> dict[int, TimedRun]:
        """Return the curves over time of a gate and search, by seed; journals of earlier versions hold none."""
        _, losses, seconds = CURVE
        return {
            seed: TimedRun(numbers[seconds], numbers[losses])  # type: ignore[arg-type]
            for seed, numbers in self.measured(gate, search).items()
            if seconds in numbers
        }


def read_finished(folder: str | os.PathLike[str]) -> list[Finished]:
    """Read the experiments in a folder: its own journal, or those of the folders in it."""
    root = Path(folder)
    folders = [root] if _holds_journal(root) else sorted(filter(_holds_journal, root.glob("*/")))
    if not folders:
        raise FileNotFoundError(
            f"no experiment was run in {root}: neither it nor a folder in it holds {' or '.join(FILE_NAMES)}"
        )
    found = []
    for each in folders:
        journal = read_journal(each)
        entries = journal.entries()
        if not entries:
            raise ValueError(f"{journal.file} must hold at least one finished trial, got none")
        found.append(Finished(find_experiment(journal.header["experiment"]), journal, entries))
    return found


def _holds_journal(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILE_NAMES)


def make_report(finished: Sequence[Finished], command: str) -> Report:
    """Return the page, which tells the command line that made it."""
    facts = {"report": command}
    for each in finished:
        name = each.experiment.name
        smoke = " --smoke" * each.is_smoke
        seeds = {trial.seed for trial in each.entries if trial.seed < FRESH}
        first, count = min(seeds), 1 + max(seeds) - min(seeds)
        facts[f"{name}{smoke}"] = f"moe-search experiment {name}{smoke} --first-seed {first} --seeds {count}"
        facts[f"{name}{smoke}, sizes"] = json.dumps(each.journal.header.get("settings"))
        facts[f"{name}{smoke}, versions"] = json.dumps(each.journal.header.get("versions"))
    return Report(
        title="moe-search experiments",
        lead="Sparse gates with and without search of their expert map, paired by seed.",
        sections=(
            *(section(each) for each in finished),
            Section("How to read the results", paragraphs=(HOW_TO_READ,)),
        ),
        facts=facts,
        headlines=tuple(headline for each in finished for headline in headlines(each)),
    )


def headlines(finished: Finished) -> tuple[str, ...]:
    """Return what the first measure says of the last search against the baseline; nothing without a comparison."""
    experiment = finished.experiment
    if experiment.space is not None:
        return draws_headlines(experiment, finished.all_measured)
    compared = _comparisons(finished, experiment.measures[0])
    baseline, search = experiment.compared[-1]
    mine = [(gate, comparison, p) for (gate, *pair), comparison, p in compared if pair == [baseline, search]]
    if not mine:
        return ()
    measure = experiment.measures[0]
    sign = -1 if measure.better == "lower" else 1
    effects = [
        f"{gate} {math.exp(-each.mean):.1f} times less"
        if measure.factor is not None
        else f"{gate} {each.mean:+.{measure.digits}f}"
        for gate, each, _ in mine
    ]
    better, worse = (
        sum(p <= LEVEL and direction * each.mean > 0 for _, each, p in mine) for direction in (sign, -sign)
    )
    # For a ratio, what is tested is more than that it is less.
    tested = "" if measure.factor is None else f" more than {measure.factor:g} times"
    return (
        f"{finished.title}: {measure.title}, {search} against {baseline}: {', '.join(effects)}; "
        f"{measure.better}{tested} at the {LEVEL:.0%} level for {better} of {len(mine)} gate{'s' * (len(mine) != 1)}"
        + (f", the other way for {worse}." if worse else "."),
    )


def section(finished: Finished) -> Section:
    """Return the part of the page about one experiment."""
    warning = (SMOKE_WARNING,) if finished.is_smoke else ()
    question = finished.experiment.question.format(**finished.journal.header["settings"])
    figures = (*_curves(finished), *_best_of(finished), *_maps(finished))
    return Section(
        finished.title,
        paragraphs=(question, *warning),
        tables=tables(finished),
        figures=figures,
    )


def tables(finished: Finished) -> tuple[Table, ...]:
    """Return all tables about one experiment."""
    if finished.experiment.space is not None:
        return draws_tables(finished.experiment, finished.all_measured)
    # With a baseline alone, there is nothing to compare.
    measures = finished.experiment.measures if len(finished.experiment.searches) > 1 else ()
    return (
        results_table(finished),
        *(comparison_table(finished, measure) for measure in measures),
        *_equal_time(finished),
    )


def results_table(finished: Finished) -> Table:
    """Return one row a gate and search: the means of all measures."""
    experiment = finished.experiment
    rows = []
    for gate in experiment.gates:
        for search in experiment.searches:
            seeds = len(finished.numbers(gate, search, experiment.measures[0].name))
            if seeds:
                cells = (
                    mean_and_error(list(finished.numbers(gate, search, measure.name).values())).text(measure.digits)
                    for measure in experiment.measures
                )
                rows.append((f"{gate}, {search}", str(seeds), *cells))
    titles = tuple(measure.title for measure in experiment.measures)
    return Table("Results", ("gate, search", "seeds", *titles), tuple(rows))


def comparison_table(finished: Finished, measure: Measure) -> Table:
    """Return one row a gate and search that is not the baseline: a paired comparison with it."""
    of_pairs = bool(finished.experiment.pairs)
    rows = [
        PairedRow(f"{gate}, {search} against {first}" if of_pairs else f"{gate}, {search}", comparison)
        for (gate, first, search), comparison, _ in _comparisons(finished, measure)
    ]
    against = "pairs" if of_pairs else f"against {finished.experiment.searches[0]}"
    return paired_table(f"{measure.title}: {against}, {measure.better} is better", ("gate, search",), rows, measure)


def _comparisons(finished: Finished, measure: Measure) -> list[tuple[tuple[str, str, str], PairedComparison, float]]:
    """Return gate, baseline and other search, their comparison, and its p-value adjusted for all of these."""
    found = {}
    for gate in finished.experiment.gates:
        for first, search in finished.experiment.compared:
            baseline, other = finished.pairs(gate, (first, search), measure.name)
            if baseline:
                found[gate, first, search] = compare(measure, baseline, other)
    adjusted = holm([comparison.p for comparison in found.values()])
    return [(*pair, p) for pair, p in zip(found.items(), adjusted, strict=True)]


def _equal_time(finished: Finished) -> tuple[Table, ...]:
    if finished.experiment.equal_time is None:
        return ()
    peer, search = finished.experiment.equal_time
    pairs = {}
    for gate in finished.experiment.gates:
        first, other = (finished.timed_runs(gate, each) for each in (peer, search))
        pairs[gate] = [(first[seed], other[seed]) for seed in first if seed in other]
    return (equal_time_table(pairs, peer, search),) if any(pairs.values()) else ()


def _figure(experiment: Experiment, figure: Figure, caption: str) -> tuple[ReportFigure]:
    return (ReportFigure(figure_svg(figure, f"{experiment.title}: {caption}"), caption),)


def _curves(finished: Finished) -> tuple[ReportFigure, ...]:
    experiment = finished.experiment
    if not experiment.curves:
        return ()
    panels = []
    for gate in experiment.gates:
        curves = []
        for colour, search in zip((MUTED, *OKABE_ITO), experiment.searches, strict=False):
            runs = list(finished.measured(gate, search).values())
            if runs:
                losses = np.array([numbers[CURVE[1]] for numbers in runs], dtype=np.float64)
                positions = np.array(runs[0][CURVE[0]], dtype=np.float64)
                curves.append(LossCurve(search, losses, colour, positions=positions))
        panels.append(LossPanel(gate, tuple(curves)))
    caption = "Validation loss by training step: the mean, and behind it every seed."
    return _figure(experiment, loss_curves(panels, step_name="step", logarithmic=True), caption)


def _best_of(finished: Finished) -> Iterator[ReportFigure]:
    if finished.experiment.space is None:
        return
    for task, figure in draws_figures(finished.experiment, finished.all_measured):
        caption = "Expected best validation loss by the number of trials, and the middle 90 % of bootstrap samples."
        yield from _figure(finished.experiment, figure, f"{task}. {caption}" if task else caption)


def _maps(finished: Finished) -> tuple[ReportFigure, ...]:
    experiment = finished.experiment
    rows: dict[str, list[NamedMap]] = defaultdict(list)
    first_seed = min(trial.seed for trial in finished.entries)
    for trial, entry in sorted(finished.entries.items()):
        if trial.seed == first_seed and trial.search != experiment.searches[0]:
            for name in MAPS if experiment.maps else ():
                experts = np.array(entry.numbers[name], dtype=np.int64)
                if len(experts) <= MOST_SLOTS_DRAWN:
                    rows[trial.gate].append(NamedMap(f"{trial.search}, {name.replace('_', ' ')}", experts))
    panels = [MapPanel(gate, tuple(rows[gate])) for gate in experiment.gates if rows[gate]]
    if not panels:
        return ()
    count = 1 + max(int(row.experts.max()) for panel in panels for row in panel.rows)
    caption = f"The expert of every slot in the trials of seed {first_seed}."
    return _figure(experiment, expert_maps(panels, count), caption)
