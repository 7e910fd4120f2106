import naive_gates
import pytest
import torch

from moe_search.gates.softmax import Softmax


def test_weights_are_the_softmax_of_the_affine_logits():
    gate = Softmax(3, 2, 4).double()
    inputs = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    routing = gate(inputs)
    for b in range(5):
        logits = [
            naive_gates.dot(w, v, inputs[b].tolist())
            for w, v in zip(gate.linear.weight.tolist(), gate.linear.bias.tolist(), strict=True)
        ]
        assert routing.logits[b, 0].tolist() == pytest.approx(logits, abs=1e-12)
        assert routing.weights[b, 0].tolist() == pytest.approx(naive_gates.softmax(logits), abs=1e-12)


def test_every_slot_has_weight():
    gate = Softmax(3, 7)
    assert bool((gate(torch.randn(40, 3, generator=torch.Generator().manual_seed(0))).weights > 0).all())


def test_wrong_in_features():
    with pytest.raises(ValueError, match="in_features must be an integer >= 1, got 0"):
        Softmax(0, 2)
