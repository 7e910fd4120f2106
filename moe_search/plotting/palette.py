"""The colours and the look that all figures share.

The colours stay apart in print and for colour-blind readers (Okabe and Ito 2008, one grey added).
"""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#8A8A8A")
LINES = tuple(colour for colour in OKABE_ITO if colour != "#F0E442")
"""Those that a thin line can have: yellow is not seen on white."""

INK = "#1f2933"
MUTED = "#616e7c"
RULE = "#d9dee4"
ON_LIGHT = "#000000"
"""Text on a light fill, which is light on a dark page too."""

PAGE_COLOURS = {INK: "--ink", MUTED: "--muted", RULE: "--rule"}
"""The variables of the report's page that stand for a colour of text and rules, since its dark mode has others."""

STYLE: dict[Any, Any] = {"font.size": 9, "axes.edgecolor": RULE} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK
)
"""The settings of matplotlib under which figures are drawn."""


def expert_colours(num_experts: int) -> list[str]:
    """Return one colour for each expert; from the ninth on they repeat."""
    return list(islice(cycle(OKABE_ITO), num_experts))


def leave_base_line(axis: Axes) -> None:
    """Take away the frame of the axes but its base line, and the marks of the ticks."""
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0, colors=MUTED)
