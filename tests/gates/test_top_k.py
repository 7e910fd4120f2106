import math

import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.top_k import TopK


def gate_with_logits(logits, n, k, **options):
    """A gate that takes no notice of its single feature."""
    gate = TopK(1, n, k, len(logits), **{"renormalize": True, **options}).double()
    with torch.no_grad():
        gate.linear.weight.zero_()
        gate.linear.bias.copy_(torch.tensor(logits, dtype=torch.float64))
    return gate


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_exactly_k_slots_have_weight_also_under_ties(data):
    n, capacity = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3))
    m = n * capacity
    k = data.draw(st.integers(1, m))
    logits = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=m, max_size=m))
    weights = gate_with_logits(logits, n, k)(torch.zeros(2, 1, dtype=torch.float64)).weights
    assert (weights != 0).sum((1, 2)).tolist() == [k, k]
    # Which slots of equal logits are taken is open, the weights are not.
    expected = sorted(naive_gates.softmax(sorted(logits)[m - k :]))
    assert weights[0].flatten().sort().values[m - k :].tolist() == pytest.approx(expected, abs=1e-12)
    assert min(logits[s] for s in range(m) if weights[0, 0, s] > 0) == sorted(logits)[m - k]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4, unique=True), st.integers(1, 4))
def test_formula(logits, k):
    routing = gate_with_logits(logits, 4, k)(torch.zeros(1, 1, dtype=torch.float64))
    assert routing.weights[0, 0].tolist() == pytest.approx(naive_gates.top_k(logits, k), abs=1e-12)
    assert routing.logits[0, 0].tolist() == logits


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.floats(-5, 5), min_size=4, max_size=4, unique=True),
    st.integers(1, 4),
    st.sampled_from(["softmax", "sigmoid"]),
    st.booleans(),
)
def test_formulas_of_the_routers_in_use(logits, k, scores, renormalize):
    gate = gate_with_logits(logits, 4, k, scores=scores, renormalize=renormalize)
    weights = gate(torch.zeros(1, 1, dtype=torch.float64)).weights[0, 0].tolist()
    total = sum(math.exp(a) for a in logits)
    of_slots = [math.exp(a) / total if scores == "softmax" else 1 / (1 + math.exp(-a)) for a in logits]
    kept = sorted(range(4), key=lambda s: -logits[s])[:k]
    share = sum(of_slots[s] for s in kept) if renormalize else 1.0
    assert weights == pytest.approx([of_slots[s] / share if s in kept else 0.0 for s in range(4)], abs=1e-12)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_logits_far_below_all_others(scores):
    for renormalize in (True, False):
        gate = gate_with_logits([-800.0, -801.0, -900.0], 3, 2, scores=scores, renormalize=renormalize)
        weights = gate(torch.zeros(1, 1, dtype=torch.float64)).weights
        assert bool(weights.isfinite().all())
        if renormalize:
            assert weights[0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0.0])


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_a_gate_of_one_slot_learns_by_default(scores):
    """Two experts, of which one is right for each sign of the feature."""
    torch.manual_seed(0)
    losses = {}
    for renormalize in (None, True):
        gate = TopK(1, 2, 1, scores=scores, renormalize=renormalize)
        with torch.no_grad():
            gate.linear.weight.copy_(torch.tensor([[0.1], [-0.1]]))  # the wrong way round
            gate.linear.bias.zero_()
        optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
        inputs = torch.randn(200, 1)
        answers = torch.cat([-inputs.sign(), inputs.sign()], 1)
        for _ in range(300):
            weights = gate.expert_map(gate(inputs).weights)
            loss = ((weights * answers).sum(1) - inputs.sign()[:, 0]).square().mean()
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
            optimizer.step()
        losses[renormalize] = float(loss.detach())
    assert losses[None] < 0.5 * losses[True]


