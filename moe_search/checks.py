"""Checks of the arguments that everything here is given: one wording, one verdict.

This module stands below all packages and imports none of them.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np


def require_integer(name: str, value: Any, least: int = 1) -> int:
    """Return `value` as an int of at least `least`; True and False are none."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if integer < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {integer}")
    return integer


def require_n_jobs(value: Any, name: str = "n_jobs") -> None:
    """Raise TypeError or ValueError unless `value` is a number of workers as joblib counts them."""
    # No machine has as many processors.
    if require_integer(name, value, -(2**31)) == 0:
        raise ValueError(f"{name} must be positive, or negative to count from the number of processors, got 0")


def require_number(name: str, value: Any, least: float = 0.0, *, strict: bool = False, finite: bool = True) -> float:
    """Return `value` as a float of at least (strict: above) `least`, finite unless infinity is allowed."""
    try:
        if isinstance(value, bool | np.bool_ | str | bytes):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not (number > least or (number == least and not strict)) or (finite and math.isinf(number)):
        bound = "" if least == -math.inf else f" {'>' if strict else '>='} {least:g}"
        raise ValueError(f"{name} must be a {'finite ' if finite else ''}number{bound}, got {number:g}")
    return number


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of some words."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def require_flag(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def store_plain(given: Any) -> None:
    """Make Python's numbers of numpy's in the fields of a frozen dataclass, and tuples of lists, which it cannot hash.

    A sweep over ``np.arange`` then means what one over ``range`` does: in arithmetic, which does not wrap around, in
    `repr` and in JSON. Fields that a constructor does not take are left alone.
    """
    for field in dataclasses.fields(given):
        if field.init:
            value = getattr(given, field.name)
            plain = tuple(map(_plain, value)) if type(value) in (tuple, list) else _plain(value)
            object.__setattr__(given, field.name, plain)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | np.ndarray) and np.ndim(value) == 0 else value
