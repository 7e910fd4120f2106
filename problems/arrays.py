"""Validated, read-only arrays for the data of a problem, and the ranges of their numbers."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

INT64_MAX = 2**63 - 1
# Float64 holds all integers up to this.
EXACT_IN_FLOAT64 = 2**53
# Float64 ends at 1.8e308: this leaves room for what solvers add to a total, such as potentials and penalties.
FLOAT64_MOST = Decimal("1e300")


def numeric_array(name: str, values: npt.ArrayLike, ndim: int) -> npt.NDArray[Any]:
    """Return `values` as a new, read-only, C-contiguous int64 or float64 array.

    It is int64 if `values` are integers, True and False among them, and else float64.

    Raises
    ------
    ValueError
        If the number of dimensions is not `ndim`, the array is empty, a value is NaN or infinite, or an integer does
        not fit in 64 bits.
    """
    if is_sparse(values):
        raise TypeError(f"{name} must be a dense array, got a {type(values).__name__}; pass its toarray()")
    if np.ma.is_masked(values):
        raise ValueError(f"{name} must hold a number everywhere, got a masked array")
    array = np.asarray(values)
    if _holds_larger_integers(values, array):
        raise ValueError(f"{name} must hold integers of at most 64 bits, got larger ones")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold integers or real numbers, got dtype {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' * (ndim != 1)}, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty, got shape {array.shape}")
    if array.dtype.kind == "u" and int(array.max()) > INT64_MAX:
        raise ValueError(f"{name} must hold integers below 2**63, got {int(array.max())}")
    if array.dtype.kind == "f":
        bad = ~np.isfinite(array)
        if bad.any():
            where = tuple(int(k) for k in np.argwhere(bad)[0])
            raise ValueError(
                f"{name} must be finite, got {array[where]} at index {where} ({int(bad.sum())} such values)"
            )
        return read_only(np.array(array, dtype=np.float64, order="C"))
    return read_only(np.array(array, dtype=np.int64, order="C"))


def _holds_larger_integers(values: Any, array: npt.NDArray[Any]) -> bool:
    # Numpy makes objects of integers in lists once one exceeds 64 bits, or floats that lost their last digits.
    if array.dtype.kind == "f" and not isinstance(values, np.ndarray) and np.abs(array).max(initial=0.0) >= 2.0**63:
        array = np.asarray(values, dtype=object)
    return array.dtype.kind == "O" and array.size > 0 and all(isinstance(x, int) for x in array.flat)


def square_matrix(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return `values` as a read-only square int64 or float64 matrix; errors as `numeric_array`."""
    shape = np.shape(values)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} must be square, got shape {shape}")
    return numeric_array(name, values, 2)


def is_sparse(values: Any) -> bool:
    """Return whether `values` are a matrix or an array of scipy.sparse, which is not imported to know."""
    return hasattr(values, "tocoo")


def sparse_square_matrix(name: str, values: Any) -> Any:
    """Return `values`, of scipy.sparse, as a new, square int64 or float64 csr_array without zeros.

    Errors as `numeric_array`.
    """
    from scipy.sparse import csr_array

    if len(values.shape) != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"{name} must be square, got shape {values.shape}")
    if values.shape[0] == 0:
        raise ValueError(f"{name} must not be empty, got shape {values.shape}")
    entries = values.tocoo()
    bad = np.flatnonzero(~np.isfinite(entries.data))
    if bad.size:
        where, count = (int(entries.row[bad[0]]), int(entries.col[bad[0]])), bad.size
        raise ValueError(f"{name} must be finite, got {entries.data[bad[0]]} at index {where} ({count} such values)")
    # A zero in front, so that there is an entry where none is stored.
    given = numeric_array(name, np.concatenate([np.zeros(1, dtype=entries.dtype), entries.data]), 1)[1:]
    # Duplicates are added up.
    matrix = csr_array((given, (entries.row, entries.col)), shape=values.shape)
    matrix.eliminate_zeros()
    return matrix


def dense(matrix: Any) -> npt.NDArray[Any]:
    """Return a matrix, which may be one of scipy.sparse, as a read-only array."""
    return read_only(matrix.toarray()) if is_sparse(matrix) else matrix


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same array with writing switched off."""
    array.flags.writeable = False
    return array


def largest_magnitude(array: npt.NDArray[Any]) -> int | Decimal:
    """Return max |a| as a number whose products and sums do not overflow: a Python int for integers, else a Decimal."""
    magnitude = max(abs(array.max().item()), abs(array.min().item()))
    return magnitude if isinstance(magnitude, int) else Decimal(magnitude)


def require_fits(what: str, magnitude: int | Decimal) -> None:
    """Raise ValueError if a sum whose magnitude may reach `magnitude` could overflow.

    An int stands for a sum of 64-bit integers, a Decimal for one of float64, which is to stay below 1e300.
    """
    if isinstance(magnitude, int):
        if magnitude > INT64_MAX:
            raise ValueError(
                f"{what} can reach {Decimal(magnitude):.3e}, which overflows 64-bit integers;"
                " scale the integers down or pass floats"
            )
    elif magnitude > FLOAT64_MOST:
        raise ValueError(
            f"{what} can reach {magnitude:.3e}, {FLOAT64_MOST:.0e} at most fits in float64 with room;"
            " scale the data down"
        )


def grid_scale(reach: float, steps: float) -> float:
    """Return the power of two that scales `reach` to `steps` at most, and to no less than a quarter of it.

    Scaling by a power of two is exact, so that the error of rounding to the grid can be measured. It is 1 if `reach` is
    0, and coarser near the least of floats, where it would overflow.
    """
    if reach == 0:
        return 1.0
    # The exponent e that frexp gives for x has 2**(e - 1) <= x < 2**e.
    exponent = math.frexp(steps)[1] - 1 - math.frexp(max(reach, sys.float_info.min))[1]
    return math.ldexp(1.0, min(exponent, sys.float_info.max_exp - 1))
