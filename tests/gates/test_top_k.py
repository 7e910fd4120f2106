import math

import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.top_k import TopK


def gate_with_logits(logits, n, k, **options):
    """A gate that takes no notice of its single feature."""
    gate = TopK(1, n, k, len(logits), **options).double()
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
    weights = gate_with_logits(logits, n, k, renormalize=True)(torch.zeros(2, 1, dtype=torch.float64)).weights
    assert (weights != 0).sum((1, 2)).tolist() == [k, k]
    # Which slots of equal logits are taken is open, the weights are not.
    expected = sorted(naive_gates.softmax(sorted(logits)[m - k :]))
    assert weights[0].flatten().sort().values[m - k :].tolist() == pytest.approx(expected, abs=1e-12)
    assert min(logits[s] for s in range(m) if weights[0, 0, s] > 0) == sorted(logits)[m - k]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=4, unique=True), st.integers(1, 4))
def test_formula(logits, k):
    routing = gate_with_logits(logits, 4, k, renormalize=True)(torch.zeros(1, 1, dtype=torch.float64))
    assert routing.weights[0, 0].tolist() == pytest.approx(naive_gates.top_k(logits, k), abs=1e-12)
    assert routing.logits[0, 0].tolist() == logits


ROUTERS = {
    "switch": (1, "softmax", False, 1.0),
    "mixtral, qwen": (2, "softmax", True, 1.0),
    "olmoe": (3, "softmax", False, 1.0),
    "deepseek-v2": (3, "softmax", False, 16.0),
    "deepseek-v3": (3, "sigmoid", True, 2.5),
    "sigmoid": (1, "sigmoid", False, 1.0),
}


@pytest.mark.parametrize(("k", "scores", "renormalize", "scale"), ROUTERS.values(), ids=ROUTERS)
@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(-50, 50).map(lambda a: a / 10), min_size=4, max_size=4, unique=True),
    st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4),
)
def test_published_routers(k, scores, renormalize, scale, logits, bias):
    options = {"scores": scores, "renormalize": renormalize, "scale": scale}
    gate = gate_with_logits(logits, 4, k, **options)
    inputs = torch.zeros(1, 1, dtype=torch.float64)
    expected = naive_gates.router(logits, k, *options.values(), [0.0] * 4)
    assert gate(inputs).weights[0, 0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    expected = naive_gates.router(logits, k, *options.values(), bias)
    biased = gate_with_logits(logits, 4, k, choice_bias=True, **options)
    biased.choice_bias.copy_(torch.tensor(bias, dtype=torch.float64))
    own = naive_gates.router(logits, 4, scores, False, 1.0, bias)
    chosen = sorted((s + b for s, b in zip(own, bias, strict=True)), reverse=True)
    if chosen[k - 1] - chosen[k] > 1e-9:
        assert biased(inputs).weights[0, 0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert biased.choice_bias.tolist() == bias


def test_one_slot_is_weighted_by_its_probability_by_default():
    assert [TopK(3, 4, k).renormalize for k in (1, 2, 4)] == [False, True, True]
    assert TopK(3, 4, 1, renormalize=True).renormalize


def test_small_scores_are_no_nan():
    weights = gate_with_logits([-900.0, -901.0, -2000.0], 3, 2, scores="sigmoid")(torch.zeros(1, 1).double()).weights
    assert weights.flatten().tolist() == pytest.approx([*naive_gates.softmax([1.0, 0.0]), 0.0])


def test_one_slot_learns_which_expert_is_right():
    """Two experts that answer 0 and 1, a target that the sign of the feature decides: gates that start wrong."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 1)
    for options in ({}, {"scores": "sigmoid"}):
        gate = gate_with_logits([0.0, 0.0], 2, 1, **options).float()
        with torch.no_grad():
            gate.linear.weight.copy_(torch.tensor([[-0.3], [0.3]]))
        right = (inputs[:, 0] < 0).long()
        optimizer = torch.optim.Adam(gate.parameters(), 0.05)
        first = (gate(inputs).weights[:, 0].argmax(1) == right).float().mean()
        for _ in range(100):
            loss = -gate(inputs).weights[:, 0].gather(1, right[:, None]).mean()
            loss = loss + gate(inputs).weights[:, 0].gather(1, 1 - right[:, None]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert first < 0.05
        assert (gate(inputs).weights[:, 0].argmax(1) == right).float().mean() > 0.95


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


@pytest.mark.parametrize(
    ("options", "error", "fault"),
    [
        ({"scores": "tanh"}, ValueError, "scores must be one of softmax, sigmoid, got 'tanh'"),
        ({"scale": 0.0}, ValueError, "scale must be a finite number > 0, got 0"),
        ({"num_groups": 3}, ValueError, "num_groups must divide the number of slots, 4, got 3"),
        ({"num_groups": 4, "kept_groups": 1}, ValueError, r"kept_groups must be in 2 \.\. 4, .* k=2 slots, got 1"),
        ({"num_groups": 2, "kept_groups": 3}, ValueError, r"kept_groups must be in 1 \.\. 2, .* k=2 slots, got 3"),
    ],
)
def test_wrong_options(options, error, fault):
    with pytest.raises(error, match=fault):
        TopK(3, 4, 2, **options)
