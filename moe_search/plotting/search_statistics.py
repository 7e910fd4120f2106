"""What `moe_search.analysis` tells of a search: distributions over runs, values by distance, how a walk forgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike

from moe_search.plotting.palette import LINES, MUTED, RULE, STYLE, leave_base_line

if TYPE_CHECKING:
    from scipy.stats._survival import EmpiricalDistributionFunction

DASHES = ("-", "--", ":")


def distribution_curves(
    distributions: Mapping[str, EmpiricalDistributionFunction], x_name: str = "seconds", logarithmic: bool = True
) -> Figure:
    """Draw empirical distributions, such as those of run times, as steps from 0 to 100 % of the runs.

    Parameters
    ----------
    distributions : mapping of str to scipy.stats EmpiricalDistributionFunction
        By the names of the solvers; see `run_time_distribution` and `solution_quality_distribution`.
    x_name : str, default "seconds"
        The label of the horizontal axis.
    logarithmic : bool, default True
        Whether that axis is logarithmic. Run times are exponentially distributed where restarts would not help.

    Examples
    --------
    >>> from scipy import stats
    >>> from moe_search.plotting import distribution_curves
    >>> figure = distribution_curves({"tabu search": stats.ecdf([0.1, 0.4, 0.2]).cdf})
    >>> figure.savefig("run_times.svg")
    """
    if not distributions:
        raise ValueError("distributions must hold at least one distribution, got none")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axis = figure.subplots()
        ends = [float(each.quantiles[-1]) for each in distributions.values()]
        for number, (name, each) in enumerate(distributions.items()):
            draw_distribution(axis, each, max(ends), label=name, **line_style(number))
        axis.set_xlabel(x_name)
        axis.set_ylabel("share of the runs")
        if logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(NullFormatter())
        _finish(axis)
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
    return figure


def draw_distribution(axis: Axes, distribution: EmpiricalDistributionFunction, right: float, **line: Any) -> None:
    """Draw a distribution on axes, as steps that go on to `right`."""
    known = distribution.quantiles <= right
    x = np.concatenate([[0.0], distribution.quantiles[known], [right]])
    share = np.concatenate([[0.0], distribution.probabilities[known]])
    axis.step(x, np.append(share, share[-1]), where="post", linewidth=1.6, **line)
    axis.set_ylim(-0.02, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))


def line_style(number: int) -> dict[str, Any]:
    """Return the colour and the dashes of a line: each number has its own, up to three times as many as colours."""
    return {"color": LINES[number % len(LINES)], "linestyle": DASHES[number // len(LINES) % len(DASHES)]}


def fitness_distances(values: ArrayLike, distances: ArrayLike) -> Figure:
    """Draw the values of solutions over their distances from the best, as dots.

    Parameters
    ----------
    values, distances : array_like, shape (solutions,)
        As in `FitnessDistance`.

    Examples
    --------
    >>> from moe_search.plotting import fitness_distances
    >>> fitness_distances(values=[10, 12, 15], distances=[0, 4, 5]).savefig("fitness_distance.svg")
    """
    fitness, away = np.asarray(values, dtype=np.float64), np.asarray(distances, dtype=np.float64)
    if fitness.ndim != 1 or fitness.shape != away.shape or not fitness.size:
        raise ValueError(
            f"values and distances must have one shape (solutions,), at least one, got {fitness.shape} and {away.shape}"
        )
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.2), layout="constrained")
        axis = figure.subplots()
        axis.plot(away, fitness, "o", color=LINES[0], alpha=0.5, markersize=4, markeredgewidth=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("slots with another expert than under the best")
        axis.set_ylabel("value")
        _finish(axis)
    return figure


def walk_autocorrelations(correlations: Mapping[str, ArrayLike]) -> Figure:
    """Draw the autocorrelation of walks over the lag; a line marks 1 / e, where it is at the correlation length.

    Parameters
    ----------
    correlations : mapping of str to array_like, shape (lags + 1,)
        By the names of the problems; see `autocorrelation`.

    Examples
    --------
    >>> from moe_search.plotting import walk_autocorrelations
    >>> walk_autocorrelations({"n = 20": [1.0, 0.8, 0.6, 0.5]}).savefig("autocorrelation.svg")
    """
    if not correlations:
        raise ValueError("correlations must hold at least one walk, got none")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.2), layout="constrained")
        axis = figure.subplots()
        for number, (name, each) in enumerate(correlations.items()):
            axis.plot(np.asarray(each), label=name, linewidth=1.6, **line_style(number))
        axis.axhline(np.exp(-1), color=MUTED, linewidth=1.0, linestyle="--", label="1 / e")
        axis.set_xlabel("steps between")
        axis.set_ylabel("autocorrelation")
        _finish(axis)
        figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure


def _finish(axis: Axes) -> None:
    axis.grid(color=RULE, linewidth=0.6)
    axis.set_axisbelow(True)
    leave_base_line(axis)
