"""How kernels call one another."""

import numpy as np

from moe_search.problems.kernels import compiled


@compiled
def entry(values, k, adding):
    return values[k] + 1 if adding is not None else values[k]


@compiled
def both_entries(values):
    return entry(values, 0, None), entry(values, 1, None), entry(values, 2, True)


def test_a_kernel_is_compiled_for_its_callers_apart_and_once_for_all_numbers():
    values = np.array([3, 5, 7])
    assert both_entries(values) == (3, 5, 8)
    assert not getattr(entry, "signatures", [])
    assert entry(values, 2, None) == 7
    assert len(getattr(entry, "signatures", [1])) == 1
