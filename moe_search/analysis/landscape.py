"""What the landscape of swaps is like: its local optima, how values and distances go together, how rugged it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.arrays import numeric_array
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.heuristic.local_search import LocalSearch
from moe_search.solvers.heuristic.multi_start import spawned_seeds

Floats = npt.NDArray[np.float64]

MOST_PERMUTATIONS = math.factorial(9)
# Values that differ by less, as a part of an ordinary one, are equal.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class LocalOptima:
    """Local optima of the landscape of swaps, no two of which give every slot the same expert.

    Attributes
    ----------
    permutations : ndarray of int64, shape (optima, size)
        The best first.
    values : ndarray, shape (optima,)
        Their values.
    found : ndarray of int64, shape (optima,)
        How often each was found: the size of its basin of attraction, in descents. Ones where all were enumerated.

    Examples
    --------
    >>> import moe_search as ms
    >>> optima = ms.analysis.enumerate_local_optima(ms.random_quadratic(6, seed=0))
    >>> optima, optima.values.tolist()[0]
    (LocalOptima(3 of values 53950 .. 62902), 53950)
    """

    permutations: npt.NDArray[np.int64]
    values: npt.NDArray[np.generic]
    found: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        return f"LocalOptima({len(self)} of values {self.values[0]:.9g} .. {self.values[-1]:.9g})"

    def __len__(self) -> int:
        return len(self.values)


def sample_local_optima(
    problem: PermutationProblem,
    descents: int,
    seed: int | np.random.SeedSequence = 0,
    solver: LocalSearch | None = None,
) -> LocalOptima:
    """Return the local optima where descents from random permutations end.

    Parameters
    ----------
    problem : PermutationProblem
    descents : int
        How many.
    seed : int or SeedSequence, default 0
        Descent number k has the seed ``seed + k``, or the one that a sequence spawns as its k-th.
    solver : LocalSearch, optional
        What descends, without restarts; by default the first improving swap is made.

    Returns
    -------
    LocalOptima
        Their number is a lower bound on that of all, and close to it only where most were found several times.

    Examples
    --------
    >>> import moe_search as ms
    >>> optima = ms.analysis.sample_local_optima(ms.random_quadratic(12, seed=0), descents=50)
    >>> sum(optima.found.tolist()), len(optima) <= 50
    (50, True)
    """
    require_integer("descents", descents)
    seeds: Sequence[int | np.random.SeedSequence]
    if isinstance(seed, np.random.SeedSequence):
        seeds = spawned_seeds(seed, descents)
    else:
        first_seed = require_integer("seed, unless it is a SeedSequence,", seed, 0)
        seeds = range(first_seed, first_seed + descents)
    descent = replace(LocalSearch() if solver is None else solver, restarts=False)
    ends = [descent.solve(problem, MaxRuntime(math.inf), each).permutation for each in seeds]
    first, found = np.unique([problem.experts(p) for p in ends], axis=0, return_index=True, return_counts=True)[1:]
    values = np.array([problem.value(ends[k]) for k in first])
    order = np.argsort(values, kind="stable")
    return LocalOptima(np.array(ends)[first[order]], values[order], found[order])


def enumerate_local_optima(problem: PermutationProblem) -> LocalOptima:
    """Return all local optima: permutations of which no swap has a lower value.

    Parameters
    ----------
    problem : PermutationProblem
        Of up to 9! permutations.

    Examples
    --------
    >>> import moe_search as ms
    >>> optima = ms.analysis.enumerate_local_optima(ms.random_quadratic(7, seed=1))
    >>> optima.values.tolist()
    [93700, 95294, 97130, 100568, 101470, 102724]
    """
    size, block = problem.size, problem.block_size
    number = math.factorial(block) ** (size // block)
    if number > MOST_PERMUTATIONS:
        raise ValueError(f"problem must have at most {MOST_PERMUTATIONS:,} permutations, got {number:,}")
    blocks = [itertools.permutations(range(start, start + block)) for start in range(0, size, block)]
    every = np.array([list(itertools.chain(*parts)) for parts in itertools.product(*blocks)])
    values = np.array([problem.value(p) for p in every])
    tolerance = 0 if problem.integral else ROUNDING * problem.ordinary_value()
    # The permutations are in the order of the numbers that they are written as, a seat within its block being a digit.
    weights = block ** np.arange(size - 1, -1, -1)
    numbers = every % block @ weights
    optimal = np.ones(len(every), dtype=bool)
    for a, b in itertools.combinations(range(size), 2):
        if a // block == b // block:
            swapped = numbers + (every[:, b] - every[:, a]) * (weights[a] - weights[b])
            optimal &= values <= values[np.searchsorted(numbers, swapped)] + tolerance
    experts = every[optimal] % block // problem.capacity
    first = np.unique(experts, axis=0, return_index=True)[1]
    kept = np.flatnonzero(optimal)[first]
    kept = kept[np.argsort(values[kept], kind="stable")]
    return LocalOptima(every[kept], values[kept], np.ones(len(kept), dtype=np.int64))


def distance(problem: PermutationProblem, first: npt.ArrayLike, second: npt.ArrayLike) -> int:
    """Return how many slots have another expert under one permutation than under the other.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.analysis.distance(ms.random_quadratic(4, seed=0), [0, 1, 2, 3], [1, 0, 2, 3])
    2
    """
    return int(np.count_nonzero(problem.experts(first) != problem.experts(second)))


@dataclass(frozen=True, eq=False)
class FitnessDistance:
    """Values of solutions, and how far they are from the nearest of the best.

    Attributes
    ----------
    values, distances : ndarray of float64, shape (solutions,)
        Distances are numbers of slots with another expert.
    correlation : float
        Pearson's correlation of the two. Near 1, better solutions are nearer to the best ones, and a search that
        stays around good solutions does well; near 0 they tell nothing. NaN where all values, or all distances, are
        equal.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(7, seed=1)
    >>> optima = ms.analysis.enumerate_local_optima(problem)
    >>> ms.analysis.fitness_distance(problem, optima.permutations).distances.tolist()
    [0.0, 4.0, 6.0, 6.0, 5.0, 7.0]
    """

    values: Floats
    distances: Floats
    correlation: float


def fitness_distance(
    problem: PermutationProblem, solutions: npt.ArrayLike, best: npt.ArrayLike | None = None
) -> FitnessDistance:
    """Return the fitness-distance correlation of solutions, usually of local optima.

    Parameters
    ----------
    problem : PermutationProblem
    solutions : array_like of int, shape (solutions, size)
        Permutations, such as those of `LocalOptima`.
    best : array_like of int, shape (best, size), optional
        The best permutations known, all optima if possible: symmetry makes several. By default the best of
        `solutions`.

    References
    ----------
    T. Jones and S. Forrest, "Fitness distance correlation as a measure of problem difficulty for genetic algorithms",
    ICGA 1995, 184-192; P. Merz and B. Freisleben, "Fitness landscape analysis and memetic algorithms for the quadratic
    assignment problem", IEEE Transactions on Evolutionary Computation 4 (2000), 337-352.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(7, seed=1)
    >>> optima = ms.analysis.enumerate_local_optima(problem)
    >>> round(ms.analysis.fitness_distance(problem, optima.permutations).correlation, 2)
    0.8
    """
    from scipy import stats

    given = np.asarray(solutions)
    if given.ndim != 2 or len(given) < 2:
        raise ValueError(f"solutions must be at least two permutations in rows, got shape {given.shape}")
    values = np.array([float(problem.value(p)) for p in given])
    nearest = given[values == values.min()] if best is None else np.atleast_2d(np.asarray(best))
    centres = [problem.experts(p) for p in nearest]
    experts = [problem.experts(p) for p in given]
    distances = np.array([float(min(np.count_nonzero(x != centre) for centre in centres)) for x in experts])
    varied = np.ptp(values) > 0 and np.ptp(distances) > 0
    correlation = float(stats.pearsonr(values, distances).statistic) if varied else math.nan
    return FitnessDistance(values, distances, correlation)


def random_walk(problem: PermutationProblem, steps: int, seed: int | np.random.SeedSequence = 0) -> Floats:
    """Return the values along a walk of random swaps, shape (steps + 1,).

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.analysis.random_walk(ms.random_quadratic(9, seed=0), steps=100).shape
    (101,)
    """
    require_integer("steps", steps)
    rng = np.random.default_rng(seed)
    p, block = problem.random_solution(rng), problem.block_size
    if block < 2:
        raise ValueError("problem must have blocks of at least two slots, as there is nothing to swap in one")
    values = [float(problem.value(p))]
    starts = block * rng.integers(problem.size // block, size=steps)
    for start in starts.tolist():
        a, b = start + rng.choice(block, 2, replace=False)
        p[a], p[b] = p[b], p[a]
        values.append(float(problem.value(p)))
    return np.array(values)


def autocorrelation(values: npt.ArrayLike, lags: int) -> Floats:
    """Return how values along a walk go together with those up to `lags` steps later, shape (lags + 1,), first 1.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.analysis.autocorrelation([1, 0, 1, 0, 1, 0], lags=2).round(2).tolist()
    [1.0, -0.83, 0.67]
    """
    from scipy import signal

    series = numeric_array("values", values, 1)
    require_integer("lags", lags)
    if len(series) <= lags:
        raise ValueError(f"values must be more than {lags}, one for each step of a walk, got shape {series.shape}")
    deviations = series - series.mean()
    if not deviations.any():
        raise ValueError("values must differ, got equal ones")
    sums = signal.correlate(deviations, deviations)[len(series) - 1 :]
    return np.asarray(sums[: lags + 1] / sums[0])


def correlation_length(values: npt.ArrayLike) -> float:
    """Return how many steps of a walk it takes until values have forgotten where they were: -1 / ln r.

    Here r is the magnitude of the autocorrelation of one step. The longer, the smoother the landscape: about n / 4 to
    n / 2 for the swaps of a quadratic assignment problem of size n.

    References
    ----------
    E. Weinberger, "Correlated and uncorrelated fitness landscapes and how to tell the difference", Biological
    Cybernetics 63 (1990), 325-336; P. F. Stadler, "Landscapes and their correlation functions", Journal of Mathematical
    Chemistry 20 (1996), 1-45.

    Examples
    --------
    >>> import moe_search as ms
    >>> walk = ms.analysis.random_walk(ms.random_quadratic(20, seed=0), steps=2000)
    >>> 3 < ms.analysis.correlation_length(walk) < 20
    True
    """
    r = abs(float(autocorrelation(values, 1)[1]))
    return 0.0 if r == 0.0 else math.inf if r >= 1.0 else -1.0 / math.log(r)
