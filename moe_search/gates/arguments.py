"""Checks of the numbers a constructor is given."""

from __future__ import annotations

import math
import operator
from typing import Any


def positive_integer(name: str, value: Any) -> int:
    """Return ``value`` as an int, or raise an error that says why it is no positive integer.

    Raises
    ------
    TypeError
        If it is not an integer.
    ValueError
        If it is less than 1.
    """
    try:
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if integer < 1:
        raise ValueError(f"{name} must be at least 1, got {integer}")
    return integer


def at_most_slots(name: str, value: Any, num_slots: int) -> int:
    """Return ``value`` as an int in 1 .. ``num_slots``; errors as `positive_integer`."""
    integer = positive_integer(name, value)
    if integer > num_slots:
        raise ValueError(f"{name} must be at most the number of slots, {num_slots}, got {integer}")
    return integer


def positive_number(name: str, value: Any) -> float:
    """Return ``value`` as a float, or raise an error that says why it is no positive, finite number."""
    number = _finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be greater than 0, got {number}")
    return number


def number_from_zero(name: str, value: Any) -> float:
    """Return ``value`` as a float, or raise an error that says why it is no finite number of at least 0."""
    number = _finite(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number}")
    return number


def _finite(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number
