"""Which expert sits on which slot, at several moments of one training run."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from numpy.typing import NDArray

from moe_search.plotting.palette import MUTED, ON_LIGHT, STYLE, expert_colours


@dataclass(frozen=True)
class NamedMap:
    """One row of the picture: the expert of every slot of one selector, shape (m,).

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import NamedMap
    >>> NamedMap("after search", np.array([2, 0, 1])).label
    'after search'
    """

    label: str
    experts: NDArray[np.int64]


@dataclass(frozen=True)
class MapPanel:
    """The rows of one run.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import MapPanel, NamedMap
    >>> MapPanel("Top-k", (NamedMap("start", np.arange(3)), NamedMap("after search", np.array([2, 0, 1])))).title
    'Top-k'
    """

    title: str
    rows: tuple[NamedMap, ...]


def expert_maps(panels: Sequence[MapPanel], num_experts: int) -> Figure:
    """Draw expert maps as rows of coloured, numbered cells, a column for each slot; the rows of a panel are as long.

    Examples
    --------
    >>> import numpy as np
    >>> from moe_search.plotting import MapPanel, NamedMap, expert_maps
    >>> rows = NamedMap("start", np.arange(3)), NamedMap("after search", np.array([2, 0, 1]))
    >>> expert_maps([MapPanel("Top-k", rows)], num_experts=3).savefig("maps.svg")
    """
    if not panels or any(not panel.rows for panel in panels):
        raise ValueError("panels must hold at least one panel, each with at least one row")
    for panel in panels:
        lengths = [len(row.experts) for row in panel.rows]
        if len(set(lengths)) > 1:
            raise ValueError(f"rows of a panel must have the same number of slots, got {lengths} in {panel.title!r}")
        for row in panel.rows:
            if min(row.experts, default=0) < 0 or max(row.experts, default=0) >= num_experts:
                raise ValueError(
                    f"rows must hold experts 0 .. {num_experts - 1}, got {min(row.experts)} .. {max(row.experts)} "
                    f"in {row.label!r}"
                )
    colours = expert_colours(num_experts)
    height = 0.55 + 0.33 * max(len(panel.rows) for panel in panels)
    # A cell is as wide as the number in it.
    width = max(3.4, 0.26 * max(len(row.experts) for panel in panels for row in panel.rows))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * len(panels), height), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, axis in zip(panels, axes, strict=True):
            slots = len(panel.rows[0].experts)
            for line, row in enumerate(panel.rows):
                for slot, expert in enumerate(row.experts.tolist()):
                    axis.add_patch(
                        FancyBboxPatch(
                            (slot + 0.12, line + 0.14),
                            0.76,
                            0.72,
                            boxstyle="round,pad=0,rounding_size=0.12",
                            facecolor=colours[expert],
                            edgecolor="none",
                        )
                    )
                    axis.text(slot + 0.5, line + 0.5, str(expert), ha="center", va="center", color=_on(colours[expert]))
            axis.set_xlim(0, slots)
            axis.set_ylim(len(panel.rows), 0)
            axis.set_yticks(np.arange(len(panel.rows)) + 0.5, [row.label for row in panel.rows])
            axis.set_xticks([])
            axis.set_xlabel("slots, left to right", color=MUTED, fontsize=8)
            axis.set_title(panel.title, loc="left", fontweight="bold", fontsize=10)
            axis.spines[:].set_visible(False)
            axis.tick_params(length=0)
    return figure


def _on(colour: str) -> str:
    """Text colour that can be read on a fill, whatever the colour of the page."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return ON_LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
