"""Which tests run in one process, where several run at a time."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        # Tests of a file share fixtures, and kernels that would else be compiled in every process.
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.location[0]))
