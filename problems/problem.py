"""What every problem offers, whatever its solutions are: a value to be minimized over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, SupportsIndex

import numpy as np

from moe_search.problems.pair_costs import PairCosts


class Problem(ABC):
    """Minimize ``value(solution)``.

    This is all that `moe_search.solve`, results, stopping criteria and bounds need to know. What a solution is, a kind
    of problem says: those of `moe_search.problems.permutation_problem.PermutationProblem` are permutations.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem: ms.Problem = ms.LinearAssignment([[4, 1], [2, 3]])
    >>> problem.value([1, 0]), problem.value_range(), problem.integral
    (3, (3, 7), True)
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # Built anew from what it was made of: a pickled array is no longer read-only, which is another type to Numba,
        # and all kernels would be compiled again in the process that it arrives in.
        if not is_dataclass(self):
            return super().__reduce_ex__(protocol)
        return partial(type(self), **{each.name: getattr(self, each.name) for each in fields(self) if each.init}), ()

    @property
    @abstractmethod
    def integral(self) -> bool:
        """Whether values are exact 64-bit integers (else floating point)."""

    @abstractmethod
    def value(self, solution: Any) -> int | float:
        """Return the value of a solution, computed in plain numpy from the definition; an int if `integral`."""

    @abstractmethod
    def check_solution(self, solution: Any, name: str = "solution") -> Any:
        """Return a copy of `solution` in its usual form, or raise an error that says why it is none."""

    @abstractmethod
    def random_solution(self, rng: np.random.Generator) -> Any:
        """Return a random solution, from which a search may start."""

    def start_from(self, solution: Any) -> Any:
        """Return where a search that is given a solution starts: there, unless the problem forbids some."""
        return solution

    def ordinary_value(self) -> float:
        """Return the magnitude of a value that is nothing special, by which rounding errors are measured."""
        return abs(float(self.value(self.random_solution(np.random.default_rng(0)))))

    def relaxed(self) -> Problem:
        """Return a problem of the same solutions and no larger values, to be bounded instead; by default this one."""
        return self

    def value_range(self) -> tuple[int | float, int | float] | None:
        """Return two numbers between which all values lie (up to rounding, unless `integral`); None if unknown."""
        return None

    def pair_costs(self) -> PairCosts | None:
        """Return the value as a sum over slots and pairs of slots; None if it is none, or none that is known."""
        return None
