"""Stopping criteria: immutable recipes that say when a solver returns its incumbent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from moe_search.checks import require_integer, require_number, store_plain


@dataclass(frozen=True)
class Progress:
    """Where a solver stands.

    Parameters
    ----------
    seconds : float
        Time since the start, compilation apart.
    iterations : int
        Work done; each solver says what it counts.
    value : float
        Value of the incumbent.
    improved_at : int
        Iteration of the last improvement of the incumbent.
    """

    seconds: float = 0.0
    iterations: int = 0
    value: float = math.inf
    improved_at: int = 0


@dataclass(frozen=True)
class Allowance:
    """The most a solver may still do before its criterion must be asked again."""

    seconds: float = math.inf
    iterations: float = math.inf
    target: float = -math.inf

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self.seconds <= 0 or self.iterations <= 0


class Stopper(ABC):
    """A running stopping criterion. It belongs to one run."""

    @abstractmethod
    def allowance(self, progress: Progress) -> Allowance:
        """Return what the solver may still do: seconds, iterations, and the value at which it may stop."""

    def stops(self, progress: Progress) -> bool:
        """Return whether the solver should stop now."""
        allowance = self.allowance(progress)
        return allowance.spent or progress.value <= allowance.target


class StoppingCriterion(Stopper):
    """A recipe for a stopper. The built-in ones read everything they need from `Progress` and start as themselves.

    Numbers of numpy among the parameters of a criterion become Python's.

    Examples
    --------
    >>> import moe_search as ms
    >>> stop = ms.MaxIterations(3)  # one recipe for any number of runs
    >>> problem = ms.random_quadratic(8, seed=0)
    >>> [ms.FrankWolfe().solve(problem, stop, seed).iterations for seed in (0, 1)]
    [3, 3]
    """

    def __post_init__(self) -> None:
        store_plain(self)

    def start(self) -> Stopper:
        """Return a fresh stopper for one run."""
        return self


@dataclass(frozen=True)
class MaxRuntime(StoppingCriterion):
    """Stop after a number of seconds (compilation apart).

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(8, seed=0)
    >>> ms.FrankWolfe().solve(problem, ms.MaxRuntime(0.01)).iterations > 0
    True
    """

    seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("seconds", self.seconds, finite=False)

    def allowance(self, progress: Progress) -> Allowance:
        """Return the seconds left."""
        return Allowance(seconds=self.seconds - progress.seconds)


@dataclass(frozen=True)
class MaxIterations(StoppingCriterion):
    """Stop after a number of iterations; each solver says what it counts. Exact, hence reproducible.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(8, seed=0)
    >>> ms.FrankWolfe().solve(problem, ms.MaxIterations(3)).iterations
    3
    """

    iterations: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("iterations", self.iterations, 0)

    def allowance(self, progress: Progress) -> Allowance:
        """Return the iterations left."""
        return Allowance(iterations=self.iterations - progress.iterations)


@dataclass(frozen=True)
class NoImprovement(StoppingCriterion):
    """Stop once the incumbent has not improved for a number of iterations.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(8, seed=0)
    >>> result = ms.FrankWolfe().solve(problem, ms.NoImprovement(5))
    >>> result.iterations - result.trajectory[-1].iteration
    5
    """

    iterations: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_integer("iterations", self.iterations, 0)

    def allowance(self, progress: Progress) -> Allowance:
        """Return the iterations left since the last improvement."""
        return Allowance(iterations=self.iterations - (progress.iterations - progress.improved_at))


@dataclass(frozen=True)
class TargetValue(StoppingCriterion):
    """Stop once the incumbent is at most a value.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_quadratic(8, seed=0)
    >>> ms.FrankWolfe().solve(problem, ms.TargetValue(130_000)).value <= 130_000
    True
    """

    value: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("value", self.value, -math.inf, finite=False)

    def allowance(self, progress: Progress) -> Allowance:
        """Return the target."""
        return Allowance(target=self.value)


@dataclass(frozen=True, init=False)
class AnyOf(StoppingCriterion):
    """Stop as soon as one of several criteria says so.

    Raises
    ------
    ValueError
        If no criterion is given.
    TypeError
        If one is no stopping criterion.

    Examples
    --------
    >>> import moe_search as ms
    >>> stop = ms.AnyOf(ms.MaxRuntime(60.0), ms.NoImprovement(5))
    >>> ms.FrankWolfe().solve(ms.random_quadratic(8, seed=0), stop).runtime < 60.0
    True
    """

    criteria: tuple[StoppingCriterion, ...]

    def __init__(self, *criteria: StoppingCriterion) -> None:
        if not criteria:
            raise ValueError("AnyOf needs at least one stopping criterion, got none")
        for criterion in criteria:
            require_criterion(criterion)
        object.__setattr__(self, "criteria", criteria)

    def start(self) -> Stopper:
        """Return a stopper over fresh stoppers of all criteria."""
        return _First(tuple(criterion.start() for criterion in self.criteria))

    def allowance(self, progress: Progress) -> Allowance:
        """Return the least that the criteria allow."""
        return _First(self.criteria).allowance(progress)


@dataclass(frozen=True)
class _First(Stopper):
    stoppers: tuple[Stopper, ...]

    def allowance(self, progress: Progress) -> Allowance:
        parts = [stopper.allowance(progress) for stopper in self.stoppers]
        return Allowance(
            seconds=min(part.seconds for part in parts),
            iterations=min(part.iterations for part in parts),
            target=max(part.target for part in parts),
        )


def require_criterion(stop: object) -> None:
    """Raise TypeError unless `stop` is a stopping criterion."""
    if not isinstance(stop, StoppingCriterion):
        raise TypeError(
            f"stop must be a stopping criterion such as MaxRuntime(1.0), got {type(stop).__name__} ({stop!r})"
        )
