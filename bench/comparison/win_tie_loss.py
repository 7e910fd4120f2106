"""How often a solver ended lower than another, equal to it, or higher."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class WinTieLoss:
    """Counts of runs, one solver against another."""

    wins: int
    ties: int
    losses: int


def win_tie_loss(values: pd.DataFrame) -> dict[tuple[str, str], WinTieLoss]:
    """Count for every ordered pair of solvers.

    Parameters
    ----------
    values : DataFrame
        Rows runs (one data set and seed), columns solvers; lower is better. Equal values are ties, infinite ones too.
    """
    counts = {}
    for a in values.columns:
        for b in values.columns:
            if a != b:
                wins, losses = int((values[a] < values[b]).sum()), int((values[a] > values[b]).sum())
                counts[str(a), str(b)] = WinTieLoss(wins, len(values) - wins - losses, losses)
    return counts
