"""Files of QAPLIB, the library of quadratic assignment problems."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import INT64_MAX
from moe_search.problems.permutation_problem import Permutation
from moe_search.problems.quadratic import QuadraticAssignment


def read_qaplib(path: str | os.PathLike[str]) -> QuadraticAssignment:
    """Read an instance in QAPLIB's .dat format: n, then two n x n integer matrices A and B.

    Parameters
    ----------
    path : path-like
        The file. Line breaks and blank lines carry no meaning in the format.

    Returns
    -------
    QuadraticAssignment
        With flow A and distance B, ``value(p) = sum_{i, j} A[i, j] B[p[i], p[j]]``.

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
    expected = 1 + 2 * n * n
    if len(numbers) != expected:
        fault = "truncated" if len(numbers) < expected else "too long"
        raise ValueError(
            f"{os.fspath(path)} is {fault}: n = {n} needs {expected} integers (n, A, B), got {len(numbers)}"
        )
    largest = max(numbers[1:], key=abs)
    if abs(largest) > INT64_MAX:
        raise ValueError(f"{os.fspath(path)} must hold integers of 64 bits, got {largest}")
    flow, distance = np.array(numbers[1:], dtype=np.int64).reshape(2, n, n)
    return QuadraticAssignment(flow, distance)


def write_qaplib(path: str | os.PathLike[str], problem: QuadraticAssignment) -> None:
    """Write an integer instance without linear term in QAPLIB's .dat format.

    Raises
    ------
    ValueError
        If the problem has a linear term or is not integral: the format knows neither.

    Examples
    --------
    >>> from pathlib import Path
    >>> import moe_search as ms
    >>> ms.write_qaplib("two.dat", ms.QuadraticAssignment([[0, 1], [1, 0]], [[0, 5], [5, 0]]))
    >>> Path("two.dat").read_text().split()
    ['2', '0', '1', '1', '0', '0', '5', '5', '0']
    """
    if not problem.integral or problem.linear is not None:
        raise ValueError(
            "a QAPLIB file holds two integer matrices and no linear term, got a problem with floats or one"
        )
    rows = [[str(problem.size)]]
    for matrix in (problem.flow, problem.distance):
        rows += [[]] + [[str(x) for x in row] for row in matrix.tolist()]
    Path(path).write_text("\n".join(" ".join(row) for row in rows) + "\n", encoding="ascii")


def read_qaplib_solution(path: str | os.PathLike[str]) -> tuple[int, Permutation]:
    """Read a solution in QAPLIB's .sln format: n, the value, then a permutation counted from 1.

    Returns
    -------
    value : int
        The value that the file states.
    permutation : ndarray of int64, shape (n,)
        Counted from 0.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such file.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.write_qaplib_solution("three.sln", 34, [2, 0, 1])
    >>> value, permutation = ms.read_qaplib_solution("three.sln")
    >>> value, permutation.tolist()
    (34, [2, 0, 1])
    """
    n, numbers = _read(path)
    if len(numbers) != n + 2:
        raise ValueError(f"{os.fspath(path)} must hold n, a value and {n} numbers, got {len(numbers)} integers")
    if sorted(numbers[2:]) != list(range(1, n + 1)):
        raise ValueError(f"{os.fspath(path)} must hold a permutation of 1 .. {n}, got {numbers[2:]}")
    return numbers[1], np.array(numbers[2:], dtype=np.int64) - 1


def write_qaplib_solution(path: str | os.PathLike[str], value: int, permutation: npt.ArrayLike) -> None:
    """Write a solution in QAPLIB's .sln format (the permutation counted from 1).

    Raises
    ------
    ValueError
        If `permutation` is no permutation of 0 .. n - 1.
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
    p = np.asarray(permutation)
    if p.ndim != 1 or not np.array_equal(np.sort(p), np.arange(p.size)):
        raise ValueError(f"permutation must be one of 0 .. n - 1, got {p.tolist()}")
    line = " ".join(str(x) for x in (p + 1).tolist())
    Path(path).write_text(f"{p.size} {int(value)}\n{line}\n", encoding="ascii")


def _read(path: str | os.PathLike[str]) -> tuple[int, list[int]]:
    """Return the size that a file begins with, and all its numbers."""
    try:
        # Some solution files of the library separate their numbers by commas.
        numbers = [int(word) for word in Path(path).read_text(encoding="ascii").replace(",", " ").split()]
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is no QAPLIB file: expected integers only ({error})") from error
    if not numbers or numbers[0] < 1:
        got = numbers[0] if numbers else "an empty file"
        raise ValueError(f"{os.fspath(path)} is no QAPLIB file: expected a size n >= 1 first, got {got}")
    return numbers[0], numbers
