"""Validation loss over epochs, one panel for each gate: without search, with search, and a reference."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from moe_search.plotting.palette import RULE, STYLE, leave_base_line


@dataclass(frozen=True)
class LossCurve:
    """The losses of one kind of run.

    Attributes
    ----------
    losses : ndarray of float, shape (seeds, epochs + 1)
        Entry 0 is the loss before the first step.
    positions : ndarray of float, shape (epochs + 1,), optional
        Where the losses stand on the horizontal axis; at 0, 1, 2 ... by default.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import LossCurve
    >>> LossCurve("with search", np.array([[1.0, 0.4, 0.3]]), "#0072B2").losses.shape
    (1, 3)
    """

    label: str
    losses: NDArray[np.float64]
    colour: str
    dashed: bool = False
    positions: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class LossPanel:
    """Curves that share one pair of axes.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import LossCurve, LossPanel
    >>> LossPanel("Top-k", (LossCurve("with search", np.array([[1.0, 0.4, 0.3]]), "#0072B2"),)).title
    'Top-k'
    """

    title: str
    curves: tuple[LossCurve, ...]


def loss_curves(
    panels: Sequence[LossPanel],
    loss_name: str = "validation loss",
    step_name: str = "epoch",
    logarithmic: bool = False,
) -> Figure:
    """Draw mean losses as lines and each seed as a thin line behind, on one common scale.

    The names are the labels of the axes. A logarithmic horizontal axis begins at 1, with 0 beside it.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import LossCurve, LossPanel, loss_curves
    >>> curve = LossCurve("with search", np.array([[1.0, 0.4, 0.3], [1.0, 0.5, 0.3]]), "#0072B2")
    >>> loss_curves([LossPanel("Top-k", (curve,))]).savefig("losses.svg")
    """
    if not panels:
        raise ValueError("panels must hold at least one panel, got none")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(panels), 3.3), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            draw_losses(axis, panel, step_name)
            if logarithmic:
                axis.set_xscale("symlog", linthresh=1)
        axes[0].set_ylabel(loss_name)
    return figure


def draw_losses(axis: Axes, panel: LossPanel, step_name: str = "epoch") -> None:
    """Draw one panel of `loss_curves` on axes."""
    for curve in panel.curves:
        epochs = np.arange(curve.losses.shape[1]) if curve.positions is None else curve.positions
        style = "--" if curve.dashed else "-"
        if len(curve.losses) > 1:
            axis.plot(epochs, curve.losses.T, color=curve.colour, linewidth=0.7, alpha=0.3)
        axis.plot(epochs, curve.losses.mean(axis=0), style, color=curve.colour, linewidth=1.8, label=curve.label)
    axis.set_title(panel.title, loc="left", fontweight="bold", fontsize=10)
    axis.set_xlabel(step_name)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    leave_base_line(axis)
    if panel.curves:
        # Below the panel, where no curve runs through it.
        axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.22), borderaxespad=0)
