"""A solver of the user's own file in the comparison."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from moe_search.solvers.solver import Solver

WRAPPER = '''"""Written by `moe-search bench --solver-file`: {label} of {path}."""

from moe_search.bench.anytime_solver import AnytimeSolver
from moe_search.bench.solver_file import load_solvers


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
        If it is no Python file, or holds no solver.
    """
    path = path.resolve()
    if path.suffix != ".py" or set("[]") & set(str(path)):
        raise ValueError(f"a solver file must be a .py file without brackets in its path, got {path}")
    content = path.read_bytes()
    if _is_benchopt_file(_load(path)):
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
        If it holds neither.
    """
    module = _load(Path(path))
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
    if len(found) == 1:
        (solver,) = found.values()
        return {type(solver).__name__: solver}
    return found


def _load(path: Path) -> ModuleType:
    # Pickling and caching of what it defines go by the name in sys.modules.
    name = f"moe_search_solver_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _is_benchopt_file(module: ModuleType) -> bool:
    from benchopt import BaseSolver

    solver = getattr(module, "Solver", None)
    return isinstance(solver, type) and issubclass(solver, BaseSolver)
