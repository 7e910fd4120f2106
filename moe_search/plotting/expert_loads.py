"""Load and importance of every expert, side by side."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from moe_search.plotting.palette import MUTED, OKABE_ITO, RULE, STYLE, leave_base_line


def expert_loads(load: ArrayLike, importance: ArrayLike) -> Figure:
    """Draw the share of every expert in the load and in the importance as pairs of bars; a line marks an even share.

    Parameters
    ----------
    load, importance : array_like, shape (n,)
        Not negative, such as those of a `RoutingSummary`.

    Raises
    ------
    ValueError
        If there is no expert, the lengths differ, a number is negative, or all are 0.
    """
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
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(3.4, 1.2 + 0.32 * min(n, 40)), 2.7), layout="constrained")
        axis = figure.subplots()
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
        figure.legend(frameon=False, loc="outside upper left", ncols=3, fontsize=8)
    return figure
