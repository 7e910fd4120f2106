"""What every solver offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import numpy as np

from moe_search.checks import require_integer, store_plain
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import OnImprovement, Run
from moe_search.solvers.engine.stop import StoppingCriterion, require_criterion


class Solver(ABC):
    """Minimize a problem. A new solver is a frozen dataclass of its parameters that gives `search`; `solve` is final.

    Most give less: a solver whose search is a kernel derives from
    `moe_search.solvers.engine.compiled_search.CompiledSearch`. Numbers of numpy among the parameters become Python's;
    a solver that checks its parameters in ``__post_init__`` calls that of this class first.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import moe_search as ms
    >>> @dataclass(frozen=True)
    ... class AsItIs(ms.Solver):
    ...     def search(self, run):
    ...         run.take_initial(range(run.problem.size))
    ...         return run.answer(run.incumbent, run.value)
    >>> AsItIs().solve(ms.LinearAssignment([[4, 1], [2, 3]]), ms.MaxIterations(1)).value
    7
    """

    exact: ClassVar[bool] = False
    """Whether the solver proves optimality by itself if it is given the time."""

    takes: ClassVar[type | tuple[type, ...]] = PermutationProblem
    """The class of the problems that the solver takes, or its classes."""

    def __post_init__(self) -> None:
        store_plain(self)

    def refuses(self, problem: Problem) -> str | None:
        """Return why this solver cannot take a problem, or None if it can."""
        if isinstance(problem, self.takes):
            return None
        classes = self.takes if isinstance(self.takes, tuple) else (self.takes,)
        return f"it solves {' and '.join(each.__name__ for each in classes)} only"

    @final
    def reason_against(self, problem: Problem) -> str | None:
        """Return why `solve` would refuse a problem, or None."""
        # A solver that refuses more may forget what it takes.
        return Solver.refuses(self, problem) or self.refuses(problem)

    @abstractmethod
    def search(self, run: Run) -> Result:
        """Solve the problem of a run, whose arguments `solve` has checked."""

    @final
    def solve(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence = 0,
        initial: Any = None,
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
        initial : solution, optional
            Where to start, such as a permutation as an array_like of int, shape (size,); near it where the problem
            forbids it. The result is never worse.
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
            If an argument is of the wrong type.
        ValueError
            If `initial` is no solution of the problem, `seed` is negative, or the solver cannot take the problem.
        """
        run = self.begin_run(problem, stop, seed, initial, on_improvement)
        try:
            return require_result(self, self.search(run))
        except KeyboardInterrupt:
            return run.interrupt()

    @final
    def begin_run(
        self,
        problem: Problem,
        stop: StoppingCriterion,
        seed: int | np.random.SeedSequence,
        initial: Any,
        on_improvement: OnImprovement | None,
    ) -> Run:
        """Check the arguments of `solve` and return the run of them, its clock started."""
        require_problem(problem)
        require_criterion(stop)
        if not isinstance(seed, np.random.SeedSequence):
            require_integer("seed, unless it is a SeedSequence,", seed, 0)
        if on_improvement is not None and not callable(on_improvement):
            raise TypeError(f"on_improvement must be a function of an Incumbent, got {type(on_improvement).__name__}")
        if initial is not None:
            initial = problem.start_from(problem.check_solution(initial, "initial"))
        reason = self.reason_against(problem)
        if reason is not None:
            raise ValueError(f"{type(self).__name__} cannot take this {type(problem).__name__}: {reason}")
        return Run(repr(self), problem, stop, seed, initial, on_improvement)


def require_result(solver: object, result: object) -> Result:
    """Return what a solver found, or raise TypeError if it is no result."""
    if not isinstance(result, Result):
        raise TypeError(f"{type(solver).__name__} must return a Result, got {type(result).__name__}")
    return result


def require_problem(problem: object) -> None:
    """Raise TypeError unless `problem` is one."""
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem such as QuadraticAssignment, got {type(problem).__name__}")
