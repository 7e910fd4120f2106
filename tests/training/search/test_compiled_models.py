"""A search of a model that is trained compiled, and its statistics."""

import copy

import pytest
import torch
from specialists import Model
from torch import nn

from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.routing_statistics import RoutingStatistics
from moe_search.training.search.permutation_search import PermutationSearch


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


@pytest.mark.parametrize("compiled", [as_a_copy, in_place])
@pytest.mark.parametrize("batches_before", [0, 1])
def test_a_layer_is_watched_before_and_after_it_was_compiled(compiled, batches_before):
    moe = MixtureOfExperts(StackedExperts(4, 6, 5), TopK(6, 4, k=2))
    layer, inputs, statistics = compiled(moe), torch.randn(9, 6), RoutingStatistics()
    for _ in range(batches_before):
        layer(inputs)
    for entered in (1, 2):
        with statistics.watch(moe):
            layer(inputs)
        layer(inputs)
        assert statistics.summary().num_samples == 9 * entered
    assert statistics.summary().load.sum() == 2 * 2 * 9


def test_code_compiled_while_a_layer_is_watched_counts_no_longer_than_that():
    moe = MixtureOfExperts(StackedExperts(4, 6, 5), TopK(6, 4, k=2))
    inputs, statistics = torch.randn(9, 6), RoutingStatistics()
    with statistics.watch(moe):
        layer = torch.compile(moe, backend="eager")
        layer(inputs)
    layer(inputs)
    assert statistics.summary().num_samples == 9
