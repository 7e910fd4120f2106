"""The example of a new gate runs, and is held to what every gate must do."""

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import moe_search as ms

TEXT = (Path(__file__).parents[1] / "docs" / "new_gate.md").read_text(encoding="utf-8")
FILE, USED = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(scope="module")
def gates(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "nearest_prototypes.py"
    path.write_text(FILE, encoding="utf-8")
    sys.path.insert(0, str(path.parent))
    yield importlib.import_module(path.stem)
    sys.path.remove(str(path.parent))


def test_the_example_finds_the_map_back(gates):
    scope = {}
    exec(USED, scope)
    assert (scope["record"].problem, scope["record"].outcome) == ("LinearAssignment", "committed")
    assert scope["record"].value_found < 1e-6 < scope["record"].value_before


@pytest.mark.parametrize(("n", "m", "k"), [(3, 3, 1), (3, 6, 2), (2, 6, 6)])
def test_its_weights_are_those_of_the_distances(gates, n, m, k):
    torch.manual_seed(0)
    gate, x = gates.NearestPrototypes(5, n, k, m).double(), torch.randn(7, 5, dtype=torch.float64)
    weights = gate(x).weights.detach()
    assert weights.shape == (7, 1, m)
    for row, sample in zip(weights[:, 0].tolist(), x, strict=True):
        distances = [float((sample - prototype).square().sum()) for prototype in gate.prototypes.detach()]
        nearest = sorted(range(m), key=distances.__getitem__)[:k]
        total = sum(math.exp(-distances[s]) for s in nearest)
        for s in range(m):
            share = math.exp(-distances[s]) / total if s in nearest else 0.0
            assert row[s] == pytest.approx(share, rel=1e-9, abs=1e-12)


def test_a_layer_trains_it(gates):
    moe = ms.MixtureOfExperts(ms.StackedExperts(3, 5, 2), gates.NearestPrototypes(5, 3, k=2))
    moe(torch.randn(8, 5)).square().mean().backward()
    assert moe.gate.prototypes.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="inputs must have shape"):
        moe.gate(torch.randn(8, 4))
