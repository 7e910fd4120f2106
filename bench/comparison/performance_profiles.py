"""Performance profiles: on what share of the problems a solver is within a factor of the fastest."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from moe_search.bench.comparison.curves_style import draw_steps, finish
from moe_search.plotting.palette import INK, RULE


def performance_ratios(costs: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the costs as multiples of the least cost on the same problem.

    Parameters
    ----------
    costs : array_like, shape (problems, solvers)
        Positive; infinite where a solver did not solve the problem.

    Returns
    -------
    ndarray, shape (problems, solvers)
        Infinite for every solver on a problem that none solved.

    Raises
    ------
    ValueError
        If a cost is not positive.

    References
    ----------
    E. D. Dolan and J. J. More, "Benchmarking optimization software with performance profiles", Mathematical Programming
    91 (2002), 201-213, section 2.
    """
    array = np.asarray(costs, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"costs must have shape (problems, solvers), got shape {array.shape}")
    if not (array > 0).all():
        raise ValueError(f"costs must be positive, got {array.min()}")
    least = array.min(axis=1, keepdims=True, initial=np.inf)
    return np.where(np.isfinite(array), array / np.where(np.isfinite(least), least, 1.0), np.inf)


def profile(ratios: npt.ArrayLike, factor: float) -> npt.NDArray[np.float64]:
    """Return for each solver the share of the problems on which its ratio is at most `factor`, shape (solvers,)."""
    return (np.asarray(ratios, dtype=np.float64) <= factor).mean(axis=0)


def profile_figure(times: pd.DataFrame, styles: Mapping[str, int]) -> Figure:
    """Draw the profiles of times to a target.

    Parameters
    ----------
    times : DataFrame
        Rows problems, columns solvers: seconds, infinite if the target was not reached.
    styles : mapping of str to int
        The number of the line style of every solver.
    """
    ratios = performance_ratios(times.clip(lower=1e-6).to_numpy())
    with mpl.rc_context({"font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": RULE}):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axis = figure.subplots()
        finite = ratios[np.isfinite(ratios)]
        right = max(2.0, float(finite.max(initial=1.0))) * 1.5
        for index, name in enumerate(map(str, times.columns)):
            draw_steps(axis, ratios[:, index], str(name), styles[name], right)
        axis.set_xlim(1.0, right)
        finish(axis, "time as a multiple of the fastest solver's", "share of the runs that reached the target")
    return figure
