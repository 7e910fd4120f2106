"""Which tests run in one process, where several run at a time."""

import pytest

LONGEST = ("tests/test_distribution.py", "tests/bench/test_comparison.py", "tests/solvers/test_contract.py")


# First, or pytest-xdist has looked for groups already.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    # Groups are handed out in this order: a long one at the end would leave all other processes waiting.
    items.sort(key=lambda item: item.location[0] not in LONGEST)
    for item in items:
        # Tests of a file share fixtures, and kernels that would else be compiled in every process.
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
