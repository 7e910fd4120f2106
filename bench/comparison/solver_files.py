"""What benchopt sees of a solver: a file with a class ``Solver``, written for ours and for those of a user's file."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from benchopt import BaseSolver

from moe_search.bench.comparison.solvers import SOLVERS
from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.solvers.engine.result import Incumbent
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import AnyOf, MaxIterations, MaxRuntime

EVERY_POINT_UP_TO = 20
# What compiling takes does not count. Stopped at once, a search would not run its kernel.
WARM_UP_SECONDS = 0.05
SOLVER_FILE = '''"""Written by `moe-search bench`."""

from moe_search.bench.comparison.solver_files import AnytimeSolver


class Solver(AnytimeSolver):
    name = {name!r}
    source = {source!r}
'''


class AnytimeSolver(BaseSolver):
    """Run a `moe_search.solvers.Solver` and let benchopt look at every new incumbent.

    The seed of a run depends on its repetition only, so that solvers are compared on equal seeds.

    Attributes
    ----------
    name : str
        The key of `SOLVERS`, or the name of the object or class in the user's file.
    source : str or None
        The user's file; None for a solver of `SOLVERS`.
    """

    sampling_strategy = "callback"
    requirements = ("pip::moe-search[bench]",)
    source: str | None

    def solver(self) -> Solver:
        """Return the solver to run."""
        return SOLVERS[self.name]() if self.source is None else load_solvers(self.source)[self.name]

    def skip(self, problem: PermutationProblem, seconds: float) -> tuple[bool, str | None]:
        """Skip the problems that the solver refuses, with its reason."""
        reason = self.solver().reason_against(problem)
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
            self.solver().solve(self.problem, AnyOf(MaxIterations(2000), MaxRuntime(WARM_UP_SECONDS)), self.seed)

    def run(self, callback: Callable[[], bool]) -> None:
        """Solve, and call back at every improvement and at the end."""

        def show(incumbent: Incumbent) -> None:
            self.permutation = incumbent.permutation
            callback()

        with self._note_of_error():
            result = self.solver().solve(self.problem, MaxRuntime(self.seconds), self.seed, on_improvement=show)
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


def our_solver_files(folder: Path) -> list[Path]:
    """Write the files of `SOLVERS` to a folder and return their paths."""
    return [
        write_once(folder / f"{name.replace(' ', '_')}.py", SOLVER_FILE.format(name=name, source=None))
        for name in SOLVERS
    ]


def solver_patterns(path: Path, folder: Path) -> list[str]:
    """Return what benchopt takes as solvers for a file.

    Parameters
    ----------
    path : Path
        A benchopt solver file, which holds a class ``Solver`` derived from ``benchopt.BaseSolver``; or a module with
        `moe_search.solvers.Solver` objects, or with classes of them that need no argument.
    folder : Path
        The folder in which a file for each of those is written, by a name that depends on the content: so does then
        the key of its runs in benchopt's cache.
    """
    path = path.resolve()
    if path.suffix != ".py" or set("[]") & set(str(path)):
        raise ValueError(f"a solver file must be a .py file without brackets in its path, got {path}")
    content = path.read_bytes()
    if _is_benchopt_file(path, content):
        return [str(path)]
    digest = hashlib.sha256(content + str(path).encode()).hexdigest()[:12]
    return [
        str(write_once(folder / f"{path.stem}_{digest}_{number}.py", SOLVER_FILE.format(name=name, source=str(path))))
        for number, name in enumerate(load_solvers(path))
    ]


def load_solvers(path: str | Path) -> dict[str, Solver]:
    """Return the solvers of a module by name: its objects by variable, else its classes, made without arguments."""
    module = _import(Path(path))
    found = {name: value for name, value in vars(module).items() if isinstance(value, Solver)}
    if not found:
        classes = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, Solver) and value.__module__ == module.__name__
        }
        found = {name: kind() for name, kind in classes.items()}
    if not found:
        raise ValueError(f"{path} must hold a moe_search Solver, a class of one, or a benchopt Solver, got none")
    return found


def write_once(path: Path, text: str) -> Path:
    """Write a file that benchopt loads, unless it is there: its path says what it holds."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another comparison may read or write it at this moment.
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    return path


def _import(path: Path) -> ModuleType:
    """Import a file as a script beside it does: by its own name, with its folder first on the path of modules.

    Numba's cache and pickles keep the names of modules, so a name of our own would make what the comparison leaves
    behind useless to the user's scripts, and theirs to it.
    """
    name, folder = path.stem, str(path.parent)
    if "." in name:
        raise ValueError(f"a solver file must have a name that can be imported, without dots, got {path}")
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.find_spec(name)
        _require_same_file(path, None if spec is None else spec.origin)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            module = importlib.import_module(name)
        except Exception as error:
            raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    _require_same_file(path, getattr(module, "__file__", None) or "built-in")
    return module


def _require_same_file(path: Path, origin: str | None) -> None:
    # A folder without __init__.py has no origin; a file of its name goes before it.
    if origin is not None and Path(origin).resolve() != path:
        raise ValueError(f"{path} must be renamed: there is another module {path.stem} already, {origin}")


def _is_benchopt_file(path: Path, content: bytes) -> bool:
    """Tell whether benchopt is to load the file itself.

    Such files are not imported by name: benchopt does not, and often they are named after the library they wrap.
    """
    try:
        classes = {node.name for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ClassDef)}
        solver = runpy.run_path(str(path)).get("Solver") if "Solver" in classes else None
    except Exception as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return isinstance(solver, type) and issubclass(solver, BaseSolver)
