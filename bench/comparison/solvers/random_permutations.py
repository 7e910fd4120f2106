"""Random permutations: what any search must beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.bench.peers.proposals import Proposer
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem


@dataclass(frozen=True)
class RandomPermutations(Proposer):
    """Draw permutations and keep the best."""

    def proposals(self, problem: Problem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield uniformly random permutations."""
        while True:
            yield problem.random_solution(rng)


class Solver(AnytimeSolver):
    """Random permutations, the best of which is kept."""

    name = "random permutations"

    def method(self) -> RandomPermutations:
        """Return the solver to run."""
        return RandomPermutations()
