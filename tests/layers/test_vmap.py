"""torch.func.vmap: a layer maps as it runs on one batch after another, however it is nested with other transforms."""

import pytest
import torch
from every_gate import FEATURES, GATES, OUTPUTS, VOCABULARY, batch, every_gate
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.layers.dispatch import fastest_dispatch
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts


def stacked(n=3):
    return StackedExperts(n, FEATURES, OUTPUTS, 5)


def modules(n=3):
    return [nn.Linear(FEATURES, OUTPUTS) for _ in range(n)]


every_kind = pytest.mark.parametrize("make_experts", [stacked, modules])


def batches(size=12):
    """Three batches."""
    inputs, ids = batch(size)
    return inputs.unflatten(0, (3, -1)), ids.unflatten(0, (3, -1))


def one_by_one(layer, inputs, ids):
    return torch.stack([layer(x, i) for x, i in zip(inputs, ids, strict=True)])


@every_gate
@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_batches_are_mapped(make_gate, make_experts, training):
    layer = MixtureOfExperts(make_experts(), make_gate(3, 6)).double().train(training)
    assert torch.allclose(vmap(layer)(*batches()), one_by_one(layer, *batches()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make_gate", [lambda: TopK(256, 64, 2), lambda: DSelectK(None, 64, 2)], ids=["of the sample", "of none"]
)
def test_a_layer_that_is_not_dense_outside(make_gate):
    layer = MixtureOfExperts(StackedExperts(64, 256, 256, 256), make_gate())
    inputs = torch.randn(3, 7, 256)
    with torch.no_grad():
        weights = layer.gate.expert_map(layer.gate(inputs[0]).weights)
        assert fastest_dispatch(layer.experts, weights) != "dense" or weights.count_nonzero() == weights.numel()
        assert torch.allclose(vmap(layer)(inputs), torch.stack([layer(x) for x in inputs]), atol=1e-5)


@every_kind
def test_models_are_mapped(make_experts):
    layers = [MixtureOfExperts(make_experts(), TopK(FEATURES, 3, 2)).double() for _ in range(2)]
    inputs, _ = batch()
    mapped = vmap(lambda p, b: functional_call(layers[0], (p, b), (inputs,)))(*stack_module_state(layers))
    assert torch.allclose(mapped, torch.stack([layer(inputs) for layer in layers]), rtol=0, atol=1e-12)


@every_kind
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_every_sample(make_experts, training):
    layer = MixtureOfExperts(make_experts(), TopK(FEATURES, 3, 2)).double().train(training)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    inputs, _ = batch()

    def loss(values, sample):
        return functional_call(layer, values, (sample[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, inputs)
    of_sum = grad(lambda values: vmap(loss, (None, 0))(values, inputs).sum())(parameters)
    for b, sample in enumerate(inputs):
        layer.zero_grad()
        layer(sample[None]).square().sum().backward()
        for name, p in layer.named_parameters():
            expected = torch.zeros_like(p) if p.grad is None else p.grad
            assert torch.allclose(found[name][b], expected, rtol=0, atol=1e-12), name
    for name, gradients in found.items():
        assert torch.allclose(gradients.sum(0), of_sum[name], rtol=0, atol=1e-12), name


def test_outside_of_vmap_an_expert_runs_on_its_own_samples_also_inside_of_grad():
    layer = MixtureOfExperts(modules(), HashRouting(3, table=[0, 2])).double()
    rows = []
    for expert in layer.experts:
        expert.register_forward_hook(lambda _module, _inputs, outputs: rows.append(len(outputs)))
    inputs, ids = batch(2)[0], torch.tensor([0, 1])
    grad(lambda x: layer(x, ids).sum())(inputs)
    assert rows == [1, 1]


@every_kind
def test_tasks_are_mapped(make_experts):
    gates = [make(3, 6) for make in GATES.values()]
    multi = MultiGateMixtureOfExperts(make_experts(), gates).double()
    assert torch.allclose(vmap(multi)(*batches()), one_by_one(multi, *batches()), rtol=0, atol=1e-12)


def test_large_trees_are_not_descended():
    gate = COMET(FEATURES, 128, 1).double().eval()
    inputs, _ = batches(2 * 3 * 512)
    with torch.no_grad():
        mapped = vmap(lambda x: gate(x).weights)(inputs)
        assert torch.allclose(mapped, torch.stack([gate(x).weights for x in inputs]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [-1 - VOCABULARY, VOCABULARY])
def test_ids_out_of_range_are_refused(wrong):
    gate = HashRouting(3, vocabulary=VOCABULARY)
    ids = torch.tensor([[1, 2], [3, wrong]])
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        vmap(lambda x, i: gate(x, i).weights)(torch.zeros(2, 2, FEATURES), ids)
