"""What is compared: the value of the incumbent and the bound proved."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from benchopt import BaseObjective
from benchopt.stopping_criterion import NoCriterion

from moe_search.problems.permutation_problem import PermutationProblem


class Objective(BaseObjective):
    """Minimize the value of a problem over permutations, within a limit of seconds."""

    name = "Assignment search"
    requirements = ("pip::moe-search[bench]",)
    min_benchopt_version = "1.10"
    parameters = {"seconds": [1.0]}  # noqa: RUF012 (benchopt reads a plain dict)
    sampling_strategy = "callback"
    stopping_criterion = NoCriterion(strategy="callback")
    test_dataset_name = "random-quadratic"
    test_config = {"seconds": 0.1}  # noqa: RUF012

    seconds: float

    def skip(
        self, problem: PermutationProblem | None, best_known: float | None, reason: str | None = None
    ) -> tuple[bool, Any]:
        """Skip a dataset that is not there, and say why."""
        return problem is None, reason

    def set_data(self, problem: PermutationProblem, best_known: float | None, reason: str | None = None) -> None:
        """Take the problem of a dataset."""
        self.problem = problem

    def get_objective(self) -> dict[str, Any]:
        """Return what a solver is given."""
        return {"problem": self.problem, "seconds": self.seconds}

    def get_one_result(self) -> dict[str, Any]:
        """Return a result that any solver could have returned."""
        return {"permutation": np.arange(self.problem.size), "bound": None}

    def evaluate_result(self, permutation: npt.ArrayLike, bound: float | None) -> dict[str, float | None]:
        """Value a permutation by the problem's own definition, whatever the solver says of it."""
        return {
            "value": float(self.problem.value(permutation)),
            "bound": None if bound is None else float(bound),
        }
