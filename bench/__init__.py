"""Benchmarks: ratios measured in one run. Nothing of the library imports them."""
