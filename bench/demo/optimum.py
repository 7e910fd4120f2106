"""The exact optimum of the very problems that searches were given."""

from __future__ import annotations

from dataclasses import dataclass

from moe_search.problems import PermutationProblem
from moe_search.solvers import Enumeration, MaxRuntime, Result
from moe_search.solvers.engine.result import relative_gap
from moe_search.training import Lowering, SearchRecord

MOST_SECONDS = 60.0
ROUNDING = 1e-12


@dataclass(frozen=True)
class ComparedSearch:
    """A search with the optimum of its problem.

    Attributes
    ----------
    gate : str
        The gate of the run that searched, with its plus.
    seed : int
        The seed of that run.
    record : SearchRecord
    optimum : float
        Least value over all maps, by enumeration.
    gap : float
        ``(found - optimum) / found``, 0 at the optimum.
    """

    gate: str
    seed: int
    record: SearchRecord
    optimum: float
    gap: float


def compare_with_optimum(
    gate: str, seed: int, record: SearchRecord, lowering: Lowering, result: Result
) -> ComparedSearch:
    """Try all maps of the problem that a search was given."""
    optimum = exact_value(lowering.problem)
    found = float(lowering.problem.value(result.permutation))
    gap = relative_gap(found, optimum)
    assert gap is not None
    # Below this both are the same map up to the rounding of sums taken in another order.
    return ComparedSearch(gate, seed, record, optimum, gap if gap > ROUNDING else 0.0)


def exact_value(problem: PermutationProblem) -> float:
    """Return the least value of a problem over all permutations, by trying each one within a minute."""
    # Not the solver that searched: Hungarian would vouch for itself.
    result = Enumeration().solve(problem, MaxRuntime(MOST_SECONDS))
    if result.status != "optimal":
        raise RuntimeError(f"the enumeration of a problem of size {problem.size} ended as {result.status}")
    return float(problem.value(result.permutation))
