"""Autocast to bfloat16: every gate, every dispatch."""

import pytest
import torch
from every_gate import FEATURES, batch, every_gate

from moe_search.gates.top_k import TopK
from moe_search.layers.dispatch import DISPATCHES
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

OUTPUTS, HIDDEN = 8, 16
every_dispatch = pytest.mark.parametrize("dispatch", DISPATCHES)


def layer_of(make_gate, dispatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS, HIDDEN), make_gate(3, 6), dispatch)


@every_gate
@pytest.mark.parametrize("dispatch", ["auto", "dense", "sorted"])
def test_forward_and_backward_are_finite(make_gate, dispatch):
    layer = layer_of(make_gate, dispatch)
    inputs, ids = batch(64, dtype=torch.float32)
    expected = layer(inputs, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixture = layer(inputs, ids)
        loss = mixture.float().square().mean() + layer.regularization()
    loss.backward()
    assert mixture.dtype == torch.bfloat16
    # Samples near the edge of a gate may go elsewhere: the mean may not.
    assert (mixture.float() - expected).abs().mean() < 0.02
    for parameter in layer.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


@every_dispatch
def test_grouped_takes_the_precision_of_autocast(dispatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = MixtureOfExperts(StackedExperts(3, 8, OUTPUTS, HIDDEN), TopK(8, 3, 2), dispatch)
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    expected = layer(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixture = layer(inputs)
    mixture.float().square().sum().backward()
    assert mixture.dtype == torch.bfloat16
    assert (mixture.float() - expected).abs().mean() < 0.02
    assert all(bool(parameter.grad.isfinite().all()) for parameter in layer.parameters())


def test_widths_that_fit_in_single_precision_may_not_in_half():
    experts = StackedExperts(3, FEATURES, OUTPUTS, HIDDEN)
    assert experts.refuses_grouped() is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert experts.refuses_grouped() == (
            "needs rows of a multiple of 16 bytes, got in_features=4 of torch.bfloat16"
        )