def test_what_scores_and_renormalize_may_be():
    assert [TopK(2, 3, k).renormalize for k in (1, 2)] == [False, True]
    with pytest.raises(ValueError, match="scores must be one of softmax, sigmoid, got 'relu'"):
        TopK(2, 3, 1, scores="relu")
    with pytest.raises(TypeError, match="renormalize must be True or False, got 1"):
        TopK(2, 3, 1, renormalize=1)


def test_k_equal_to_the_number_of_slots_is_the_softmax():
    gate = TopK(3, 4, 4)
    routing = gate(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(routing.weights, routing.logits.softmax(2))


def test_gradient():
    gate = gate_with_logits([0.3, -0.2, 1.0, 0.5], 4, 2)
    inputs = torch.zeros(1, 1, dtype=torch.float64)

    def weights(bias):
        return torch.func.functional_call(gate, {"linear.bias": bias}, (inputs,)).weights

    assert torch.autograd.gradcheck(weights, (gate.linear.bias.detach().requires_grad_(),))


class TestNoise:
    def gate(self, k=2):
        gate = TopK(3, 4, k, noise=True).double()
        with torch.no_grad():
            gate.noise.weight.normal_(generator=torch.Generator().manual_seed(3))
        return gate, torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def test_is_off_by_default_and_in_eval_mode(self):
        assert TopK(3, 4, 2).noise is None
        gate, inputs = self.gate()
        routing = gate.eval()(inputs)
        assert routing.noisy_logits is None
        assert routing.noise_scale is None
        expected = [naive_gates.top_k(row, 2) for row in routing.logits[:, 0].tolist()]
        assert torch.allclose(routing.weights[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-12)

    def test_formula(self):
        gate, inputs = self.gate()
        torch.manual_seed(7)
        routing = gate(inputs)
        torch.manual_seed(7)
        normal = torch.randn(6, 1, 4, dtype=torch.float64)
        scale = torch.log1p((inputs @ gate.noise.weight.T).exp())
        assert torch.allclose(routing.noise_scale[:, 0], scale, rtol=0, atol=1e-12)
        assert torch.allclose(routing.logits[:, 0], gate.linear(inputs), rtol=0, atol=1e-12)
        noisy = routing.logits + normal * scale[:, None]
        assert torch.allclose(routing.noisy_logits, noisy, rtol=0, atol=1e-12)
        expected = [naive_gates.top_k(row, 2) for row in noisy[:, 0].tolist()]
        assert torch.allclose(routing.weights[:, 0], torch.tensor(expected, dtype=torch.float64), atol=1e-12)

    def test_starts_at_a_standard_deviation_of_log_two(self):
        routing = TopK(3, 4, 2, noise=True)(torch.randn(6, 3))
        assert routing.noise_scale.flatten().tolist() == pytest.approx([math.log(2)] * 24, abs=1e-6)

    def test_differs_from_sample_to_sample_and_from_forward_to_forward(self):
        gate, inputs = self.gate()
        same = inputs[:1].expand(500, 3)
        noise = (gate(same).noisy_logits - gate(same).logits) / gate(same).noise_scale
        assert noise.mean().abs().item() < 0.1
        assert noise.std().item() == pytest.approx(1, abs=0.1)
        assert not torch.equal(gate(inputs).weights, gate(inputs).weights)

    def test_gradient(self):
        gate, inputs = self.gate()

        def weights(weight):
            torch.manual_seed(5)
            return torch.func.functional_call(gate, {"noise.weight": weight}, (inputs,)).weights

        assert torch.autograd.gradcheck(weights, (gate.noise.weight.detach().clone().requires_grad_(),))


@pytest.mark.parametrize(
    ("k", "error", "fault"),
    [
        (5, ValueError, "k must be at most the number of slots, 4, got 5"),
        (0, ValueError, "k must be an integer >= 1, got 0"),
        (1.5, TypeError, "k must be an integer, got 1.5"),
    ],
)
def test_wrong_k(k, error, fault):
    with pytest.raises(error, match=fault):
        TopK(3, 4, k)
