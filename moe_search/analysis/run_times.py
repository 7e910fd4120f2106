"""Distributions over the runs of a randomized search: the time to a target, and the quality by a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_choice, require_number
from moe_search.solvers.engine.result import Result

if TYPE_CHECKING:
    from scipy.stats._survival import EmpiricalDistributionFunction

Unit = Literal["seconds", "iterations"]


def run_time_distribution(
    results: Sequence[Result], target: float, unit: Unit = "seconds"
) -> EmpiricalDistributionFunction:
    """Return the empirical distribution of the time that runs take to reach a target.

    It is the qualified run-time distribution (qualified RTD) of Hoos and Stuetzle: the probability that a run has found
    a value of at most `target` by a time. A run that did not reach it is censored at its end, as in survival analysis,
    so that runs of different lengths go together.

    Parameters
    ----------
    results : sequence of Result
        Runs of one solver on one problem, with different seeds.
    target : float
        The value to reach.
    unit : {"seconds", "iterations"}, default "seconds"
        Iterations are those of the solver, and the same on every machine.

    Returns
    -------
    scipy.stats EmpiricalDistributionFunction
        With ``quantiles`` (times), ``probabilities``, ``evaluate(times)`` and ``confidence_interval()``.

    References
    ----------
    H. H. Hoos and T. Stuetzle, *Stochastic Local Search: Foundations and Applications*, Morgan Kaufmann 2005, chapter
    4; `scipy.stats.ecdf`.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(9, seed=0)
    >>> runs = [ms.FrankWolfe().solve(problem, ms.MaxIterations(40), seed) for seed in range(20)]
    >>> best = min(run.value for run in runs)
    >>> reached = ms.analysis.run_time_distribution(runs, target=best, unit="iterations")
    >>> reached.evaluate([0, 25, 40]).round(2).tolist()
    [0.0, 0.2, 0.4]
    """
    require_choice("unit", unit, ("seconds", "iterations"))
    require_number("target", target, -math.inf)
    _require_runs(results)
    times, ends = [], []
    for result in results:
        hits = [_time(point, unit) for point in result.trajectory if point.value <= target]
        if hits:
            times.append(hits[0])
        else:
            ends.append(result.runtime if unit == "seconds" else result.iterations)
    return censored_distribution(times, ends)


def solution_quality_distribution(
    results: Sequence[Result], time: float, reference: float, unit: Unit = "seconds"
) -> EmpiricalDistributionFunction:
    """Return the empirical distribution of the quality that runs have reached by a time.

    It is the solution quality distribution (SQD) of Hoos and Stuetzle. Quality is relative: ``(value - reference) /
    |reference|``, 0 for a run that is at the reference.

    Parameters
    ----------
    results : sequence of Result
        Runs of one solver on one problem, with different seeds.
    time : float
        When to look; every run has an incumbent by then.
    reference : float
        The best known value, other than 0.
    unit : {"seconds", "iterations"}, default "seconds"
        Of `time`.

    Returns
    -------
    scipy.stats EmpiricalDistributionFunction
        With ``quantiles`` (relative qualities), ``probabilities`` and ``evaluate(qualities)``.

    References
    ----------
    H. H. Hoos and T. Stuetzle, *Stochastic Local Search: Foundations and Applications*, Morgan Kaufmann 2005, chapter
    4; `scipy.stats.ecdf`.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(9, seed=0)
    >>> runs = [ms.FrankWolfe().solve(problem, ms.MaxIterations(40), seed) for seed in range(20)]
    >>> best = min(run.value for run in runs)
    >>> quality = ms.analysis.solution_quality_distribution(runs, 5, best, unit="iterations")
    >>> quality.evaluate([0.0, 0.02, 0.05]).round(2).tolist()
    [0.05, 0.1, 1.0]
    """
    require_choice("unit", unit, ("seconds", "iterations"))
    require_number("time", time)
    _require_runs(results)
    if require_number("reference", reference, -math.inf) == 0:
        raise ValueError("reference must not be 0, to which no quality is relative")
    qualities = []
    for result in results:
        by_then = [point.value for point in result.trajectory if _time(point, unit) <= time]
        if not by_then:
            raise ValueError(f"time must leave every run an incumbent, got {time:g} {unit}, before that of {result!r}")
        qualities.append((by_then[-1] - reference) / abs(reference))
    return censored_distribution(qualities)


def censored_distribution(known: npt.ArrayLike, above: npt.ArrayLike = ()) -> EmpiricalDistributionFunction:
    """Return the empirical distribution of numbers, of which some are only known to be above a number."""
    # Imported here: scipy.stats takes longer than the rest of the package.
    from scipy import stats

    return stats.ecdf(stats.CensoredData(uncensored=np.asarray(known, float), right=np.asarray(above, float))).cdf


def _time(point: object, unit: Unit) -> float:
    return float(getattr(point, "seconds" if unit == "seconds" else "iteration"))


def _require_runs(results: Sequence[Result]) -> None:
    if not results:
        raise ValueError("results must hold at least one run, got none")
