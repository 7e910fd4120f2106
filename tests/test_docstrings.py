"""Every public name has an example in its docstring, and all of them run."""

import doctest
import importlib

import pytest
from packages import PACKAGES

import moe_search as ms

# Their examples compile kernels.
COMPILED = {
    "BalancedTopK",
    "BranchAndBound",
    "BreakoutLocalSearch",
    "CallableProblem",
    "CoActivation",
    "CoActivationSearch",
    "Enumeration",
    "ExpertPlacement",
    "ExpertSpecialization",
    "IteratedLocalSearch",
    "LocalSearch",
    "LongestProcessingTime",
    "MemeticSearch",
    "PartitionSearch",
    "PlacementCpSat",
    "PlacementSearch",
    "Rebalancing",
    "SimulatedAnnealing",
    "SubsetEnumeration",
    "SubsetSearch",
    "TabuSearch",
    "Transport",
    "cluster_neurons",
    "expert_map",
    "load_mixtures",
    "rebalance_experts",
    "sample_local_optima",
    "simulate",
    "solve",
    "to_mixture",
}


# Names, not objects: collecting the tests loads no torch.
PUBLIC = [
    *(("moe_search", name) for name in ms.__all__ if name not in PACKAGES),
    *(("moe_search.analysis", name) for name in ms.analysis.__all__),
    *(("moe_search.plotting", name) for name in ms.plotting.__all__),
    *(("moe_search.serving", name) for name in ms.serving.__all__),
    *(("moe_search.integrations", name) for name in ms.integrations.__all__),
]


def marks(package, name):
    if package == "moe_search.integrations":
        return [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of its own dependencies, at import
    return [pytest.mark.slow] if name in COMPILED else []


@pytest.mark.parametrize(("package", "name"), [pytest.param(*each, marks=marks(*each)) for each in PUBLIC])
def test_the_example_runs(package, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(importlib.import_module(package), name)
    tests = doctest.DocTestFinder().find(value, name, module=False)
    assert any(test.name == name and test.examples for test in tests), f"{name} has no example in its docstring"
    for test in tests:
        told = []
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=told.append)
        assert not told, "".join(told)
