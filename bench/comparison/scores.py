"""What the statistics compare: how far each run ended above the best value known of its data set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from moe_search.bench.comparison.comparison import Comparison
from moe_search.bench.comparison.objective import excess

ROUNDING = 1e-9
"""Values that differ by less, as a share of the best known one, are equal."""


@dataclass(frozen=True, eq=False)
class Scores:
    """The runs of the solvers that took every data set of a problem class.

    Attributes
    ----------
    problem : str
        The class.
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

    Parameters
    ----------
    comparison : Comparison
    scores : Scores
        Of one problem class.
    target : float
        As a share of the reference's magnitude.

    Returns
    -------
    DataFrame
        With the rows and columns of ``scores.excess``.
    """
    times = pd.DataFrame(np.inf, index=scores.excess.index, columns=scores.excess.columns)
    curves = comparison.curves[comparison.curves["solver"].isin(scores.solvers)]
    for (dataset, solver, repetition), curve in curves.groupby(["dataset", "solver", "repetition"]):
        if (dataset, repetition) not in times.index:
            continue
        reference = scores.references[dataset]
        reached = curve[[_excess(value, reference) <= target for value in curve["value"]]]
        if len(reached):
            times.loc[(dataset, repetition), solver] = reached["seconds"].min()
    return times


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
            [_excess(value, references[name]) for value in row]
            for name, row in zip(names, values.to_numpy(), strict=True)
        ],
        dtype=np.float64,
    ).reshape(values.shape)
    return Scores(problem, references, pd.DataFrame(table, values.index, values.columns), left_out)


def _excess(value: float, reference: float) -> float:
    if np.isinf(value):
        return np.inf
    above = excess(value, reference)
    return 0.0 if abs(above) <= ROUNDING else above
