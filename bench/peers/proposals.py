"""Peers that propose whole permutations, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import quadratic_assignment

from moe_search.problems.arrays import dense
from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.solvers.engine.proposer import Proposer


@dataclass(frozen=True)
class RandomPermutations(Proposer):
    """Draw permutations at random; any search must beat the best of them."""

    def proposals(self, problem: PermutationProblem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield uniformly random permutations."""
        while True:
            yield problem.random_solution(rng)


@dataclass(frozen=True)
class Scipy2opt(Proposer):
    """Call ``quadratic_assignment(method="2opt")`` of scipy from random starts; its other method is `FrankWolfe`."""

    takes: ClassVar[type] = QuadraticAssignment

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what is not two matrices."""
        if isinstance(problem, QuadraticAssignment) and problem.linear is not None:
            return "scipy.optimize.quadratic_assignment knows no linear term"
        return super().refuses(problem)

    def proposals(self, problem: PermutationProblem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield one answer of scipy after the other."""
        assert isinstance(problem, QuadraticAssignment)
        while True:
            found = quadratic_assignment(dense(problem.flow), problem.distance, method="2opt", options={"rng": rng})
            yield np.asarray(found.col_ind, dtype=np.int64)
