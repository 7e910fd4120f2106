"""The colours and the look that all figures share.

The colours stay apart in print and for colour-blind readers (Okabe and Ito 2008, one grey added).
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8A8A8A")
INK = "#1f2933"
MUTED = "#7b8794"
RULE = "#d9dee4"
STYLE: dict[Any, Any] = {"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": RULE}
"""The settings of matplotlib under which figures are drawn."""


def expert_colours(num_experts: int) -> list[str]:
    """Return one colour for each expert; from the ninth on they repeat."""
    return list(islice(cycle(OKABE_ITO), num_experts))


def leave_base_line(axis: Axes) -> None:
    """Take away the frame of the axes but its base line, and the marks of the ticks."""
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0, colors=MUTED)
