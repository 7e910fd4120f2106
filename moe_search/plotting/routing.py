"""How the samples are shared out: load and importance of every expert, and which experts run on the same samples."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from moe_search.plotting.palette import MUTED, OKABE_ITO, ON_LIGHT, RULE, STYLE, leave_base_line


def expert_loads(load: ArrayLike, importance: ArrayLike) -> Figure:
    """Draw the share of every expert in the load and in the importance as pairs of bars; a line marks an even share.

    Parameters
    ----------
    load, importance : array_like, shape (n,)
        Not negative, such as those of a `RoutingSummary`.

    Examples
    --------
    >>> from moe_search.plotting import expert_loads
    >>> expert_loads(load=[30, 10, 20], importance=[25.0, 12.0, 23.0]).savefig("loads.svg")
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(3.4, 1.2 + 0.32 * min(np.asarray(load).size, 40)), 2.7), layout="constrained")
        draw_expert_loads(figure.subplots(), load, importance)
        figure.legend(frameon=False, loc="outside upper left", ncols=3, fontsize=8)
    return figure


def draw_expert_loads(axis: Axes, load: ArrayLike, importance: ArrayLike) -> None:
    """Draw what `expert_loads` does on axes, but for the legend."""
    amounts = [np.asarray(values, dtype=np.float64) for values in (load, importance)]
    for name, values in zip(("load", "importance"), amounts, strict=True):
        if values.ndim != 1 or values.shape != amounts[0].shape or not values.size:
            raise ValueError(
                "load and importance must have one shape (n,), at least one expert, "
                f"got {amounts[0].shape} and {amounts[1].shape}"
            )
        if not values.min() >= 0 or not values.sum() > 0:
            raise ValueError(f"{name} must not be negative, nor 0 for all experts, got {values.tolist()}")
    n = amounts[0].size
    for values, offset, label, colour in zip(amounts, (-0.2, 0.2), ("load", "importance"), OKABE_ITO, strict=False):
        axis.bar(np.arange(n) + offset, values / values.sum(), 0.38, color=colour, label=label)
    axis.axhline(1 / n, color=MUTED, linewidth=1.0, linestyle="--", label="even share")
    axis.set_xlabel("expert")
    axis.set_ylabel("share")
    axis.set_xlim(-0.6, n - 0.4)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    axis.set_axisbelow(True)
    leave_base_line(axis)


def co_activation(counts: ArrayLike) -> Figure:
    """Draw, for every pair of experts, the share of the samples of the row's expert that the column's has too.

    Parameters
    ----------
    counts : array_like, shape (n, n)
        Samples that both experts have, on the diagonal those of an expert, such as the co-activation of a
        `RoutingSummary`. The row of an expert without samples stays empty.

    Examples
    --------
    >>> from moe_search.plotting import co_activation
    >>> co_activation([[30, 5], [5, 20]]).savefig("pairs.svg")
    """
    matrix = np.asarray(counts, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"counts must be square, at least one expert, got shape {matrix.shape}")
    own = np.diagonal(matrix)[:, None]
    if not matrix.min() >= 0 or (matrix > own).any():
        raise ValueError("counts must lie between 0 and the diagonal entry of their row, got others")
    shares = np.divide(matrix, own, out=np.full_like(matrix, np.nan), where=own > 0)
    n = len(matrix)
    side = max(2.6, min(0.32 * n, 8.0))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(side + 1.3, side + 0.3), layout="compressed")
        axis = figure.subplots()
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        if n <= 16:
            for row, column in np.argwhere(np.isfinite(shares)).tolist():
                share = shares[row, column]
                colour = "white" if share > 0.6 else ON_LIGHT
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7)
        axis.set_xlabel("also at expert")
        axis.set_ylabel("samples of expert")
        for ticks in (axis.xaxis, axis.yaxis):
            ticks.set_major_locator(MaxNLocator(nbins=16, integer=True))
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, colors=MUTED)
        bar = figure.colorbar(image, ax=axis, format=PercentFormatter(1.0, decimals=0), shrink=0.9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, colors=MUTED)
    return figure
