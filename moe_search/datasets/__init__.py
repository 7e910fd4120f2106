"""Data sets made from what is installed: nothing is downloaded."""

from moe_search.datasets.two_digits import TwoDigits, TwoDigitsSplit, load_two_digits

__all__ = ["TwoDigits", "TwoDigitsSplit", "load_two_digits"]
