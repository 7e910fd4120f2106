"""The report of a comparison: one HTML page, the same in Markdown, its main figures, and the tables as parquet."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from moe_search.bench.comparison.comparison import Comparison
from moe_search.bench.comparison.curves import excess_figure, profile_figure, time_to_target_figure
from moe_search.bench.comparison.literature import ARTICLES, Article, Published
from moe_search.bench.comparison.scores import (
    Ranking,
    Scores,
    excess,
    excess_over_time,
    rank_solvers,
    scores,
    times_to_target,
    wins_ties_losses,
)
from moe_search.bench.comparison.settings import ComparisonSettings
from moe_search.bench.machine_facts import machine_facts
from moe_search.plotting.report import Report, ReportFigure, Section, figure_svg, write_report
from moe_search.plotting.table import Table
from moe_search.solvers.engine.result import relative_gap

NONE = "-"
LITERATURE = "Beside the literature"
CLOSE = 0.01
TARGETS = {"1 % above the best": CLOSE, "0.1 % above the best": 0.001, "the best known value": 0.0}

HOW_TO_READ = (
    "Every solver ran on every data set it takes, with the same seeds. Excess is (value - best known) / |best known|; "
    "every value was computed anew from the permutation by the definition of the problem. Compilation does not count. "
    "Equal values are ties. A run that raised, or gave no answer within the limit, counts as worse than any value. "
    "Each class of problems is judged by itself, among the solvers that took all its data sets."
)


def make_report(comparison: Comparison, settings: ComparisonSettings, command: str) -> Report:
    """Return the page of a comparison that was made with these settings, by this command line."""
    runs = comparison.runs
    counts = runs["status"].value_counts()
    lead = (
        f"{runs['solver'].nunique()} solvers on {runs['dataset'].nunique()} data sets, {settings.runs_of_each} "
        f"repetition{'s' * (settings.runs_of_each != 1)} of {comparison.seconds:g} s each."
    )
    told = ", ".join(
        f"{counts[status]} {status}" for status in ("done", "late", "failed", "skipped") if status in counts
    )
    judged = [(each, rank_solvers(each.by_dataset())) for each in scores(comparison)]
    sections = [_section(comparison, each, ranking) for each, ranking in judged]
    sections += _literature(comparison, judged)
    sections.append(Section("How to read it", paragraphs=(HOW_TO_READ, f"Runs: {told}.")))
    faults = _faults_table(comparison)
    if faults.rows:
        sections.append(Section("Failed and late runs", tables=(faults,)))
    facts = {
        "Command": command,
        "Suite": settings.suite,
        "Seeds": "repetition k of every solver has the same seed, which depends on k alone",
        "Runs at a time": f"{settings.n_jobs} ({settings.backend})",
    }
    headlines = tuple(_headline(each, ranking) for each, ranking in judged if each.solvers)
    return Report("Comparison of solvers", lead, tuple(sections), facts | machine_facts(), headlines)


def write_comparison(comparison: Comparison, report: Report, folder: Path) -> list[Path]:
    """Write report.html, report.md, runs.parquet, curves.parquet and two pictures to a folder; return their paths."""
    paths = [folder / name for name in ("report.html", "report.md", "runs.parquet", "curves.parquet")]
    write_report(report, paths[0])
    paths[1].write_text(as_markdown(report), encoding="utf-8")
    comparison.runs.to_parquet(paths[2])
    comparison.curves.to_parquet(paths[3])
    judged = [each for each in scores(comparison) if each.solvers]
    styles = _styles(comparison)
    if judged:
        over_time = {each.problem: excess_over_time(comparison, each) for each in judged}
        close = {each.problem: times_to_target(comparison, each, CLOSE) for each in judged}
        for name, figure in (
            ("excess_over_time", excess_figure(over_time, styles)),
            ("profiles", profile_figure(close, styles)),
        ):
            paths.append(folder / f"{name}.png")
            # With a background, so that it can be read on any.
            figure.savefig(paths[-1], dpi=100, facecolor="white")
    return paths


def as_markdown(report: Report) -> str:
    """Return the words and tables of a report, its figures left out."""
    parts = [f"# {report.title}\n", *(f"{headline}\n" for headline in report.headlines), f"{report.lead}\n"]
    for section in report.sections:
        parts.append(f"## {section.heading}\n")
        parts += [f"{paragraph}\n" for paragraph in section.paragraphs]
        parts += [table.as_markdown() for table in section.tables]
        if section.findings:
            parts.append("".join(f"- {finding}\n" for finding in section.findings))
        parts += [table.as_markdown() for table in section.folded]
    parts.append("## To repeat it\n")
    parts.append("".join(f"- {name}: {value}\n" for name, value in report.facts.items()))
    return "\n".join(parts)


def _headline(scores: Scores, ranking: Ranking) -> str:
    """Return who came first on a class of problems, by how much, and what the tests say of it."""
    ranks = ranking.mean_ranks
    first, *others = [[name for name in ranks if ranks[name] == rank] for rank in sorted(set(ranks.values()))]

    def told(names: list[str]) -> str:
        above = f"{_percent(float(np.median(scores.excess[names])))} above the best"
        return f"{', '.join(names)}, {'all ' * (len(names) > 1)}{above}"

    words = f"{scores.problem}: first {told(first)}" + (f"; then {told(others[0])}" if others else "")
    if ranking.pairs:
        words += f". {len(ranking.told_apart)} of {len(ranking.pairs)} pairs of solvers are told apart"
    return f"{words}."


def _section(comparison: Comparison, scores: Scores, ranking: Ranking) -> Section:
    num_datasets = len(scores.references)
    heading = f"{scores.problem}: {num_datasets} data set{'s' * (num_datasets != 1)}"
    paragraphs = []
    if scores.left_out:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in scores.left_out.items())
        paragraphs.append(f"Not judged here, since they do not take every data set: {reasons}.")
    if not scores.solvers:
        return Section(heading, (*paragraphs, "No solver took every data set."))
    tables = (_solvers_table(comparison, scores, ranking), _excess_table(scores, ranking))
    folded = [_datasets_table(comparison, scores)]
    if len(scores.solvers) > 1:
        folded.append(_win_tie_loss_table(scores, ranking))
    if ranking.pairs:
        folded.append(_pairs_table(ranking))
    figures = _figures(comparison, scores, ranking)
    return Section(heading, tuple(paragraphs), tables, ranking.sentences, figures, tuple(folded))


def _literature(comparison: Comparison, judged: list[tuple[Scores, Ranking]]) -> list[Section]:
    """Return the runs on instances that articles report on, beside what these report."""
    tables = []
    for (each, ranking), article in product(judged, ARTICLES):
        names = {str(dataset).removeprefix("qaplib[").removesuffix("]"): dataset for dataset in each.references.index}
        shared = {names[instance]: figures for instance, figures in article.figures.items() if instance in names}
        if shared and each.solvers:
            tables.append(_article_table(comparison, each, ranking, article, shared))
    if not tables:
        return []
    words = (
        "Times of other machines, languages and years are no measure of ours: they say what was spent for a value, not "
        "who is faster. An article's deviation is taken from the best value known here, as ours is, and may be larger "
        "than the article has it where a better one was found since."
    )
    return [Section(LITERATURE, (words,), tuple(tables))]


def _article_table(
    comparison: Comparison, scores: Scores, ranking: Ranking, article: Article, shared: dict[str, Published]
) -> Table:
    """Return the mean deviation and time of an article for each data set that it has, and below it of our solvers."""
    means = scores.excess.groupby(level="dataset", sort=False).mean()
    last = comparison.runs.groupby(["dataset", "solver"])["seconds"].mean()
    rows = []
    for dataset, figures in shared.items():
        best = float(scores.references[dataset])
        spent = f"{figures.seconds:g} s" if figures.seconds < 60 else f"{figures.seconds / 60:g} min"
        published = _percent(excess(figures.value, best)), spent
        rows.append((dataset, _number(best), article.algorithm, *published))
        for solver in ranking.mean_ranks:
            rows.append(("", "", solver, _percent(means.loc[dataset, solver]), f"{last[dataset, solver]:.3g} s"))
    lines = tuple(range(len(ranking.mean_ranks), len(rows) - 1, 1 + len(ranking.mean_ranks)))
    note = (
        f"{article.algorithm}: {article.source}. {article.setting}. Ours: the mean over all runs of "
        f"{comparison.seconds:g} s, and of the second in which a run improved last."
    )
    columns = ("data set", "best known", "solver", "mean deviation", "time")
    return Table(f"Beside {article.algorithm}", columns, tuple(rows), lines, note)


def _styles(comparison: Comparison) -> dict[str, int]:
    """Return the number of the line style of every solver."""
    return {str(name): number for number, name in enumerate(sorted(comparison.runs["solver"].unique()))}


def _figures(comparison: Comparison, scores: Scores, ranking: Ranking) -> tuple[ReportFigure, ...]:
    order = list(ranking.mean_ranks)
    styles = _styles(comparison)
    times = {words: times_to_target(comparison, scores, target)[order] for words, target in TARGETS.items()}
    if not any(np.isfinite(table.to_numpy()).any() for table in times.values()):
        return ()
    over_time = {"Excess over time": excess_over_time(comparison, scores)[order]}
    figures = [
        ReportFigure(
            figure_svg(excess_figure(over_time, styles), "median excess of the solvers over time"),
            "Excess over time: the median over all runs of how far the best answer so far is above the best known "
            "value. Lower and further left is better.",
        ),
        ReportFigure(
            figure_svg(
                time_to_target_figure(times, comparison.seconds, styles),
                "share of runs that reached a target in time",
            ),
            "Time to target: the share of all runs that were within the target after so many seconds. Higher and "
            "further left is better.",
        ),
    ]
    close = times["1 % above the best"]
    if len(order) > 1 and np.isfinite(close.to_numpy()).any():
        figures.append(
            ReportFigure(
                figure_svg(profile_figure({"Within 1 %": close}, styles), "performance profiles of the solvers"),
                "Performance profile (Dolan and More): the share of the runs in which a solver came within 1 % of the "
                "best in at most so many times the time of the fastest solver on the same data set and seed.",
            )
        )
    return tuple(figures)


def _solvers_table(comparison: Comparison, scores: Scores, ranking: Ranking) -> Table:
    """Return one row a solver, the best mean rank first."""
    close, exact = (times_to_target(comparison, scores, target) for target in (CLOSE, 0.0))
    rows = []
    for name, rank in ranking.mean_ranks.items():
        above = scores.excess[name].to_numpy()
        reached = np.isfinite(close[name].to_numpy())
        rows.append(
            (
                name,
                f"{rank:.2f}",
                _percent(float(np.median(above))),
                f"{100 * np.isfinite(exact[name]).mean():.0f} %",
                f"{100 * reached.mean():.0f} %",
                f"{np.median(close[name].to_numpy()[reached]):.3g}" if reached.any() else NONE,
                str(int(np.isinf(above).sum())),
            )
        )
    numbers = ("mean rank", "median excess", "reached the best", "within 1 %", "seconds to 1 %", "failed or late")
    note = (
        "Mean rank over data sets (1 is best) of the median value of a solver's runs; the other columns are over all "
        "runs. Seconds to 1 %: the median of the runs that reached it."
    )
    return Table("Solvers", ("solver", *numbers), tuple(rows), note=note)


def _excess_table(scores: Scores, ranking: Ranking) -> Table:
    """Return one row a solver: its median excess on every data set."""
    medians = scores.by_dataset().loc[scores.references.index]
    rows = tuple((solver, *map(_percent, medians[solver])) for solver in ranking.mean_ranks)
    note = "Median over the repetitions of (value - best known) / |best known|."
    return Table("Median excess by data set", ("solver", *map(str, medians.index)), rows, note=note)


def _datasets_table(comparison: Comparison, scores: Scores) -> Table:
    """Return one row a data set: what is known of it."""
    rows = []
    for name, runs in comparison.runs[comparison.runs["problem"] == scores.problem].groupby("dataset", sort=False):
        reference = float(scores.references[name])
        bounds = runs["bound"].dropna()
        gap = relative_gap(reference, float(bounds.max())) if len(bounds) else None
        known = runs["best_known"].notna().any()
        rows.append(
            (
                str(name),
                str(int(runs["size"].iloc[0])),
                _number(reference) + ("" if known else " *"),
                NONE if gap is None else _percent(gap),
            )
        )
    note = (
        "Gap: of the best known value to the best bound that a solver proved here. * the best value found in this "
        "comparison, since none is published."
    )
    return Table("Data sets", ("data set", "size", "best known", "gap"), tuple(rows), note=note)


def _win_tie_loss_table(scores: Scores, ranking: Ranking) -> Table:
    """Return the counts of runs, each solver of the rows against each of the columns."""
    counts = wins_ties_losses(scores.excess)
    rows = []
    for a in ranking.mean_ranks:
        cells = ("/".join(map(str, counts[a, b])) if a != b else NONE for b in ranking.mean_ranks)
        rows.append((a, *cells))
    note = (
        "Runs of one data set and seed in which the solver of the row ended lower than the other, equal to it, higher."
    )
    return Table("Wins / ties / losses", ("solver", *ranking.mean_ranks), tuple(rows), note=note)


def _pairs_table(ranking: Ranking) -> Table:
    """Return Wilcoxon's test of every pair of solvers."""
    rows = tuple(
        (f"{pair.better} before {pair.worse}", f"{pair.p:.2g}", f"{pair.corrected:.2g}") for pair in ranking.pairs
    )
    return Table("Pairs of solvers", ("pair", "p, Wilcoxon", "p, corrected by Holm"), rows)


def _faults_table(comparison: Comparison) -> Table:
    """Return the runs that failed or came too late."""
    bad = comparison.runs[comparison.runs["status"].isin(["failed", "late"])]
    rows = tuple(
        (str(row.solver), str(row.dataset), str(row.repetition), str(row.status), str(row.reason))
        for row in bad.itertuples()
    )
    return Table("Runs without an answer", ("solver", "data set", "repetition", "status", "reason"), rows)


def _percent(share: float) -> str:
    """Return a share as text; a number above the resolution is never shown as 0."""
    if not np.isfinite(share):
        return "inf"
    if share and abs(share) < 5e-6:
        return f"{100 * share:.0e} %"
    return f"{100 * share:.3f} %" if share else "0 %"


def _number(value: float) -> str:
    """Return a value as text, an integer with all its digits; a dash if there is none."""
    if not np.isfinite(value):
        return NONE
    return f"{int(value):,}" if value == int(value) else f"{value:.6g}"
