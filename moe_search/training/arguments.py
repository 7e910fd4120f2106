"""Checks of the numbers a search is given."""

from __future__ import annotations

import numpy as np


def require_int(name: str, number: object, least: int) -> None:
    """Raise unless ``number`` is an integer of at least ``least``.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is less.
    """
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {type(number).__name__}")
    if number < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {number}")
