"""torch.compile: gate and layer are one graph, equal to eager code."""

import shutil

import pytest
import torch
from every_gate import FEATURES, GATES, OUTPUTS, VOCABULARY, batch, every_gate
from torch import nn

from moe_search.gates.comet import COMET
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def stacked():
    return StackedExperts(3, FEATURES, OUTPUTS, 5)


def modules():
    return [nn.Linear(FEATURES, OUTPUTS) for _ in range(3)]


def seeded_layer(make_gate, make_experts):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = MixtureOfExperts(make_experts(), make_gate(3, 6)).double()
    layer.gate.expert_map.scramble(torch.Generator().manual_seed(0))
    return layer


def run(layer, call, inputs, ids):
    """Output, penalty and all gradients."""
    layer.zero_grad()
    inputs = inputs.clone().requires_grad_()
    mixture = call(inputs, ids)
    penalty = layer.regularization()
    (mixture.square().sum() + penalty).backward()
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in layer.parameters()]
    return [mixture.detach(), penalty.detach(), inputs.grad, *gradients]


@every_gate
@pytest.mark.parametrize("make_experts", [stacked, modules])
def test_one_graph_with_equal_outputs_and_gradients(make_gate, make_experts):
    layer = seeded_layer(make_gate, make_experts)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected, found = run(layer, layer, *batch()), run(layer, compiled, *batch())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["TopK-2", "COMET"])
def test_eval_mode_without_gradients(name):
    layer = seeded_layer(GATES[name], stacked).eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(*batch()), layer(*batch()), rtol=0, atol=1e-12)
    assert layer.routing is None


def test_large_trees_are_not_descended():
    layer = MixtureOfExperts(StackedExperts(128, FEATURES, OUTPUTS), COMET(FEATURES, 128, 1)).eval()
    inputs, _ = batch(2048, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert torch.allclose(compiled(inputs), layer(inputs), rtol=0, atol=1e-5)


def test_a_map_that_changes_needs_no_new_graph():
    layer = seeded_layer(GATES["TopK-2"], stacked)
    graphs = []

    def counting(graph, _inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=counting)
    compiled(*batch())
    layer.gate.expert_map.scramble(torch.Generator().manual_seed(7))
    assert torch.allclose(compiled(*batch()), layer(*batch()), rtol=0, atol=1e-12)
    assert len(graphs) == 1


@pytest.mark.parametrize("ids", [[3, VOCABULARY], [-1, 3]])
def test_the_graph_checks_ids(ids):
    gate = HashRouting(3, vocabulary=VOCABULARY)
    compiled = torch.compile(gate, fullgraph=True, backend="aot_eager")
    inputs = torch.zeros(2, FEATURES)
    assert torch.equal(compiled(inputs, torch.tensor([1, 2])).weights, gate(inputs, torch.tensor([1, 2])).weights)
    with pytest.raises((IndexError, RuntimeError), match="out of range"):
        compiled(inputs, torch.tensor(ids))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor():
    layer = MixtureOfExperts(stacked(), TopK(FEATURES, 3, 2))
    inputs, ids = batch(dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True)
    expected, found = run(layer, layer, inputs, ids), run(layer, compiled, inputs, ids)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
