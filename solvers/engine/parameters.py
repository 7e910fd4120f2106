"""Checks of the parameters of solvers and stopping criteria."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


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
    return value.item() if isinstance(value, np.generic) else value


def require_choice(name: str, given: Any, choices: Sequence[Any]) -> None:
    """Raise unless `given` is one of some choices: a TypeError for True and False, else a ValueError."""
    if isinstance(choices[0], bool):
        if not isinstance(given, bool):
            raise TypeError(f"{name} must be True or False, got {given!r}")
    elif given not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {given!r}")


def require_count(name: str, given: Any) -> None:
    """Raise unless `given` is an int of at least 1."""
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{name} must be an int, got {type(given).__name__}")
    if given < 1:
        raise ValueError(f"{name} must be at least 1, got {given}")


def require_number(name: str, given: Any, least: float, strict: bool = False) -> None:
    """Raise unless `given` is a finite number that is at least (strict: above) `least`."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(given).__name__}")
    if not (least < given < math.inf or (given == least and not strict)):
        raise ValueError(f"{name} must be a finite number {'>' if strict else '>='} {least:g}, got {given}")
