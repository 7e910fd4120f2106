"""Which tests run in one process where several run at a time, and which are slow."""

import inspect
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PROCESSES = ("subprocess", "multiprocessing", "distributed")
# Their tests compile many kernels.
COMPILING = (
    "bench/demo",
    "bench/experiments/test_load_limit.py",
    "bench/experiments/test_scenarios.py",
    "bench/experiments/test_token_table.py",
    "bench/speed",
    "problems/test_delta_matrix.py",
    "solvers/exact",
    "solvers/heuristic",
    "solvers/test_load_limits.py",
    "test_new_solver.py",
    "test_solve.py",
)

# Groups are handed out in this order, all others after these: those that compile the kernels that others need come
# first, and a long one at the end would leave all other processes waiting.
FIRST = (
    "TabuSearch",
    "MemeticSearch",
    "LocalSearch",
    "BreakoutLocalSearch",
    "IteratedLocalSearch",
    "BranchAndBound",
    "SimulatedAnnealing",
    "tests/bench/comparison/test_comparison.py",
    "Enumeration",
    "Transport",
    "tests/layers/test_compile.py",
    "tests/test_distribution.py",
    "tests/bench/experiments/test_scenarios.py",
    "tests/test_solve.py",
    "tests/problems/test_delta_matrix.py",
    "tests/problems/test_contract.py",
    "tests/gates/test_contract.py",
)


def group_of(path):
    """Return the group of the tests of a file: for those of a solver, the one of the contract's tests of it."""
    words = path.stem.removeprefix("test_").split("_")
    solver = path.parts[-3:-1] in (("solvers", "heuristic"), ("solvers", "exact"))
    return "".join(map(str.capitalize, words)) if solver else path.relative_to(TESTS.parent).as_posix()


def starts_processes(module):
    """Return whether a module of the tests, or one that it takes functions from, imports a module of processes."""
    for value in vars(module).values():
        if inspect.ismodule(value) and value.__name__.split(".")[-1] in PROCESSES:
            return True
        home = inspect.getmodule(value) if inspect.isfunction(value) else None
        if home not in (None, module) and TESTS in Path(home.__file__).parents and starts_processes(home):
            return True
    return False


def _has_cuda():
    import torch

    return torch.cuda.is_available()


# First, or pytest-xdist has looked for groups already.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    slow = {module: starts_processes(module) for module in {item.module for item in items}}
    for item in items:
        # Tests of a file share fixtures, and kernels that would else be compiled in every process.
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(group_of(item.path)))
        compiles = item.path.relative_to(TESTS).as_posix().startswith(COMPILING)
        # The fixture `bench` starts the command of that name.
        if compiles or slow[item.module] or "bench" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("cuda") is not None and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    order = {group: place for place, group in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.get_closest_marker("xdist_group").args[0], len(order)))
