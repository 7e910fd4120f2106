"""How the solvers of a comparison did: their distances from the best known values, ranks, tests and wins."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from moe_search.bench.comparison.comparison import Comparison
from moe_search.bench.experiments.paired_statistics import holm

ROUNDING = 1e-9
"""Values that differ by less, as a share of the best known one, are equal."""

LEVEL = 0.05

EARLIEST = 1e-3
"""Part of the limit of a run at which a curve over time begins."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The runs of the solvers that took every data set of a problem class.

    Attributes
    ----------
    problem : str
    references : Series
        By data set: the best known value, or the best of the comparison where that is better or none is known.
    excess : DataFrame
        Rows (dataset, repetition), columns solvers: distance above the reference as a share of its magnitude. Infinite
        for a run that failed or came too late; 0 where the value equals the reference up to `ROUNDING`.
    left_out : dict of str to str
        Solvers that skipped a data set, each with its reason.
    """

    problem: str
    references: pd.Series
    excess: pd.DataFrame
    left_out: dict[str, str]

    @property
    def solvers(self) -> tuple[str, ...]:
        """Names of the solvers."""
        return tuple(self.excess.columns)

    def by_dataset(self) -> pd.DataFrame:
        """Return the median over the repetitions, rows data sets, columns solvers."""
        return self.excess.groupby(level="dataset", sort=False).median()


def scores(comparison: Comparison) -> tuple[Scores, ...]:
    """Return the scores of every problem class of a comparison."""
    return tuple(
        _of_class(str(problem), runs) for problem, runs in comparison.runs.groupby("problem", sort=False) if len(runs)
    )


def times_to_target(comparison: Comparison, scores: Scores, target: float) -> pd.DataFrame:
    """Return the seconds after which each run was at most `target` above the reference; infinite if it never was.

    The target is a share of the reference's magnitude; the rows and columns are those of ``scores.excess``.
    """
    times = pd.DataFrame(np.inf, index=scores.excess.index, columns=scores.excess.columns)
    curves = comparison.curves[comparison.curves["solver"].isin(scores.solvers)]
    for (dataset, solver, repetition), curve in curves.groupby(["dataset", "solver", "repetition"]):
        if (dataset, repetition) not in times.index:
            continue
        reference = scores.references[dataset]
        reached = curve[[excess(value, reference) <= target for value in curve["value"]]]
        if len(reached):
            times.loc[(dataset, repetition), solver] = reached["seconds"].min()
    return times


def excess_over_time(comparison: Comparison, scores: Scores, points: int = 200) -> pd.DataFrame:
    """Return the median over the runs of the excess by a time: rows seconds up to the limit, columns solvers.

    A run without an answer by then counts as infinite.
    """
    seconds = np.geomspace(EARLIEST * comparison.seconds, comparison.seconds, points)
    known = {name: np.full((len(scores.excess), points), np.inf) for name in scores.solvers}
    rows = {key: row for row, key in enumerate(scores.excess.index)}
    curves = comparison.curves[comparison.curves["solver"].isin(scores.solvers)]
    for (dataset, solver, repetition), curve in curves.groupby(["dataset", "solver", "repetition"]):
        if (dataset, repetition) in rows:
            reference = scores.references[dataset]
            values = np.array([np.inf, *(excess(value, reference) for value in curve["value"])])
            by_then = np.searchsorted(curve["seconds"].to_numpy(), seconds, side="right")
            known[solver][rows[dataset, repetition]] = values[by_then]
    return pd.DataFrame({name: np.median(table, axis=0) for name, table in known.items()}, index=seconds)


@dataclass(frozen=True)
class Pair:
    """Wilcoxon's signed-rank test of two solvers: its p-value, alone and corrected by Holm for all the pairs."""

    better: str
    worse: str
    p: float
    corrected: float


@dataclass(frozen=True)
class Ranking:
    """What the ranks say.

    Attributes
    ----------
    mean_ranks : dict of str to float
        The mean rank of every solver, the best (least) first; equal values share the mean of their ranks.
    friedman : float or None
        The p-value of Friedman's test of equal solvers; None where the test says nothing.
    pairs : tuple of Pair
        Every pair, the one of the lower mean rank first; none where Friedman's test says nothing.
    sentences : tuple of str
        What the tests say, or why they say nothing.
    """

    mean_ranks: dict[str, float]
    friedman: float | None
    pairs: tuple[Pair, ...]
    sentences: tuple[str, ...]

    @property
    def told_apart(self) -> tuple[Pair, ...]:
        """The pairs of which the corrected p-value is at most `LEVEL`."""
        return tuple(pair for pair in self.pairs if pair.corrected <= LEVEL)


