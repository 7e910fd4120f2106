"""The answer of a solver, with its distance from the optimum."""

from __future__ import annotations

import html
import json
import math
import operator
import platform
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.placement import Placement
from moe_search.problems.problem import Problem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Status = Literal["optimal", "feasible", "interrupted"]

LEAST_DRAWN_SECONDS = 1e-6
# Up to which part of a bound, or of an ordinary value if that is less, bounds are found; up to which part of an
# ordinary value, and of themselves, sums of floats are.
BOUND_PRECISION, ORDINARY_PRECISION, SUM_PRECISION = 1e-9, 1e-12, 1e-14


class TrajectoryPoint(NamedTuple):
    """One improvement of the incumbent: seconds since the start, value, and the iteration at which it came.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.FrankWolfe().solve(ms.random_quadratic(8, seed=0), ms.MaxIterations(3))
    >>> last = result.trajectory[-1]
    >>> last.value == result.value, last.iteration <= 3
    (True, True)
    """

    seconds: float
    value: int | float
    iteration: int


@dataclass(frozen=True, eq=False)
class Incumbent:
    """What a running solver has found so far.

    Parameters
    ----------
    seconds : float
        Time since the start, compilation apart.
    iterations : int
        Work done when it was found; each solver says what it counts.
    value : int or float
        Its value; floats up to the rounding errors of the deltas that led there.
    solution : ndarray of int64, shape (size,)
        The solution; a permutation is a copy of its own, read-only.

    Examples
    --------
    >>> import moe_search as ms
    >>> shown = []
    >>> result = ms.FrankWolfe().solve(ms.random_quadratic(8, seed=0), ms.MaxIterations(3), on_improvement=shown.append)
    >>> shown[-1].value == result.value, shown[-1].permutation.tolist() == result.permutation.tolist()
    (True, True)
    """

    seconds: float
    iterations: int
    value: int | float
    solution: Any = field(repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "solution", frozen_copy(self.solution))

    @property
    def permutation(self) -> Permutation:
        """The solution of a problem of permutations."""
        return self.solution


