"""Step curves, one a solver: the excess over time, performance profiles and distributions of the time to a target."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from moe_search.analysis.run_times import censored_distribution
from moe_search.plotting.palette import MUTED, RULE, STYLE, leave_base_line
from moe_search.plotting.search_statistics import draw_distribution, line_style

if TYPE_CHECKING:
    from scipy.stats._survival import EmpiricalDistributionFunction

EXCESS_TICKS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
SHORTEST = 1e-4
"""Seconds at which the curves of times begin."""


def performance_ratios(costs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the costs as multiples of the least cost on the same problem; infinite where none solved it.

    Costs of shape (problems, solvers) are positive, and infinite where a solver did not solve the problem.

    References
    ----------
    E. D. Dolan and J. J. More, "Benchmarking optimization software with performance profiles", Mathematical Programming
    91 (2002), 201-213, section 2.
    """
    array = np.asarray(costs, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"costs must have shape (problems, solvers), got shape {array.shape}")
    if not (array > 0).all():
        raise ValueError(f"costs must be positive, got {array.min()}")
    least = array.min(axis=1, keepdims=True, initial=np.inf)
    return np.where(np.isfinite(array), array / np.where(np.isfinite(least), least, 1.0), np.inf)


def times_distribution(points: npt.NDArray[np.float64], right: float) -> EmpiricalDistributionFunction:
    """Return the distribution of numbers, of which infinite ones are above `right`.

    That of performance ratios is a performance profile; that of times to a target a run-time distribution.
    """
    finite = np.isfinite(points)
    return censored_distribution(points[finite], np.full((~finite).sum(), right))


def excess_figure(excess: Mapping[str, pd.DataFrame], styles: Mapping[str, int]) -> Figure:
    """Draw one panel for each title: rows seconds, columns solvers, the excess by then, infinite before an answer.

    The styles are numbers of line styles by solver; a solver keeps its own over all figures of a page.
    """
    figure, axes = _panels(excess)
    for (title, table), axis in zip(excess.items(), axes, strict=True):
        for name in map(str, table.columns):
            axis.step(table.index, table[name], where="post", linewidth=1.6, label=name, **line_style(styles[name]))
        axis.set_yscale("symlog", linthresh=EXCESS_TICKS[1], linscale=0.4)
        axis.set_ylim(-EXCESS_TICKS[1] / 10, max(EXCESS_TICKS[2], float(_finite(table).max(initial=0.0))))
        axis.set_xlim(table.index[0], table.index[-1])
        axis.yaxis.set_major_locator(FixedLocator(EXCESS_TICKS))
        axis.yaxis.set_minor_locator(FixedLocator([]))
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
        _finish(axis, title, "seconds", "median excess")
    return _with_legend(figure, axes)


def profile_figure(times: Mapping[str, pd.DataFrame], styles: Mapping[str, int]) -> Figure:
    """Draw one panel of performance profiles for each title, and the styles as in `excess_figure`.

    The tables hold times to a target: rows problems, columns solvers, seconds, infinite if it was not reached.
    """
    figure, axes = _panels(times)
    for (title, table), axis in zip(times.items(), axes, strict=True):
        ratios = performance_ratios(table.clip(lower=1e-6).to_numpy())
        right = max(2.0, float(_finite(ratios).max(initial=1.0))) * 1.5
        for index, name in enumerate(map(str, table.columns)):
            _draw_shares(axis, ratios[:, index], name, styles[name], right)
        axis.set_xlim(1.0, right)
        _finish(axis, title, "time as a multiple of the fastest solver's", "share of the runs")
    return _with_legend(figure, axes)


def time_to_target_figure(times: Mapping[str, pd.DataFrame], limit: float, styles: Mapping[str, int]) -> Figure:
    """Draw one panel for each target, whose table of times is as in `profile_figure`, up to the limit of a run.

    References
    ----------
    R. M. Aiex, M. G. C. Resende, C. C. Ribeiro, "TTT plots: a perl program to create time-to-target plots",
    Optimization Letters 1 (2007), 355-366.
    """
    figure, axes = _panels(times)
    for (target, table), axis in zip(times.items(), axes, strict=True):
        for name in map(str, table.columns):
            _draw_shares(axis, np.maximum(table[name].to_numpy(), SHORTEST), name, styles[name], limit)
        axis.set_xlim(SHORTEST, limit)
        _finish(axis, target, "seconds", "share of the runs")
    return _with_legend(figure, axes)


def _panels(titles: Collection[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each title."""
    columns = _columns(len(titles))
    rows = -(-len(titles) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.8 + 3.2 * columns, 2.8 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes[: len(titles)]


def _columns(panels: int) -> int:
    """Return how many panels stand in a row: up to three in one, or two in several."""
    return panels if panels <= 3 else 2


def _draw_shares(axis: Axes, points: npt.NDArray[np.float64], label: str, style: int, right: float) -> None:
    """Draw the steps of `times_distribution`."""
    draw_distribution(axis, times_distribution(points, right), right, label=label, **line_style(style))


def _finite(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _finish(axis: Axes, title: str, x_label: str, y_label: str) -> None:
    """Set the scale of the times and the labels."""
    axis.set_xscale("log")
    axis.set_title(title, loc="left", fontweight="bold", fontsize=10)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(color=RULE, linewidth=0.6)
    leave_base_line(axis)
    axis.tick_params(which="minor", length=0, colors=MUTED)


def _with_legend(figure: Figure, axes: list[Axes]) -> Figure:
    """Add one legend below all panels, in which every solver stands once; two names fit below a panel."""
    lines = {str(line.get_label()): line for axis in axes for line in axis.get_lines()}
    with mpl.rc_context(STYLE):
        ncols = 2 * _columns(len(axes))
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=ncols, frameon=False)
    return figure
