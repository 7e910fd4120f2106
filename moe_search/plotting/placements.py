"""How evenly devices are loaded, before and after experts are placed anew."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from moe_search.plotting.palette import MUTED, OKABE_ITO, RULE, STYLE, leave_base_line


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


def _finish(figure: Figure) -> None:
    (axis,) = figure.axes
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", color=RULE, linewidth=0.6)
    axis.set_axisbelow(True)
    leave_base_line(axis)
    figure.legend(frameon=False, loc="outside upper left", ncols=4, fontsize=8)
