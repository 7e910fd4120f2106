"""Which experts run on the same samples."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike

from moe_search.plotting.palette import INK, MUTED, STYLE


def co_activation(counts: ArrayLike) -> Figure:
    """Draw, for every pair of experts, the share of the samples of the row's expert that the column's has too.

    Parameters
    ----------
    counts : array_like, shape (n, n)
        Samples that both experts have, on the diagonal those of an expert, such as the co-activation of a
        `RoutingSummary`. The row of an expert without samples stays empty.

    Raises
    ------
    ValueError
        If the matrix is not square or empty, or an entry is negative or exceeds the diagonal entry of its row.
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
                colour = "white" if share > 0.6 else INK
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
