"""How evenly devices are loaded, before and after experts are placed anew, and what that takes."""

from collections.abc import Mapping, Sequence
from itertools import cycle, repeat

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from moe_search.plotting.palette import LINES, MUTED, OKABE_ITO, RULE, STYLE, leave_base_line

# Below this part of all slots the axis of migrations is linear, so that none at all has a place on it.
LINEAR_TO = 1e-3


def device_loads(**loads: ArrayLike) -> Figure:
    """Draw the loads of the devices of all layers, in multiples of the layer's mean, from the most loaded one down.

    Parameters
    ----------
    **loads : array_like, shape (layers, devices)
        By a name for the legend, such as ``before`` and ``after``. A band holds all layers, a line is their mean.

    Examples
    --------
    >>> from moe_search.plotting import device_loads
    >>> device_loads(before=[[4, 2], [3, 3]], after=[[3, 3], [3, 3]]).savefig("devices.svg")
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axis = figure.subplots()
        for (name, given), colour in zip(loads.items(), OKABE_ITO, strict=False):
            values = np.atleast_2d(np.asarray(given, dtype=np.float64))
            falling = np.sort(values / values.mean(axis=1, keepdims=True), axis=1)[:, ::-1]
            places = np.arange(1, falling.shape[1] + 1)
            axis.fill_between(places, falling.min(axis=0), falling.max(axis=0), color=colour, alpha=0.18, linewidth=0)
            axis.plot(places, falling.mean(axis=0), color=colour, label=name)
        axis.axhline(1.0, color=MUTED, linewidth=1.0, linestyle="--", label="even")
        axis.set_xlabel("devices of a layer, most loaded first")
        axis.set_ylabel("load over mean")
        _finish(figure)
    return figure


def layer_balance(best: ArrayLike, **balancedness: ArrayLike) -> Figure:
    """Draw the balancedness of every layer, and the best that its bound allows.

    Parameters
    ----------
    best : array_like, shape (layers,)
        The mean load over the bound of the largest.
    **balancedness : array_like, shape (layers,)
        The mean load over the largest, by a name for the legend.

    Examples
    --------
    >>> from moe_search.plotting import layer_balance
    >>> layer_balance([1.0, 0.9], before=[0.7, 0.6], after=[0.99, 0.9]).savefig("layers.svg")
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axis = figure.subplots()
        for (name, values), colour in zip(balancedness.items(), OKABE_ITO, strict=False):
            axis.plot(np.arange(np.size(values)), values, "o", color=colour, markersize=4, label=name)
        axis.plot(np.arange(np.size(best)), best, "_", color=MUTED, markersize=9, label="bound")
        axis.set_xlabel("layer")
        axis.set_ylabel("mean load over largest")
        _finish(figure)
    return figure


def layer_migrations(migrations: ArrayLike) -> Figure:
    """Draw how many experts migrate in every layer.

    Parameters
    ----------
    migrations : array_like of int, shape (layers,)
        How many.

    Examples
    --------
    >>> from moe_search.plotting import layer_migrations
    >>> layer_migrations([2, 0, 3]).savefig("migrations.svg")
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.4), layout="constrained")
        axis = figure.subplots()
        axis.bar(np.arange(np.size(migrations)), np.asarray(migrations), color=OKABE_ITO[0])
        axis.set_xlabel("layer")
        axis.set_ylabel("migrations")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        _finish(figure, legend=False)
    return figure


def over_rebalances(ylabel: str, **values: ArrayLike) -> Figure:
    """Draw what came of some policies at every rebalance.

    Parameters
    ----------
    ylabel : str
        What is drawn.
    **values : array_like, shape (rebalances,)
        It, by a name for the legend.

    Examples
    --------
    >>> from moe_search.plotting import over_rebalances
    >>> over_rebalances("balance", static=[0.9, 0.8, 0.7], search=[0.9, 0.88, 0.91]).savefig("balance.svg")
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.9), layout="constrained")
        axis = figure.subplots()
        for (name, given), colour in zip(values.items(), cycle(LINES), strict=False):
            places = np.arange(1, np.size(given) + 1)
            axis.plot(places, np.asarray(given), color=colour, linewidth=1.2, label=name)
        axis.set_xlabel("rebalance")
        axis.set_ylabel(ylabel)
        _finish(figure)
    return figure


def trade_off(**families: Sequence[tuple[str, float, float]]) -> Figure:
    """Draw the balance of policies against their migrations, of which the axis is logarithmic but for its beginning.

    Parameters
    ----------
    **families : sequence of (str, float, float)
        Policies by a name for the legend, alike but for a limit: that limit, the part of all slots whose experts
        migrate at a rebalance, and the balance.

    Examples
    --------
    >>> from moe_search.plotting import trade_off
    >>> trade_off(EPLB=[("", 0.84, 0.91)], tolerance=[("1%", 0.08, 0.9), ("5%", 0.02, 0.89)]).savefig("trade.svg")
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        draw_trade_off(figure.subplots(), families)
        figure.legend(frameon=False, loc="outside upper left", ncols=4, fontsize=8)
    return figure


def draw_trade_off(axis: Axes, families: Mapping[str, Sequence[tuple[str, float, float]]]) -> None:
    """Draw what `trade_off` does on axes, but for the legend."""
    # More migrations balance better: above and left of such a line is free, and below and right. The limits of one
    # family, the strictest first, take turns, so that close ones stand apart; of several families, each has a side.
    above, below, far_below = ((-4, 4), "right"), ((4, -11), "left"), ((0, -16), "center")
    labelled = [name for name, points in families.items() if any(label for label, *_ in points)]
    sides = [cycle((below, above))] if len(labelled) == 1 else map(repeat, cycle((above, below, far_below)))
    sides_of = dict(zip(labelled, sides, strict=False))
    for (name, points), colour in zip(families.items(), cycle(LINES), strict=False):
        labels, moved, balance = zip(*points, strict=True)
        axis.plot(moved, balance, "o-", color=colour, markersize=4.5, linewidth=1.0, label=name)
        if name in sides_of:
            for label, x, y, (offset, side) in zip(labels, moved, balance, sides_of[name], strict=False):
                axis.annotate(label, (x, y), offset, textcoords="offset points", ha=side, fontsize=8, color=colour)
    axis.set_xscale("symlog", linthresh=LINEAR_TO)
    axis.set_xlim(-LINEAR_TO / 4, 1.4)
    axis.xaxis.set_major_locator(FixedLocator([0.0, 0.001, 0.01, 0.1, 1.0]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.12)
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("slots whose experts migrate at a rebalance")
    axis.set_ylabel("balance on the next window")
    leave_base_line(axis)


def _finish(figure: Figure, legend: bool = True) -> None:
    (axis,) = figure.axes
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    axis.set_axisbelow(True)
    leave_base_line(axis)
    if legend:
        figure.legend(frameon=False, loc="outside upper left", ncols=4, fontsize=8)
