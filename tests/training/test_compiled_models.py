"""A search of a model that is trained compiled."""

import copy

import pytest
import torch
from specialists import Model
from torch import nn

from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.solvers.stop import MaxIterations
from moe_search.training.permutation_search import PermutationSearch


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def as_a_copy(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [as_a_copy, in_place])
def test_a_compiled_model_is_searched_as_the_one_it_was_compiled_from(compiled):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = Model(MixtureOfExperts(StackedExperts(4, 6, 5), TopK(6, 4, k=2)), nn.Linear(5, 3))
        inputs = torch.randn(60, 6)
    with torch.no_grad():
        targets = plain(inputs)
    plain.moe.gate.expert_map.assign([[1, 2, 3, 0]])
    other = copy.deepcopy(plain)
    records = []
    for model, module in ((plain, plain), (compiled(other), other)):
        search = PermutationSearch(model, module.moe, loss=nn.MSELoss(), period=2, until=6, stop=MaxIterations(1_000))
        for _ in range(6):
            model(inputs)
            search.step(inputs, targets)
        records.append(search.history)
        # Compiled code takes the map that was found.
        assert torch.allclose(model(inputs), targets, atol=1e-6)
    assert [record.outcome for record in records[0]] == ["committed", "no improvement", "no improvement"]
    assert [record.outcome for record in records[1]] == [record.outcome for record in records[0]]
