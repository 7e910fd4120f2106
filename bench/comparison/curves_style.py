"""Step curves of shares, one a solver, that stay apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from moe_search.plotting.palette import MUTED, OKABE_ITO, RULE

DASHES = ("-", "--", ":")


def draw_steps(axis: Axes, points: npt.NDArray[np.float64], label: str, style: int, right: float) -> None:
    """Draw the share of all points that are at most x, up to x = `right`; points may be infinite.

    A style number gives a colour and a dash; a solver keeps its own over all figures of a page.
    """
    finite = np.sort(points[np.isfinite(points)])
    x = np.concatenate([[0.0], finite, [right]])
    y = np.concatenate([np.arange(len(finite) + 1), [len(finite)]]) / len(points)
    dash = DASHES[style // len(OKABE_ITO) % len(DASHES)]
    axis.step(x, y, dash, where="post", color=OKABE_ITO[style % len(OKABE_ITO)], linewidth=1.6, label=label)


def finish(axis: Axes, x_label: str, y_label: str, legend: bool = True) -> None:
    """Set scales, labels and the legend, which stands beside the axes."""
    axis.set_xscale("log")
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(color=RULE, linewidth=0.6)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0, which="both", colors=MUTED)
    if legend:
        axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
