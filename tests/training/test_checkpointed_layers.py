"""Layers under torch.utils.checkpoint, which runs them anew for the backward pass."""

import pytest
import torch
from gate_contract import FEATURES, GATES, batch, make_seeded
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.training.balance import (
    LossFreeBalancing,
    importance_loss,
    load_balancing_loss,
    router_z_loss,
    smooth_load_loss,
)
from moe_search.training.routing_statistics import RoutingStatistics

kinds = pytest.mark.parametrize("reentrant", [True, False])


def make_layer(name):
    if name == "several gates":
        gates = [make_seeded(GATES["COMET-1"]), make_seeded(GATES["TopK-2"])]
        return MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, 2), gates)
    return MixtureOfExperts(StackedExperts(3, FEATURES, 2), make_seeded(GATES[name]))


def run(layer, reentrant):
    inputs, ids = batch()
    return checkpoint(layer, inputs.requires_grad_(), ids, use_reentrant=reentrant)


@kinds
@pytest.mark.parametrize("name", [*GATES, "several gates"])
def test_every_sample_is_counted_once(reentrant, name):
    layer, statistics = make_layer(name), RoutingStatistics()
    with statistics.watch(layer):
        run(layer, reentrant).sum().backward()
        run(layer, reentrant).sum().backward()
    assert statistics.summary().num_samples == 2 * 7 * (2 if name == "several gates" else 1)


def of_layer(layer):
    return layer.regularization()


def of_gate(layer):
    return layer.gate.penalty(layer.routing)


def load(layer):
    return smooth_load_loss(layer.routing, layer.gate.expert_map, k=2)


def importance(layer):
    return importance_loss(layer.routing, layer.gate.expert_map)


def balance(layer):
    return load_balancing_loss(layer.routing, layer.gate.expert_map)


def size(layer):
    return router_z_loss(layer.routing)


NO_PENALTY = ("TopK", "EvenTopK", "BalancedTopK", "Softmax", "HashRouting")
WITH_PENALTY = [name for name in GATES if not name.startswith(NO_PENALTY)]
WITH_LOGITS = [name for name in GATES if name.startswith(("TopK", "Softmax", "COMET"))]
PENALTIES = [
    *((name, of_layer) for name in [*GATES, "several gates"]),
    *((name, of_gate) for name in WITH_PENALTY),
    ("TopK-noise", load),
    *((name, importance) for name in [*WITH_PENALTY, *WITH_LOGITS]),
    *((name, penalty) for penalty in (balance, size) for name in WITH_LOGITS),
]


@kinds
@pytest.mark.parametrize(("name", "penalty"), PENALTIES)
def test_a_penalty_acts_or_raises(reentrant, name, penalty):
    layer, plain = make_layer(name), make_layer(name)
    plain.load_state_dict(layer.state_dict())
    torch.manual_seed(0)  # noise
    mixture = run(layer, reentrant)
    acts = penalty is not of_layer or not name.startswith(NO_PENALTY)
    if reentrant and acts:
        with pytest.raises(ValueError, match=r"in a torch\.utils\.checkpoint with use_reentrant=True, which use_reent"):
            penalty(layer)
        with torch.no_grad():
            assert bool(penalty(layer).isfinite())
        return
    (mixture.square().sum() + penalty(layer)).backward()
    torch.manual_seed(0)
    (plain(*batch()).square().sum() + penalty(plain)).backward()
    for (parameter, p), other in zip(layer.named_parameters(), plain.parameters(), strict=True):
        if p.grad is None or other.grad is None:
            assert p.grad is other.grad, parameter
        else:
            torch.testing.assert_close(p.grad, other.grad)


def test_the_penalty_of_a_frozen_gate_acts_on_what_is_before_it():
    first, layer = nn.Linear(FEATURES, FEATURES), make_layer("COMET-1")
    layer.gate.requires_grad_(False)
    layer(first(batch()[0]))
    layer.regularization().backward()
    assert first.weight.grad.abs().sum() > 0
    checkpoint(layer, first(batch()[0]), use_reentrant=True)
    with pytest.raises(ValueError, match="the gate must run with gradients on for a penalty to have one"):
        layer.regularization()


def test_a_penalty_of_a_gate_of_ones_own():
    class Own(TopK):
        def penalty(self, slot_weights):
            return slot_weights.logits.square().mean()

    layer = MixtureOfExperts(StackedExperts(3, FEATURES, 2), Own(FEATURES, 3, k=2))
    run(layer, True)
    with pytest.raises(ValueError, match="the gate must run with gradients on for a penalty to have one"):
        layer.regularization()


def test_a_penalty_without_gradients_may_be_looked_at():
    layer = make_layer("COMET-1")
    with torch.no_grad():
        layer(*batch())
        assert float(layer.regularization()) > 0
    layer.gate.requires_grad_(False)  # frozen
    layer(*batch())
    assert not layer.regularization().requires_grad


@kinds
def test_a_backward_pass_is_no_forward_for_balancing(reentrant):
    layer = make_layer("TopK-2")
    balancing = LossFreeBalancing(layer)
    mixture = run(layer, reentrant)
    balancing.step()
    mixture.sum().backward()
    with pytest.raises(ValueError, match="moe must have run in training mode before another step"):
        balancing.step()


@kinds
def test_a_part_of_a_model_under_a_checkpoint(reentrant):
    """The graph around it is the same as without."""
    first, layer = nn.Linear(FEATURES, FEATURES), make_layer("TopK-2")
    inputs, _ = batch()

    def gradient(call):
        first.zero_grad()
        call(first(inputs)).square().sum().backward()
        return first.weight.grad.clone()

    expected = gradient(layer)
    torch.testing.assert_close(gradient(lambda x: checkpoint(layer, x, use_reentrant=reentrant)), expected)
