"""Which names there are."""

import importlib

import pytest

import moe_search as ms


@pytest.mark.parametrize("name", ms.solvers.__all__)
def test_every_solver_name_is_there(name):
    assert name in dir(ms.solvers)
    assert getattr(ms.solvers, name).__name__ == name


def test_an_unknown_solver_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"No moe_search\.solvers attribute AntColony"):
        _ = ms.solvers.AntColony
    with pytest.raises(ImportError, match="AntColony"):
        from moe_search.solvers import AntColony  # noqa: F401


@pytest.mark.parametrize("name", ms.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(ms, name)
    assert name in dir(ms)
    assert isinstance(value, str) or value.__doc__


def test_names_agree_with_their_packages():
    for home in ("gates", "huggingface", "layers", "problems", "solvers", "training"):
        package = importlib.import_module(f"moe_search.{home}")
        for name in package.__all__:
            if name in ms.__all__:
                assert getattr(ms, name) is getattr(package, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No moe_search attribute solver"):
        _ = ms.solver
