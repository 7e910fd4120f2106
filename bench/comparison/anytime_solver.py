"""A solver of ours, or a peer behind the same interface, as benchopt runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from benchopt import BaseSolver

from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.solvers.engine.result import Incumbent
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import MaxRuntime

EVERY_POINT_UP_TO = 20


class AnytimeSolver(BaseSolver):
    """Run a `moe_search.solvers.Solver` and let benchopt look at every new incumbent.

    A file of ``solvers/`` derives a class named ``Solver`` from it, with a `name` and a `method`. The seed of a run
    depends on its repetition only, so that solvers are compared on equal seeds.
    """

    sampling_strategy = "callback"
    requirements = ("pip::moe-search[bench]",)

    @abstractmethod
    def method(self) -> Solver:
        """Return the solver to run."""

    def skip(self, problem: PermutationProblem, seconds: float) -> tuple[bool, str | None]:
        """Skip the problems that the solver refuses, with its reason."""
        reason = self.method().refuses(problem)
        return reason is not None, reason

    def set_objective(self, problem: PermutationProblem, seconds: float) -> None:
        """Take the problem, the limit of seconds and the seed of the repetition."""
        self.problem = problem
        self.seconds = seconds
        self.seed = self.get_seed(use_repetition=True)
        self.permutation: Permutation = np.arange(problem.size)
        self.bound: int | float | None = None

    def warm_up(self) -> None:
        """Compile, or load what is compiled, before the clock of benchopt starts."""
        with self._note_of_error():
            self.method().solve(self.problem, MaxRuntime(0.0), self.seed)

    def run(self, callback: Callable[[], bool]) -> None:
        """Solve, and call back at every improvement and at the end."""

        def show(incumbent: Incumbent) -> None:
            self.permutation = incumbent.permutation
            callback()

        with self._note_of_error():
            result = self.method().solve(self.problem, MaxRuntime(self.seconds), self.seed, on_improvement=show)
        self.permutation, self.bound = result.permutation, result.bound
        callback()

    def get_next(self, stop_val: int) -> int:
        """Return the improvement to look at next: all of the first, then ever fewer.

        A hundred points, the default of ``benchopt run``, then reach beyond a thousand improvements. The last one is
        always looked at.
        """
        return stop_val + max(1, stop_val // EVERY_POINT_UP_TO)

    def get_result(self) -> dict[str, Any]:
        """Return the incumbent, and the bound once the run has ended."""
        return {"permutation": self.permutation, "bound": self.bound}

    @contextmanager
    def _note_of_error(self) -> Iterator[None]:
        """Leave what is raised in the folder of the run: benchopt prints it, and its table has no row for the run."""
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            (self.get_run_output_path() / "error.txt").write_text(text, encoding="utf-8")
            raise
