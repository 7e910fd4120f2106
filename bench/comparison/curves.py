"""Curves of shares, one step curve a solver: performance profiles and distributions of the time to a target."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from moe_search.plotting.palette import MUTED, OKABE_ITO, RULE, STYLE, leave_base_line

DASHES = ("-", "--", ":")
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


def share_steps(
    points: npt.NDArray[np.float64], right: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return where the share of all points that are at most x takes a step up to x = `right`, and to which share.

    Points may be infinite: no share counts them but as part of the total. The share of performance ratios is a
    performance profile; that of times to a target is their distribution.
    """
    finite = np.sort(points[np.isfinite(points)])
    x = np.concatenate([[0.0], finite, [right]])
    return x, np.concatenate([np.arange(len(finite) + 1), [len(finite)]]) / len(points)


def profile_figure(times: pd.DataFrame, styles: Mapping[str, int]) -> Figure:
    """Draw the profiles of times to a target: rows problems, columns solvers, seconds, infinite if it was not reached.

    The styles are numbers of line styles by solver.
    """
    ratios = performance_ratios(times.clip(lower=1e-6).to_numpy())
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axis = figure.subplots()
        finite = ratios[np.isfinite(ratios)]
        right = max(2.0, float(finite.max(initial=1.0))) * 1.5
        for index, name in enumerate(map(str, times.columns)):
            _draw_steps(axis, ratios[:, index], name, styles[name], right)
        axis.set_xlim(1.0, right)
        _finish(axis, "time as a multiple of the fastest solver's", "share of the runs that reached the target")
    return figure


def time_to_target_figure(times: Mapping[str, pd.DataFrame], limit: float, styles: Mapping[str, int]) -> Figure:
    """Draw one panel for each target, whose table of times is as in `profile_figure`, up to the limit of a run.

    References
    ----------
    R. M. Aiex, M. G. C. Resende, C. C. Ribeiro, "TTT plots: a perl program to create time-to-target plots",
    Optimization Letters 1 (2007), 355-366.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.1 * len(times) + 1.6, 3.2), layout="constrained")
        axes = figure.subplots(1, len(times), sharey=True, squeeze=False)[0]
        for (target, table), axis in zip(times.items(), axes, strict=True):
            for name in table.columns:
                _draw_steps(axis, np.maximum(table[name].to_numpy(), SHORTEST), str(name), styles[name], limit)
            axis.set_title(target, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlim(SHORTEST, limit)
            _finish(axis, "seconds", "share of the runs" if axis is axes[0] else "", legend=axis is axes[-1])
    return figure


def _draw_steps(axis: Axes, points: npt.NDArray[np.float64], label: str, style: int, right: float) -> None:
    """Draw the steps of `share_steps`.

    A style number gives a colour and a dash; a solver keeps its own over all figures of a page.
    """
    dash, colour = DASHES[style // len(OKABE_ITO) % len(DASHES)], OKABE_ITO[style % len(OKABE_ITO)]
    axis.step(*share_steps(points, right), dash, where="post", color=colour, linewidth=1.6, label=label)


def _finish(axis: Axes, x_label: str, y_label: str, legend: bool = True) -> None:
    """Set scales, labels and the legend, which stands beside the axes."""
    axis.set_xscale("log")
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(color=RULE, linewidth=0.6)
    leave_base_line(axis)
    axis.tick_params(which="minor", length=0, colors=MUTED)
    if legend:
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
