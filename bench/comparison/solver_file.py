"""A solver of the user's own file in the comparison."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path
from types import ModuleType

from moe_search.solvers.engine.solver import Solver

WRAPPER = '''"""Written by `moe-search bench --solver-file`: {label} of {path}."""

from moe_search.bench.comparison.anytime_solver import AnytimeSolver
from moe_search.bench.comparison.solver_file import load_solvers


class Solver(AnytimeSolver):
    """{label}."""

    name = {label!r}

    def method(self):
        """Return the solver to run."""
        return load_solvers({path!r})[{label!r}]
'''


def solver_patterns(path: Path, folder: Path) -> list[str]:
    """Return what benchopt takes as solvers for a file.

    Parameters
    ----------
    path : Path
        A benchopt solver file, which holds a class ``Solver`` derived from ``benchopt.BaseSolver``; or a module with
        `moe_search.solvers.Solver` objects, or with classes of them that need no argument.
    folder : Path
        Where a file for each of those is written. It depends on the content, so that benchopt's cache does.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no Python file, cannot be imported by its name, or holds no solver.
    """
    path = path.resolve()
    if path.suffix != ".py" or set("[]") & set(str(path)):
        raise ValueError(f"a solver file must be a .py file without brackets in its path, got {path}")
    content = path.read_bytes()
    if _is_benchopt_file(path, content):
        return [str(path)]
    digest = hashlib.sha256(content + str(path).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    patterns = []
    for number, label in enumerate(load_solvers(path)):
        wrapper = folder / f"{path.stem}_{digest}_{number}.py"
        wrapper.write_text(WRAPPER.format(label=label, path=str(path)), encoding="utf-8")
        patterns.append(str(wrapper))
    return patterns


def load_solvers(path: str | Path) -> dict[str, Solver]:
    """Return the solvers of a module by name: its objects by variable, else its classes, each made without arguments.

    Raises
    ------
    ValueError
        If it cannot be imported by its name, or holds neither.
    """
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
    from benchopt import BaseSolver

    return isinstance(solver, type) and issubclass(solver, BaseSolver)
