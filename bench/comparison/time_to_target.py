"""Time-to-target distributions: the share of runs that reached a target within a time."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from moe_search.bench.comparison.curves_style import draw_steps, finish
from moe_search.plotting.palette import INK, RULE

SHORTEST = 1e-4


def share_reached(times: npt.ArrayLike, seconds: float) -> npt.NDArray[np.float64]:
    """Return for each solver the share of runs that reached the target within `seconds`.

    Parameters
    ----------
    times : array_like, shape (runs, solvers)
        Seconds to the target; infinite if it was not reached.
    seconds : float

    References
    ----------
    R. M. Aiex, M. G. C. Resende, C. C. Ribeiro, "TTT plots: a perl program to create time-to-target plots",
    Optimization Letters 1 (2007), 355-366.
    """
    return (np.asarray(times, dtype=np.float64) <= seconds).mean(axis=0)


def time_to_target_figure(times: Mapping[str, pd.DataFrame], limit: float, styles: Mapping[str, int]) -> Figure:
    """Draw one panel for each target.

    Parameters
    ----------
    times : mapping of str to DataFrame
        By the words for the target: rows runs, columns solvers, seconds (infinite if it was not reached).
    limit : float
        Seconds a run may take.
    styles : mapping of str to int
        The number of the line style of every solver.
    """
    with mpl.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": RULE}):
        figure = Figure(figsize=(3.1 * len(times) + 1.6, 3.2), layout="constrained")
        axes = figure.subplots(1, len(times), sharey=True, squeeze=False)[0]
        for (target, table), axis in zip(times.items(), axes, strict=True):
            for name in table.columns:
                draw_steps(axis, np.maximum(table[name].to_numpy(), SHORTEST), str(name), styles[name], limit)
            axis.set_title(target, loc="left", fontweight="bold", fontsize=10)
            axis.set_xlim(SHORTEST, limit)
            last = axis is axes[-1]
            finish(axis, "seconds", "share of the runs" if axis is axes[0] else "", legend=last)
    return figure