def rank_solvers(values: pd.DataFrame) -> Ranking:
    """Rank solvers on every data set and test the differences.

    Parameters
    ----------
    values : DataFrame
        Rows data sets, columns solvers; lower is better. Infinite values are equal to each other, and the worst.

    References
    ----------
    J. Demsar, "Statistical comparisons of classifiers over multiple data sets", Journal of Machine Learning Research 7
    (2006), 1-30, section 3.2.
    """
    table = _finite(values.to_numpy(dtype=np.float64))
    num_datasets, num_solvers = table.shape
    ranks = stats.rankdata(table, axis=1).mean(axis=0) if num_datasets else np.full(num_solvers, np.nan)
    order = np.argsort(ranks, kind="stable")
    mean_ranks = {str(values.columns[k]): float(ranks[k]) for k in order}
    nothing = _why_no_test(table)
    if nothing is not None:
        return Ranking(mean_ranks, None, (), (nothing,))
    sentences = []
    friedman: float | None = None
    if num_solvers > 2:
        friedman = float(stats.friedmanchisquare(*table.T).pvalue)
        differ = "differ" if friedman <= LEVEL else "cannot be told apart"
        sentences.append(
            f"Friedman's test over {num_datasets} data sets: the {num_solvers} solvers {differ} (p = {friedman:.2g})."
        )
    else:
        sentences.append("With two solvers Wilcoxon's test stands alone.")
    names = [(str(values.columns[a]), str(values.columns[b])) for a, b in combinations(order, 2)]
    p_values = [signed_rank_p(table[:, a] - table[:, b]) for a, b in combinations(order, 2)]
    corrected = holm(p_values)
    pairs = tuple(Pair(a, b, p, c) for (a, b), p, c in zip(names, p_values, corrected, strict=True))
    told_apart = sum(pair.corrected <= LEVEL for pair in pairs)
    sentences.append(
        f"Wilcoxon's signed-rank tests, corrected by Holm, tell {told_apart} of {len(pairs)}"
        f" pair{'s' * (len(pairs) != 1)} apart at the {LEVEL:.0%} level."
    )
    least = 2.0 ** (1 - num_datasets)
    if least * len(pairs) > LEVEL:
        sentences.append(
            f"With {num_datasets} data sets the least p-value that Wilcoxon's test can give is {least:.2g}, and"
            f" {min(1.0, least * len(pairs)):.2g} after the correction: more data sets are needed to tell a pair apart."
        )
    return Ranking(mean_ranks, friedman, pairs, tuple(sentences))


def signed_rank_p(differences: npt.NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if no difference is left.

    Zeros are ranked and then left out, after Pratt (1959).
    """
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


def wins_ties_losses(values: pd.DataFrame) -> dict[tuple[str, str], tuple[int, int, int]]:
    """Count, for every ordered pair of solvers, the runs in which the first ended lower than the other, equal, higher.

    Rows are runs of one data set and seed, columns solvers. Equal values are ties, infinite ones too.
    """
    counts = {}
    for a, b in permutations(values.columns, 2):
        wins, losses = int((values[a] < values[b]).sum()), int((values[a] > values[b]).sum())
        counts[str(a), str(b)] = wins, len(values) - wins - losses, losses
    return counts


def _of_class(problem: str, runs: pd.DataFrame) -> Scores:
    skipped = runs[runs["status"] == "skipped"]
    left_out = {str(name): str(group["reason"].iloc[0]) for name, group in skipped.groupby("solver", sort=False)}
    taken = runs[~runs["solver"].isin(left_out)]
    # The best of all runs, those of solvers left out included.
    best = runs.groupby("dataset", sort=False)["value"].min()
    known = runs.groupby("dataset", sort=False)["best_known"].min()
    references = pd.concat([best, known], axis=1).min(axis=1)
    values = taken.pivot(index=["dataset", "repetition"], columns="solver", values="value")
    values = values.reindex(columns=taken["solver"].unique())
    names = values.index.get_level_values("dataset")
    table = np.array(
        [
            [excess(value, references[name]) for value in row]
            for name, row in zip(names, values.to_numpy(), strict=True)
        ],
        dtype=np.float64,
    ).reshape(values.shape)
    return Scores(problem, references, pd.DataFrame(table, values.index, values.columns), left_out)


def excess(value: float, reference: float) -> float:
    """Return how far a value lies above a reference, as a share of its magnitude; 0 if they are equal up to `ROUNDING`.

    It is infinite if the value is, or if the reference is 0 and the value is not.
    """
    if np.isinf(value):
        return np.inf
    if value == reference:
        return 0.0
    above = (value - reference) / abs(reference) if reference else np.inf
    return 0.0 if abs(above) <= ROUNDING else above


def _finite(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # A difference of two infinite values is no number; the ranks only see the order.
    finite = table[np.isfinite(table)]
    return np.where(np.isfinite(table), table, finite.max(initial=0.0) + 1.0)


def _why_no_test(table: npt.NDArray[np.float64]) -> str | None:
    num_datasets, num_solvers = table.shape
    if num_solvers < 2:
        return "There is one solver only: nothing to rank or test." if num_solvers else "No solver took every data set."
    if num_datasets < 2:
        return "There is one data set only: the ranks are those on it, and no test over data sets can be made."
    if (table == table[:, :1]).all():
        return "All solvers ended at equal values on every data set: there is no difference to test."
    return None
