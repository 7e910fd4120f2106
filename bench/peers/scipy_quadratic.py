"""scipy's heuristics for the quadratic assignment problem, restarted until the time is over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.optimize import quadratic_assignment

from moe_search.bench.peers.proposals import Proposer
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment


@dataclass(frozen=True)
class ScipyQuadratic(Proposer):
    """Call ``scipy.optimize.quadratic_assignment`` again and again.

    Parameters
    ----------
    heuristic : {"2opt", "faq"}
        scipy's method.
    options : dict
        Its options, beside the random generator.
    """

    heuristic: Literal["2opt", "faq"]
    options: dict[str, Any] = field(default_factory=dict)

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
            options = {"rng": rng} | self.options
            found = quadratic_assignment(problem.flow, problem.distance, method=self.heuristic, options=options)
            yield np.asarray(found.col_ind, dtype=np.int64)
