"""The part of the page about a random search: the best of r trials, and how many a loss takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from moe_search.experiments.best_of_trials import bootstrap_band, expected_best, trials_needed
from moe_search.plotting.loss_curves import LossCurve, LossPanel, loss_curves
from moe_search.plotting.palette import MUTED, OKABE_ITO
from moe_search.plotting.table import Table

SHOWN = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Numbers of trials in the table, as far as they were run."""

Losses = Mapping[str, Mapping[str, Sequence[float]]]
"""By gate, then by search, the baseline first: a loss of every trial."""


def budget_table(losses: Losses) -> Table:
    """Return one row a gate and search: the expected best of r trials with its band, and the trials needed.

    The last column is the least r whose expected best reaches that of all trials of the baseline.
    """
    most = max(len(values) for by_search in losses.values() for values in by_search.values())
    shown = [r for r in SHOWN if r <= most]
    rows = []
    for gate, by_search in losses.items():
        baseline = next(iter(by_search.values()))
        target = min(baseline)
        for search, values in by_search.items():
            curve, (low, high) = expected_best(values), bootstrap_band(values)
            cells = (
                f"{curve[r - 1]:.3f} ({low[r - 1]:.3f} to {high[r - 1]:.3f})" if r <= len(values) else "-"
                for r in shown
            )
            needed = trials_needed(values, target)
            rows.append((f"{gate}, {search}", *cells, f"more than {len(values)}" if needed is None else str(needed)))
    columns = ("gate, search", *(f"best of {r}" for r in shown), "trials to the best without")
    note = (
        "Expected best loss of r trials, and the middle 90 % over bootstrap samples of the trials. Last column: the "
        "least r whose expected best is as good as the best of all trials of the gate's first row."
    )
    return Table("Best of r trials", columns, tuple(rows), note=note)


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