@cache
def installed_versions() -> tuple[tuple[str, str], ...]:
    """Return the versions of Python, of this package and of the packages a result depends on."""
    found = [("python", platform.python_version())]
    for name in ("moe-search", "numpy", "numba", "scipy", "ortools"):
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            found.append((name, "not installed"))
    return tuple(found)


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What a solver found.

    Parameters
    ----------
    solution : ndarray of int64, shape (size,)
        The incumbent: of a problem of permutations the seat of every slot, read-only.
    value : int or float
        Its value, by the problem's own definition.
    bound : int or float or None
        A proved lower bound on the value of every permutation; None if none was computed.
    status : {"optimal", "feasible", "interrupted"}
        ``optimal`` if the value equals the bound, ``interrupted`` after Ctrl-C, else ``feasible``.
    trajectory : tuple of TrajectoryPoint
        Seconds since the start, value and iteration at every improvement of the incumbent, the first one included.
    iterations, moves, restarts : int
        Work done (each solver says what an iteration is), moves committed, and descents begun after the first.
    runtime : float
        Seconds, those of compilation apart.
    seed : int or None
        Seed of the run, None for a solver without randomness.
    solver : str
        The solver and its parameters.
    compile_seconds : float
        Seconds spent on what only a first call does, which no limit of time counts: compiling kernels or loading
        compiled ones, and imports.
    versions : dict of str to str
        Versions of what the result depends on.
    statistics : dict of str to int
        Counts of what the solver did, such as ``swaps evaluated`` and ``swaps committed``; empty if it keeps none.

    Attributes
    ----------
    gap : float or None
        ``(value - bound) / |value|``; 0 if they are equal, None without a bound, infinite if only the value is 0.

    Examples
    --------
    >>> import moe_search as ms
    >>> result = ms.solve(ms.LinearAssignment([[4, 1], [2, 3]]))
    >>> result.permutation.tolist(), result.value, result.bound, result.gap, result.status
    ([1, 0], 3, 3, 0.0, 'optimal')
    >>> ms.Result.from_json(result.to_json()).value
    3
    """

    solution: Any
    value: int | float
    bound: int | float | None
    status: Status
    trajectory: tuple[TrajectoryPoint, ...]
    iterations: int
    moves: int
    restarts: int
    runtime: float
    seed: int | None
    solver: str
    compile_seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=lambda: dict(installed_versions()))
    statistics: dict[str, int] = field(default_factory=dict)
    gap: float | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "solution", frozen_copy(self.solution))
        object.__setattr__(self, "gap", relative_gap(self.value, self.bound))

    @property
    def permutation(self) -> Permutation:
        """The solution of a problem of permutations: the seat of every slot."""
        return self.solution

    @property
    def history(self) -> tuple[tuple[float, int | float], ...]:
        """Seconds since the start and value at every improvement of the incumbent."""
        return tuple((point.seconds, point.value) for point in self.trajectory)

    def __repr__(self) -> str:
        gap = None if self.gap is None else f"{100 * self.gap:.3g}%"
        return (
            f"Result(value={self.value}, bound={self.bound}, gap={gap}, status={self.status!r},"
            f" iterations={self.iterations}, runtime={self.runtime:.3g}, seed={self.seed}, solver={self.solver!r})"
        )

    def _repr_html_(self) -> str:
        """Return the summary as a table, which notebooks show."""
        cell = '<td style="text-align: left">'
        rows = (f"<tr>{cell}{name}</td>{cell}{html.escape(text)}</td></tr>" for name, text in self._rows().items())
        return f"<table>{''.join(rows)}</table>"

    def summary(self) -> str:
        """Return a few lines of text with everything but the solution, the trajectory and the statistics."""
        return "\n".join(f"{name:<10} {text}" for name, text in self._rows().items())

    def outcome(self) -> str:
        """Return the status, value, bound and gap in one line."""
        parts = [f"value {format_number(self.value)}"]
        if self.bound is not None:
            parts += [f"bound {format_number(self.bound)}", f"gap {format_gap(self.gap)}"]
        return f"{self.status}: {', '.join(parts)}"

    def _rows(self) -> dict[str, str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return {
            "solver": self.solver,
            "status": self.status,
            "value": format_number(self.value),
            "bound": "none" if self.bound is None else format_number(self.bound),
            "gap": format_gap(self.gap),
            "iterations": f"{self.iterations:,}",
            "moves": f"{self.moves:,}",
            "restarts": f"{self.restarts:,}",
            "runtime": f"{self.runtime:.3f} s",
            "compiling": f"{self.compile_seconds:.3f} s",
            "last gain": f"{self.trajectory[-1].seconds:.3f} s" if self.trajectory else "-",
            "seed": "-" if self.seed is None else str(self.seed),
            "versions": versions,
        }

    def to_json(self) -> str:
        """Return the result as a JSON object; `from_json` reads it back without loss."""
        if not isinstance(self.solution, np.ndarray | Placement):
            raise TypeError(f"solution must be an array to be written as JSON, got {type(self.solution).__name__}")
        data = asdict(self)
        del data["gap"]
        # Arrays, and the numbers of numpy that a solver of one's own counts with.
        return json.dumps(data, default=operator.methodcaller("tolist"))

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            If the text is no JSON object with exactly the fields of a result.
        """
        data = json.loads(text)
        fields = {name for name in cls.__dataclass_fields__ if name != "gap"}
        if not isinstance(data, dict) or set(data) != fields:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a result is a JSON object with the fields {sorted(fields)}, got {got}")
        if data["status"] not in get_args(Status):
            raise ValueError(f"status must be one of {', '.join(get_args(Status))}, got {data['status']!r}")
        trajectory = tuple(TrajectoryPoint(float(seconds), value, at) for seconds, value, at in data["trajectory"])
        given = data["solution"]
        solution = Placement.from_lists(given) if isinstance(given, dict) else np.array(given)
        return cls(**data | {"trajectory": trajectory, "solution": solution})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the value of the incumbent over time, on a logarithmic scale, and the bound.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw, beside what is there; by default on axes of its own, with the outcome as their title.

        Returns
        -------
        matplotlib Axes
        """
        import matplotlib.pyplot as plt
        from matplotlib.ticker import NullFormatter

        if ax is None:
            ax = plt.subplots()[1]
            ax.set_title(self.outcome())
        times = (*(point.seconds for point in self.trajectory), self.runtime)
        seconds = [max(each, LEAST_DRAWN_SECONDS) for each in times]
        values = [point.value for point in self.trajectory] + [self.value]
        # The name is enough in a legend: the parameters of some solvers are longer than a picture is wide.
        # The mark shows an answer that came at once, which is no line.
        ax.step(seconds, values, ".-", where="post", markevery=[-1], label=self.solver.split("(")[0])
        if self.bound is not None:
            ax.axhline(self.bound, linestyle="--", color="0.5", label="bound")
        ax.set_xscale("log")
        # At least one whole decade, and only decades are labelled: closer labels would stand upon one another.
        first = 10.0 ** math.floor(math.log10(ax.dataLim.minposx))
        ax.set_xlim(first, max(10 * first, 1.1 * ax.dataLim.xmax))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("seconds")
        ax.set_ylabel("value of the incumbent")
        ax.legend()
        return ax


def frozen_copy(solution: Any) -> Any:
    """Return a read-only copy of an array, which a search goes on changing; any other solution as it is."""
    if isinstance(solution, np.ndarray):
        solution = solution.copy()
        solution.flags.writeable = False
    return solution


def relative_gap(value: float, bound: float | None) -> float | None:
    """Return ``(value - bound) / |value|``; see `Result`."""
    if bound is None:
        return None
    if value <= bound:
        return 0.0
    return (value - bound) / abs(value) if value else math.inf


def reached(value: float, bound: float | None, problem: Problem) -> bool:
    """Return whether a value of a problem is proved optimal by a bound: equal, or for floats equal up to rounding."""
    return bound is not None and value <= met(bound, problem)


def met(bound: int | float, problem: Problem) -> int | float:
    """Return the largest value of a problem that equals a bound, for floats up to rounding.

    An ordinary value may be far above the least one, as where some costs stand for what is forbidden, and far below it,
    where a part of the value is one that nothing can be done about: the lesser of the two decides, down to rounding.
    """
    if problem.integral:
        return bound
    ordinary, size = problem.ordinary_value(), abs(bound)
    return bound + max(BOUND_PRECISION * min(ordinary, size), ORDINARY_PRECISION * ordinary, SUM_PRECISION * size)


def format_number(value: float) -> str:
    """Return a value or a bound as people read it: integers in full."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.9g}"


def format_gap(gap: float | None) -> str:
    """Return a gap in percent."""
    return "unknown" if gap is None else f"{100 * gap:.3f} %"
