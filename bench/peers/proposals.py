"""Peers that propose whole permutations, one after the other, behind the interface of our solvers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import quadratic_assignment

from moe_search.problems.problem import Permutation, Problem
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import SearchRun, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import StoppingCriterion


class Proposer(Solver):
    """Keep the best of the permutations that `proposals` yields; an iteration is one of them.

    A proposal cannot be stopped on its way, so a run lasts until the first that ends after the limit.
    """

    @abstractmethod
    def proposals(self, problem: Problem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield permutations without end, the randomness drawn from `rng`."""

    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Solve; see `Solver.solve`."""
        rng = np.random.default_rng(seed)
        run = SearchRun(problem, stop, seed, initial, on_improvement)
        proposals = self.proposals(problem, rng)

        def advance(budget: int, target: float) -> Slice:
            proposal = next(proposals)
            value = problem.value(proposal)
            iteration = run.iterations + 1
            if value >= run.value:
                return Slice(1, iteration, (), False)
            run.incumbent[:] = proposal
            return Slice(1, iteration, ((iteration, run.dtype(value)),), False)

        run.loop(advance)
        return run.result(repr(self), moves=0)


@dataclass(frozen=True)
class RandomPermutations(Proposer):
    """Draw permutations at random; any search must beat the best of them."""

    def proposals(self, problem: Problem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield uniformly random permutations."""
        while True:
            yield problem.random_permutation(rng)


@dataclass(frozen=True)
class Scipy2opt(Proposer):
    """Call ``quadratic_assignment(method="2opt")`` of scipy from random starts; its other method is `FrankWolfe`."""

    def refuses(self, problem: Problem) -> str | None:
        """Refuse what is not two matrices."""
        if not isinstance(problem, QuadraticAssignment):
            return "scipy.optimize.quadratic_assignment takes QuadraticAssignment only"
        if problem.linear is not None:
            return "scipy.optimize.quadratic_assignment knows no linear term"
        return None

    def proposals(self, problem: Problem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield one answer of scipy after the other."""
        assert isinstance(problem, QuadraticAssignment)
        while True:
            found = quadratic_assignment(problem.flow, problem.distance, method="2opt", options={"rng": rng})
            yield np.asarray(found.col_ind, dtype=np.int64)
