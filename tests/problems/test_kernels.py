"""How kernels call one another."""

import numpy as np
import pytest
from numba import config

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


@pytest.mark.skipif(config.DISABLE_JIT, reason="there is no machine code")
def test_a_kernel_that_makes_no_array_counts_no_references():
    def first_of_rows(matrix, firsts):
        for i in range(len(matrix)):
            row = matrix[i]
            firsts[i] = row[i % 2]

    counts = []
    for allocates in (True, False):
        kernel = compiled(first_of_rows, allocates=allocates)
        kernel(np.ones((3, 2)), np.ones(3))
        counts.append("NRT_decref" in kernel.inspect_asm(kernel.signatures[0]))
    assert counts == [True, False]
