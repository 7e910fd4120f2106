"""The exact optimum of the very problems that searches were given."""

from __future__ import annotations

from dataclasses import dataclass

from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.solvers.engine.result import Result, relative_gap
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.exact.enumeration import Enumeration
from moe_search.training.lowering.lowering import Lowering
from moe_search.training.search.search_record import SearchRecord

MOST_SECONDS = 60.0
ROUNDING = 1e-12


@dataclass(frozen=True)
class ComparedSearch:
    """A search with the optimum of its problem.

    Attributes
    ----------
    gate : str
        Of the run that searched, with its plus.
    seed : int
        Of that run.
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
    """Try all maps of the problem that a search was given.

    Raises
    ------
    RuntimeError
        If the enumeration did not end in a minute.
    """
    optimum = exact_value(lowering.problem)
    found = float(lowering.problem.value(result.permutation))
    gap = relative_gap(found, optimum)
    assert gap is not None
    # Below this both are the same map up to the rounding of sums taken in another order.
    return ComparedSearch(gate, seed, record, optimum, gap if gap > ROUNDING else 0.0)


def exact_value(problem: PermutationProblem) -> float:
    """Return the least value of a problem over all permutations, by trying each one.

    Raises
    ------
    RuntimeError
        If that took more than a minute.
    """
    # Not the solver that searched: Hungarian would vouch for itself.
    result = Enumeration().solve(problem, MaxRuntime(MOST_SECONDS))
    if result.status != "optimal":
        raise RuntimeError(f"the enumeration of a problem of size {problem.size} ended as {result.status}")
    return float(problem.value(result.permutation))
