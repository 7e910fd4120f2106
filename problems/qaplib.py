"""Files of QAPLIB, the library of quadratic assignment problems."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.arrays import INT64_MAX, dense
from moe_search.problems.permutation_problem import Permutation, inverse
from moe_search.problems.quadratic import QuadraticAssignment

# What Python takes for an integer is more: 1_000, and the digits of all alphabets.
INTEGER = re.compile(r"[+-]?[0-9]+")


def read_qaplib(path: str | os.PathLike[str]) -> QuadraticAssignment:
    """Read an instance in QAPLIB's .dat format: n, then two n x n integer matrices A and B, and some have a third, C.

    Parameters
    ----------
    path : path-like
        The file. Line breaks and blank lines carry no meaning in the format.

    Returns
    -------
    QuadraticAssignment
        With flow A, distance B and linear term C, ``value(p) = sum_{i, j} A[i, j] B[p[i], p[j]] + sum_i C[i, p[i]]``.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file; the message names the file, what was expected and what came.

    References
    ----------
    R. E. Burkard, S. E. Karisch, F. Rendl, "QAPLIB - a quadratic assignment problem library", Journal of Global
    Optimization 10 (1997), 391-403.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.write_qaplib("three.dat", ms.random_quadratic(3, seed=0))
    >>> ms.read_qaplib("three.dat").size
    3
    """
    n, numbers = _read(path)
    two, three = (1 + matrices * n * n for matrices in (2, 3))
    if len(numbers) not in (two, three):
        fault = "truncated" if len(numbers) < two else "too long" if len(numbers) > three else "of no right length"
        raise ValueError(
            f"{os.fspath(path)} is {fault}: n = {n} needs {two} integers (n, A, B), or {three} with a linear matrix,"
            f" got {len(numbers)}"
        )
    largest = max(numbers[1:], key=abs)
    if abs(largest) > INT64_MAX:
        raise ValueError(f"{os.fspath(path)} must hold integers of 64 bits, got {largest}")
    return QuadraticAssignment(*np.array(numbers[1:], dtype=np.int64).reshape(-1, n, n))


def write_qaplib(path: str | os.PathLike[str], problem: QuadraticAssignment) -> None:
    """Write an integer instance in QAPLIB's .dat format, its linear term, which few programs read, as a third matrix.

    Raises
    ------
    TypeError, ValueError
        If it is no `QuadraticAssignment`, or not integral.

    Examples
    --------
    >>> from pathlib import Path
    >>> import moe_search as ms
    >>> ms.write_qaplib("two.dat", ms.QuadraticAssignment([[0, 1], [1, 0]], [[0, 5], [5, 0]]))
    >>> Path("two.dat").read_text().split()
    ['2', '0', '1', '1', '0', '0', '5', '5', '0']
    """
    if not isinstance(problem, QuadraticAssignment):
        raise TypeError(f"problem must be a QuadraticAssignment, got {type(problem).__name__}")
    if not problem.integral:
        raise ValueError("problem must hold integers to be written as a QAPLIB file, got floats")
    rows = [[str(problem.size)]]
    for matrix in (dense(problem.flow), problem.distance, problem.linear):
        if matrix is not None:
            rows += [[]] + [[str(x) for x in row] for row in matrix.tolist()]
    Path(path).write_text("\n".join(" ".join(row) for row in rows) + "\n", encoding="ascii")


def read_qaplib_solution(path: str | os.PathLike[str], problem: QuadraticAssignment) -> tuple[int, Permutation]:
    """Read a solution of a problem in QAPLIB's .sln format: n, the value, then a permutation counted from 1.

    Some public files hold the inverse, the facility of every location: whichever of the two has the value that the
    file states is returned.

    Parameters
    ----------
    path : path-like
        The file.
    problem : QuadraticAssignment
        The instance that it solves.

    Returns
    -------
    value : int
        The value that the file states, which is that of the permutation.
    permutation : ndarray of int64, shape (n,)
        The location of every facility, counted from 0.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file, or of another size, or neither its permutation nor the inverse has the stated value.

    Warns
    -----
    UserWarning
        If the file holds the inverse.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.QuadraticAssignment([[0, 3, 1], [3, 0, 2], [1, 2, 0]], [[0, 4, 1], [4, 0, 6], [1, 6, 0]])
    >>> ms.write_qaplib_solution("three.sln", problem.value([2, 0, 1]), [2, 0, 1])
    >>> value, permutation = ms.read_qaplib_solution("three.sln", problem)
    >>> value, permutation.tolist()
    (34, [2, 0, 1])
    """
    n, numbers = _read(path)
    if len(numbers) != n + 2:
        raise ValueError(f"{os.fspath(path)} must hold n, a value and {n} numbers, got {len(numbers)} integers")
    if sorted(numbers[2:]) != list(range(1, n + 1)):
        raise ValueError(f"{os.fspath(path)} must hold a permutation of 1 .. {n}, got {numbers[2:]}")
    if n != problem.size:
        raise ValueError(f"{os.fspath(path)} must be a solution of size {problem.size}, got size {n}")
    stated, written = numbers[1], np.array(numbers[2:], dtype=np.int64) - 1
    value = problem.value(written)
    if value == stated:
        return stated, written
    turned = inverse(written)
    inverse_value = problem.value(turned)
    if inverse_value != stated:
        raise ValueError(
            f"{os.fspath(path)} states the value {stated}, but its permutation has {value}, the inverse {inverse_value}"
        )
    warnings.warn(
        f"{os.fspath(path)} holds the facility of every location, which has the value {value}: the inverse is returned,"
        f" which has the value {stated} that the file states",
        stacklevel=2,
    )
    return stated, turned


def write_qaplib_solution(path: str | os.PathLike[str], value: int, permutation: npt.ArrayLike) -> None:
    """Write a solution in QAPLIB's .sln format (the permutation counted from 1).

    Raises
    ------
    TypeError, ValueError
        If `value` is no integer, or `permutation` no permutation of 0 .. n - 1.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> import moe_search as ms
    >>> ms.write_qaplib_solution("three.sln", 34, [2, 0, 1])
    >>> print(Path("three.sln").read_text(), end="")
    3 34
    3 1 2
    """
    require_integer("value", value, -INT64_MAX)
    p = np.asarray(permutation)
    if p.ndim != 1 or p.dtype.kind not in "iu" or not np.array_equal(np.sort(p), np.arange(p.size)):
        raise ValueError(f"permutation must be one of 0 .. n - 1, got {p.tolist()}")
    line = " ".join(str(x) for x in (p + 1).tolist())
    Path(path).write_text(f"{p.size} {value}\n{line}\n", encoding="ascii")


def _read(path: str | os.PathLike[str]) -> tuple[int, list[int]]:
    """Return the size that a file begins with, and all its numbers."""
    try:
        # Some solution files of the library separate their numbers by commas.
        words = Path(path).read_text(encoding="ascii").replace(",", " ").split()
        wrong = next((word for word in words if not INTEGER.fullmatch(word)), None)
        if wrong is not None:
            raise ValueError(f"got {wrong!r}")
        numbers = [int(word) for word in words]
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is no QAPLIB file: expected integers only ({error})") from error
    if not numbers or numbers[0] < 1:
        got = numbers[0] if numbers else "an empty file"
        raise ValueError(f"{os.fspath(path)} is no QAPLIB file: expected a size n >= 1 first, got {got}")
    return numbers[0], numbers
