"""What every solver offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.incumbent import OnImprovement
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.stop import StoppingCriterion, require_criterion


class Solver(ABC):
    """Minimize a problem. A new solver gives `refuses` and `run`; a frozen dataclass holds its parameters."""

    exact: ClassVar[bool] = False
    """Whether the solver proves optimality by itself if it is given the time."""

    def refuses(self, problem: Problem) -> str | None:
        """Return why this solver cannot take a problem, or None if it can."""
        return None

    @abstractmethod
    def run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Permutation | None,
        on_improvement: OnImprovement | None,
    ) -> Result:
        """Solve a problem whose arguments `solve` has checked."""

    def solve(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence = 0,
        initial: npt.ArrayLike | None = None,
        on_improvement: OnImprovement | None = None,
    ) -> Result:
        """Solve a problem.

        Parameters
        ----------
        problem : Problem
            What to minimize.
        stop : StoppingCriterion
            When to return the incumbent, at the latest.
        seed : int or SeedSequence, default 0
            Source of all randomness; an int must be >= 0.
        initial : array_like of int, shape (size,), optional
            Permutation to start from, or near which to start where the problem forbids it. The result is never worse.
        on_improvement : callable, optional
            Called as ``on_improvement(incumbent)`` with an `Incumbent`: for the first one, then whenever the solver
            has found a better one, some milliseconds later at most where a compiled search runs in slices. Its time is
            part of the run. An exception in it ends the run and reaches the caller; Ctrl-C in it ends the run with the
            incumbent.

        Returns
        -------
        Result
            The incumbent. After Ctrl-C its status is "interrupted".

        Raises
        ------
        TypeError
            If an argument is of the wrong type, or the solver cannot take a problem of this class.
        ValueError
            If `initial` is no permutation of the problem, `seed` is negative, or the problem is beyond the solver.
        """
        if not isinstance(problem, Problem):
            raise TypeError(f"problem must be a Problem such as QuadraticAssignment, got {type(problem).__name__}")
        require_criterion(stop)
        require_seed(seed)
        require_callback(on_improvement)
        start = None if initial is None else problem.start_from(problem.check_solution(initial, "initial"))
        reason = self.refuses(problem)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} cannot take this {type(problem).__name__}: {reason}")
        return self.run(problem, stop, seed, start, on_improvement)


def require_seed(seed: Any) -> None:
    """Raise unless `seed` is an int >= 0 or a SeedSequence."""
    if isinstance(seed, np.random.SeedSequence):
        return
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be an int or a SeedSequence, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")


def require_callback(on_improvement: Any) -> None:
    """Raise TypeError unless `on_improvement` is None or can be called."""
    if on_improvement is not None and not callable(on_improvement):
        raise TypeError(f"on_improvement must be a function of an Incumbent, got {type(on_improvement).__name__}")


def reported_seed(seed: int | np.random.SeedSequence) -> int | None:
    """Return the int that gives the same run as a seed, for a result; None if there is none."""
    if isinstance(seed, np.random.SeedSequence):
        # A spawned sequence draws other numbers than the seed that it descends from.
        return int(seed.entropy) if isinstance(seed.entropy, (int, np.integer)) and not seed.spawn_key else None
    return int(seed)
