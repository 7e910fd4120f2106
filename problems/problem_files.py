"""Problems in files: the arrays that a problem is made of, by their names, a table of costs, or a QAPLIB instance."""

from __future__ import annotations

import inspect
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.qaplib import read_qaplib
from moe_search.problems.quadratic import QuadraticAssignment

SUFFIXES = (".dat", ".npz", ".csv")
KINDS = (LinearAssignment, PairwiseAssignment, QuadraticAssignment, MixtureAssignment)


def read_problem(path: str | os.PathLike[str]) -> PermutationProblem:
    r"""Read a problem from a file, whose suffix says what it is.

    Parameters
    ----------
    path : path-like
        ``.dat``: an instance of QAPLIB; see `read_qaplib`. ``.npz``: arrays that `numpy.savez` wrote, by the names of
        the parameters of a class: ``cost`` of a `LinearAssignment`; ``cost`` in four dimensions, and ``block_size``, of
        a `PairwiseAssignment`; ``flow``, ``distance`` and ``linear`` of a `QuadraticAssignment`; ``slot_weights``,
        ``outputs``, ``targets``, ``loss`` and ``sample_weights`` of a `MixtureAssignment`. ``.csv``: the costs of a
        `LinearAssignment`, a line a slot, without a heading.

    Returns
    -------
    PermutationProblem

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or its numbers make no problem. Nothing is unpickled.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import moe_search as ms
    >>> path = Path(tempfile.mkdtemp()) / "costs.csv"
    >>> _ = path.write_text("4, 1\n2, 0\n")
    >>> ms.read_problem(path)
    LinearAssignment(size=2, integral)
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{os.fspath(path)} must end in one of {', '.join(SUFFIXES)}, got {suffix or 'no suffix'}")
    if suffix == ".dat":
        return read_qaplib(path)
    try:
        return LinearAssignment(_read_table(path)) if suffix == ".csv" else _problem_of(_read_arrays(path))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)} holds no problem: {error}") from error


def _read_table(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    # Some spreadsheets begin with a mark of the byte order.
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    if not any(line.strip() for line in lines):
        raise ValueError("it is empty")
    # Integers beyond 64 bits are refused: as floats they would lose digits.
    dtype = np.float64 if set(".eE") & set("".join(lines)) else np.int64
    try:
        return np.loadtxt(lines, dtype=dtype, delimiter=",", ndmin=2, comments=None)
    except ValueError as error:
        raise ValueError(f"it must hold numbers alone, a line a slot, without a heading ({error})") from error


def _read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        # Opened here, as numpy leaves open what is no archive.
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict(file)
    except (EOFError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        # What numpy says here is how to unpickle it.
        raise ValueError("it must hold arrays of numbers or words, as numpy.savez writes them") from error


def _problem_of(arrays: dict[str, npt.NDArray[Any]]) -> PermutationProblem:
    kind: type[PermutationProblem]
    if "cost" in arrays:
        kind = PairwiseAssignment if arrays["cost"].ndim == 4 else LinearAssignment
    else:
        kind = MixtureAssignment if "outputs" in arrays else QuadraticAssignment
    parameters = _array_names(kind)
    if not {name for name, needed in parameters.items() if needed} <= arrays.keys() <= parameters.keys():
        expected = "; ".join(f"a {each.__name__}: {_listed(_array_names(each))}" for each in KINDS)
        raise ValueError(f"its arrays must be those of {expected}; got {', '.join(arrays) or 'none'}")
    given: dict[str, Any] = {name: array.item() if array.ndim == 0 else array for name, array in arrays.items()}
    return kind(**given)


def _array_names(kind: type[PermutationProblem]) -> dict[str, bool]:
    """Return the names of the arrays of a problem, and whether it needs them."""
    return {each.name: each.default is each.empty for each in inspect.signature(kind).parameters.values()}


def _listed(names: dict[str, bool]) -> str:
    return ", ".join(name if needed else f"{name} (optional)" for name, needed in names.items())
