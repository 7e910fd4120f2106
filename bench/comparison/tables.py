"""Tables of a comparison."""

from __future__ import annotations

import numpy as np

from moe_search.bench.comparison.comparison import Comparison
from moe_search.bench.comparison.mean_ranks import Ranking
from moe_search.bench.comparison.scores import Scores, times_to_target
from moe_search.bench.comparison.win_tie_loss import win_tie_loss
from moe_search.plotting.table import Table
from moe_search.solvers.engine.result import relative_gap

NONE = "-"
ONE_PERCENT = 0.01


def solvers_table(comparison: Comparison, scores: Scores, ranking: Ranking) -> Table:
    """Return one row a solver, the best mean rank first."""
    close, exact = (times_to_target(comparison, scores, target) for target in (ONE_PERCENT, 0.0))
    rows = []
    for name, rank in ranking.mean_ranks.items():
        above = scores.excess[name].to_numpy()
        reached = np.isfinite(close[name].to_numpy())
        rows.append(
            (
                name,
                f"{rank:.2f}",
                percent(float(np.median(above))),
                f"{100 * np.isfinite(exact[name]).mean():.0f} %",
                f"{100 * reached.mean():.0f} %",
                f"{np.median(close[name].to_numpy()[reached]):.3g}" if reached.any() else NONE,
                str(int(np.isinf(above).sum())),
            )
        )
    columns = (
        "solver",
        "mean rank",
        "median excess",
        "reached the best",
        "within 1 %",
        "seconds to 1 %",
        "failed or late",
    )
    note = (
        "Mean rank over data sets (1 is best) of the median value of a solver's runs; the other columns are over all "
        "runs. Seconds to 1 %: the median of the runs that reached it."
    )
    return Table("Solvers", columns, tuple(rows), note=note)


def datasets_table(comparison: Comparison, scores: Scores, ranking: Ranking) -> Table:
    """Return one row a data set: what is known of it, and the median excess of every solver."""
    medians = scores.by_dataset()
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
                number(reference) + ("" if known else " *"),
                NONE if gap is None else percent(gap),
                *(percent(float(medians.loc[name, solver])) for solver in ranking.mean_ranks),
            )
        )
    note = (
        "Median over the repetitions of (value - best known) / |best known|. Gap: of the best known value to the best "
        "bound that a solver proved here. * the best value found in this comparison, since none is published."
    )
    return Table("Data sets", ("data set", "size", "best known", "gap", *ranking.mean_ranks), tuple(rows), note=note)


def win_tie_loss_table(scores: Scores, ranking: Ranking) -> Table:
    """Return the counts of runs, each solver of the rows against each of the columns."""
    counts = win_tie_loss(scores.excess)
    rows = []
    for a in ranking.mean_ranks:
        cells = [counts[a, b] if a != b else None for b in ranking.mean_ranks]
        rows.append((a, *(NONE if c is None else f"{c.wins}/{c.ties}/{c.losses}" for c in cells)))
    note = (
        "Runs of one data set and seed in which the solver of the row ended lower than the other, equal to it, higher."
    )
    return Table("Wins / ties / losses", ("solver", *ranking.mean_ranks), tuple(rows), note=note)


def pairs_table(ranking: Ranking) -> Table:
    """Return Wilcoxon's test of every pair of solvers."""
    rows = tuple(
        (f"{pair.better} before {pair.worse}", f"{pair.p:.2g}", f"{pair.corrected:.2g}") for pair in ranking.pairs
    )
    return Table("Pairs of solvers", ("pair", "p, Wilcoxon", "p, corrected by Holm"), rows)


def faults_table(comparison: Comparison) -> Table:
    """Return the runs that failed or came too late."""
    bad = comparison.runs[comparison.runs["status"].isin(["failed", "late"])]
    rows = tuple(
        (str(row.solver), str(row.dataset), str(row.repetition), str(row.status), str(row.reason))
        for row in bad.itertuples()
    )
    return Table("Runs without an answer", ("solver", "data set", "repetition", "status", "reason"), rows)


def percent(share: float) -> str:
    """Return a share as text; a number above the resolution is never shown as 0."""
    if not np.isfinite(share):
        return "inf"
    if share and abs(share) < 5e-6:
        return f"{100 * share:.0e} %"
    return f"{100 * share:.3f} %" if share else "0 %"


def number(value: float) -> str:
    """Return a value as text, an integer with all its digits; a dash if there is none."""
    if not np.isfinite(value):
        return NONE
    return f"{int(value):,}" if value == int(value) else f"{value:.6g}"
