"""Mean ranks of solvers over data sets, with Friedman's test and Wilcoxon's for every pair, corrected by Holm."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from moe_search.bench.experiments.paired_statistics import holm

LEVEL = 0.05


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
        From the best solver (least rank) on; equal values share the mean of their ranks.
    num_datasets : int
    friedman : float or None
        The p-value of Friedman's test of equal solvers; None where the test says nothing.
    pairs : tuple of Pair
        Every pair, the one of the lower mean rank first; none where Friedman's test says nothing.
    sentences : tuple of str
        What the tests say, or why they say nothing.
    """

    mean_ranks: dict[str, float]
    num_datasets: int
    friedman: float | None
    pairs: tuple[Pair, ...]
    sentences: tuple[str, ...]


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
        return Ranking(mean_ranks, num_datasets, None, (), (nothing,))
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
    return Ranking(mean_ranks, num_datasets, friedman, pairs, tuple(sentences))


def signed_rank_p(differences: npt.NDArray[np.float64]) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test; 1 if no difference is left.

    Zeros are ranked and then left out, after Pratt (1959).
    """
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="pratt").pvalue)


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
