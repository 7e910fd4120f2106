"""The part of the page about a random search: the best of r trials, and how many a loss takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from moe_search.bench.experiments.best_of_trials import FewerTrials, bootstrap_band, expected_best, fewer_trials
from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO
from moe_search.plotting.table import Table

SHOWN = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Numbers of trials in the table, as far as they were run."""

Losses = Mapping[str, Mapping[str, Sequence[float]]]
"""By gate, then by search, the baseline first: a loss of every trial."""


def budget_table(losses: Losses) -> Table:
    """Return one row a gate and search: the expected best of r trials with its band."""
    most = max(len(values) for by_search in losses.values() for values in by_search.values())
    shown = [r for r in SHOWN if r <= most]
    rows = []
    for gate, by_search in losses.items():
        for search, values in by_search.items():
            curve, (low, high) = expected_best(values), bootstrap_band(values)
            cells = (
                f"{curve[r - 1]:.3f} ({low[r - 1]:.3f} to {high[r - 1]:.3f})" if r <= len(values) else "-"
                for r in shown
            )
            rows.append((f"{gate}, {search}", *cells))
    note = "Expected best loss of r trials, and the middle 90 % over bootstrap samples of the trials."
    return Table("Best of r trials", ("gate, search", *(f"best of {r}" for r in shown)), tuple(rows), note=note)


def fewer_trials_table(losses: Losses) -> Table:
    """Return one row a gate and search but the baseline: the trials that are as good as r of the baseline.

    Parameters
    ----------
    losses : mapping
        Of the same draws under all searches of a gate, in the same order.
    """
    least = min(len(values) for by_search in losses.values() for values in by_search.values())
    shown = [r for r in SHOWN if 1 < r <= least]
    rows = []
    for gate, by_search in losses.items():
        baseline, *searches = by_search
        for search in searches:
            saved = [fewer_trials(by_search[baseline], by_search[search], r) for r in shown]
            rows.append((f"{gate}, {search}", *map(_saving, saved)))
    note = (
        "The least number of trials whose expected best is that of r trials of the gate without search, or better; how "
        "many times fewer these are, and its middle 90 % over bootstrap samples of the draws, the losses of a draw "
        "taken together. 0 times: not even all trials are as good."
    )
    return Table("Trials that are as good as r without", ("gate, search", *map(str, shown)), tuple(rows), note=note)


def _saving(saved: FewerTrials) -> str:
    needed = "none" if saved.needed is None else f"{saved.needed:.1f}"
    return f"{needed}: {saved.times:.2f} times fewer ({saved.low:.2f} to {saved.high:.2f})"


def budget_figure(losses: Losses) -> Figure:
    """Draw the expected best by the number of trials, one panel a gate, the ends of the bands dashed."""
    panels = []
    for gate, by_search in losses.items():
        curves = []
        for colour, (search, values) in zip((MUTED, *OKABE_ITO), by_search.items(), strict=False):
            positions = np.arange(1.0, len(values) + 1)
            curves.append(LossCurve(search, expected_best(values)[None], colour, positions=positions))
            # A label with an underscore stays out of the legend.
            curves.extend(
                LossCurve(f"_{search}", end[None], colour, dashed=True, positions=positions)
                for end in bootstrap_band(values)
            )
        panels.append(LossPanel(gate, tuple(curves)))
    return loss_curves(panels, loss_name="best validation loss", step_name="trials", logarithmic=True)
