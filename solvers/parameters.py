"""Checks of the parameters of solvers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def store_plain(solver: Any) -> None:
    """Make Python's numbers of numpy's in the fields of a frozen dataclass, and in tuples there.

    A sweep over ``np.arange`` then means what one over ``range`` does: in arithmetic, which does not wrap around, in
    `repr` and in JSON.
    """
    for field in dataclasses.fields(solver):
        given = getattr(solver, field.name)
        plain = tuple(map(_plain, given)) if isinstance(given, tuple) else _plain(given)
        object.__setattr__(solver, field.name, plain)


def _plain(given: Any) -> Any:
    return given.item() if isinstance(given, np.generic) else given


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
