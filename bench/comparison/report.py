"""The report of a comparison: one HTML page, the same in Markdown, and the tables as parquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_search.bench.comparison.comparison import Comparison, ComparisonSettings
from moe_search.bench.comparison.mean_ranks import Ranking, rank_solvers
from moe_search.bench.comparison.performance_profiles import profile_figure
from moe_search.bench.comparison.scores import Scores, scores, times_to_target
from moe_search.bench.comparison.tables import (
    datasets_table,
    faults_table,
    pairs_table,
    solvers_table,
    win_tie_loss_table,
)
from moe_search.bench.comparison.time_to_target import time_to_target_figure
from moe_search.bench.machine_facts import machine_facts
from moe_search.plotting.report import Report, ReportFigure, Section, figure_svg, write_report

TARGETS = {"1 % above the best": 0.01, "0.1 % above the best": 0.001, "the best known value": 0.0}

HOW_TO_READ = (
    "Every solver ran on every data set it takes, with the same seeds. Excess is (value - best known) / |best known|; "
    "every value was computed anew from the permutation by the definition of the problem. Compilation does not count. "
    "Equal values are ties. A run that raised, or gave no answer within the limit, counts as worse than any value. "
    "Each class of problems is judged by itself, among the solvers that took all its data sets."
)


def make_report(comparison: Comparison, settings: ComparisonSettings, command: str) -> Report:
    """Return the page.

    Parameters
    ----------
    comparison : Comparison
    settings : ComparisonSettings
        Those it was made with.
    command : str
        The command line that made it.
    """
    runs = comparison.runs
    counts = runs["status"].value_counts()
    lead = (
        f"{runs['solver'].nunique()} solvers on {runs['dataset'].nunique()} data sets, {settings.repetitions} "
        f"repetition{'s' * (settings.repetitions != 1)} of {comparison.seconds:g} s each."
    )
    told = ", ".join(
        f"{counts[status]} {status}" for status in ("done", "late", "failed", "skipped") if status in counts
    )
    sections = [Section("How to read it", paragraphs=(HOW_TO_READ, f"Runs: {told}."))]
    sections += [_section(comparison, each) for each in scores(comparison)]
    faults = faults_table(comparison)
    if faults.rows:
        sections.append(Section("Failed and late runs", tables=(faults,)))
    return Report("Comparison of solvers", lead, tuple(sections), facts(settings, command))


def write_comparison(comparison: Comparison, report: Report, folder: Path) -> list[Path]:
    """Write report.html, report.md, runs.parquet and curves.parquet to a folder; return their paths.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    paths = [folder / name for name in ("report.html", "report.md", "runs.parquet", "curves.parquet")]
    write_report(report, paths[0])
    paths[1].write_text(as_markdown(report), encoding="utf-8")
    comparison.runs.to_parquet(paths[2])
    comparison.curves.to_parquet(paths[3])
    return paths


def as_markdown(report: Report) -> str:
    """Return the words and tables of a report, its figures left out."""
    parts = [f"# {report.title}\n", f"{report.lead}\n"]
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


def facts(settings: ComparisonSettings, command: str) -> dict[str, str]:
    """Return what a reader needs to repeat it."""
    return {
        "Command": command,
        "Suite": settings.suite,
        "Seeds": "repetition k of every solver has the same seed, which depends on k alone",
        "Runs at a time": f"{settings.n_jobs} ({settings.backend})",
    } | machine_facts()


def _section(comparison: Comparison, scores: Scores) -> Section:
    num_datasets = len(scores.references)
    heading = f"{scores.problem}: {num_datasets} data set{'s' * (num_datasets != 1)}"
    paragraphs = []
    if scores.left_out:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in scores.left_out.items())
        paragraphs.append(f"Not judged here, since they do not take every data set: {reasons}.")
    if not scores.solvers:
        return Section(heading, (*paragraphs, "No solver took every data set."))
    ranking = rank_solvers(scores.by_dataset())
    tables = (solvers_table(comparison, scores, ranking), datasets_table(comparison, scores, ranking))
    folded = []
    if len(scores.solvers) > 1:
        folded.append(win_tie_loss_table(scores, ranking))
    if ranking.pairs:
        folded.append(pairs_table(ranking))
    figures = _figures(comparison, scores, ranking)
    return Section(heading, tuple(paragraphs), tables, ranking.sentences, figures, tuple(folded))


def _figures(comparison: Comparison, scores: Scores, ranking: Ranking) -> tuple[ReportFigure, ...]:
    order = list(ranking.mean_ranks)
    styles = {str(name): number for number, name in enumerate(comparison.runs["solver"].unique())}
    times = {words: times_to_target(comparison, scores, target)[order] for words, target in TARGETS.items()}
    if not any(np.isfinite(table.to_numpy()).any() for table in times.values()):
        return ()
    figures = [
        ReportFigure(
            figure_svg(
                time_to_target_figure(times, comparison.seconds, styles),
                "share of runs that reached a target in time",
            ),
            "Time to target: the share of all runs that were within the target after so many seconds. Higher and "
            "further left is better.",
        )
    ]
    close = times["1 % above the best"]
    if len(order) > 1 and np.isfinite(close.to_numpy()).any():
        figures.append(
            ReportFigure(
                figure_svg(profile_figure(close, styles), "performance profiles of the solvers"),
                "Performance profile (Dolan and More): the share of the runs in which a solver came within 1 % of the "
                "best in at most so many times the time of the fastest solver on the same data set and seed.",
            )
        )
    return tuple(figures)
