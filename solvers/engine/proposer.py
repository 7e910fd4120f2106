"""Solvers that propose whole permutations, one after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver


class Proposer(Solver):
    """Keep the best of the permutations that `proposals` yields; an iteration is one of them.

    A proposal cannot be stopped on its way, so a run lasts until the first that ends after the limit, and Ctrl-C loses
    the one that it meets.
    """

    @abstractmethod
    def proposals(self, problem: PermutationProblem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield permutations without end, the randomness drawn from `rng`."""

    def search(self, run: Run) -> Result:
        """Take proposals until the run stops; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, PermutationProblem)
        run.take_initial()
        proposals = self.proposals(problem, np.random.default_rng(run.seed))

        def advance(budget: int, target: float) -> Slice:
            proposal = next(proposals)
            value = problem.value(proposal)
            iteration = run.iterations + 1
            if value >= run.value:
                return Slice(1, iteration, (), False)
            run.incumbent[:] = proposal
            return Slice(1, iteration, ((iteration, run.dtype(value)),), False)

        run.loop(advance)
        return run.result(moves=0)
