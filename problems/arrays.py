"""Validated, read-only arrays for the data of a problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

INT64_MAX = 2**63 - 1


def numeric_array(name: str, values: npt.ArrayLike, ndim: int) -> npt.NDArray[Any]:
    """Return `values` as a new, read-only, C-contiguous int64 or float64 array.

    Parameters
    ----------
    name : str
        Name of the argument, for the error messages.
    values : array_like
        Integers (bool counts as integer) or real numbers.
    ndim : int
        Number of dimensions expected.

    Returns
    -------
    ndarray
        int64 if `values` are integers, else float64.

    Raises
    ------
    TypeError
        If the values are not real numbers.
    ValueError
        If the number of dimensions is not `ndim`, the array is empty, a value is NaN or infinite, or an integer does
        not fit in 64 bits.
    """
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
    # Of integers in lists numpy makes objects, or floats that lost their last digits, once one exceeds 64 bits.
    if array.dtype.kind == "f" and not isinstance(values, np.ndarray) and np.abs(array).max(initial=0.0) >= 2.0**63:
        array = np.asarray(values, dtype=object)
    return array.dtype.kind == "O" and array.size > 0 and all(isinstance(x, int) for x in array.flat)


def square_matrix(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return `values` as a read-only square int64 or float64 matrix; errors as `numeric_array`."""
    shape = np.shape(values)
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} must be square, got shape {shape}")
    return numeric_array(name, values, 2)


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same array with writing switched off."""
    array.flags.writeable = False
    return array


def largest_magnitude(array: npt.NDArray[Any]) -> int:
    """Return max |a| of an integer array as a Python int, exact at the minimum of int64 too."""
    return max(abs(int(array.max())), abs(int(array.min())))


def require_fits_int64(what: str, magnitude: int) -> None:
    """Raise ValueError if a sum whose magnitude may reach `magnitude` could overflow 64-bit integers."""
    if magnitude > INT64_MAX:
        raise ValueError(
            f"{what} can reach {magnitude:.3e}, which overflows 64-bit integers; scale the integers down or pass floats"
        )
