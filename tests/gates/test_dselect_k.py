import math

import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.dselect_k import DSelectK, code_probabilities
from moe_search.gates.gate import SlotWeights

INPUTS = torch.zeros(2, 1, dtype=torch.float64)


def static(bits, selectors, n, m=None, **options):
    """A static gate with given values: bits [k][bits] and selectors [k]."""
    gate = DSelectK(None, n, len(selectors), m, **options).double()
    rows = [[*row, w] for row, w in zip(bits, selectors, strict=True)]
    with torch.no_grad():
        gate.values.copy_(torch.tensor(rows, dtype=torch.float64).flatten())
    return gate


def test_codes_by_hand():
    # S(1/4) = 27/32, so that three bits 1/4, 0, -1/2 give 1 with 27/32, 1/2 and 0, the first the most significant.
    p = code_probabilities(torch.tensor([0.25, 0.0, -0.5], dtype=torch.float64), 1.0)
    low, high = 5 / 64, 27 / 64
    assert p.tolist() == pytest.approx([low, 0.0, low, 0.0, high, 0.0, high, 0.0], abs=1e-15)


def test_no_bits_for_one_slot():
    gate = DSelectK(3, 1, 1)
    assert gate.num_bits == 0
    assert gate(torch.randn(4, 3)).weights.tolist() == [[[1.0]]] * 4


@pytest.mark.parametrize(("m", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 3), (9, 4), (16, 4)])
def test_number_of_bits(m, bits):
    assert DSelectK(3, m, 1).num_bits == bits


def test_weights_by_hand_for_six_slots():
    # Selector 0 is on code 101 = 5 for certain. Selector 1 gives 100 = 4 and 101 = 5 a quarter each, the rest to 6, 7.
    gate = static([[1.0, -1.0, 1.0], [1.0, 0.0, 0.0]], [math.log(3.0), 0.0], 6)
    routing = gate(INPUTS)
    assert routing.probabilities[0].tolist() == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0.25, 0.25]]
    # 3/4 and, of the quarter of selector 1, 1/16 and 1/16; their sum is 7/8.
    assert routing.weights[0, 0].tolist() == pytest.approx([0, 0, 0, 0, 0, 6 / 7], abs=1e-15)
    assert routing.weights[0, 1].tolist() == pytest.approx([0, 0, 0, 0, 1 / 14, 1 / 14], abs=1e-15)


def test_penalty_by_hand():
    gate = static([[1.0, -1.0, 1.0], [1.0, 0.0, 0.0]], [0.0, 0.0], 6, entropy=0.5, zeta=0.1)
    # Entropy: 0 and 2 * 1/4 log 4. Sums of reachable codes: 1 and 1/2.
    expected = 0.5 * 0.5 * math.log(4) + 0.1 * (1 + 2)
    assert gate.penalty(gate(INPUTS)).item() == pytest.approx(expected, abs=1e-12)


def test_the_second_term_is_only_there_if_m_is_no_power_of_two():
    bits = [[1.0, -1.0], [1.0, 1.0]]
    assert static(bits, [0.0, 0.0], 4, zeta=5.0).penalty(static(bits, [0.0, 0.0], 4)(INPUTS)).item() == 0
    gate = static(bits, [0.0, 0.0], 3, entropy=0.0, zeta=5.0)
    # Code 3 is out of reach: there the sum is 0, which counts as 1e-6.
    assert gate.penalty(gate(INPUTS)).item() == pytest.approx(5.0 * (1 + 1e6))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.1, 1.0, 4.0]), st.integers(0, 10**6))
def test_equals_the_formula(n, capacity, k, gamma, seed):
    m, k = n * capacity, min(k, n * capacity)
    generator = torch.Generator().manual_seed(seed)
    gate = DSelectK(3, n, k, m, gamma=gamma, entropy=0.3, zeta=0.2).double()
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    inputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    routing = gate(inputs)
    weight, bias = gate.linear.weight.tolist(), gate.linear.bias.tolist()
    probabilities, reached = [], 0.0
    for b, x in enumerate(inputs.tolist()):
        values = [naive_gates.dot(w, v, x) for w, v in zip(weight, bias, strict=True)]
        rows = [values[t * len(values) // k : (t + 1) * len(values) // k] for t in range(k)]
        g, p = naive_gates.dselect_k([row[:-1] for row in rows], [row[-1] for row in rows], m, gamma)
        total = sum(map(sum, g))
        if total > 0:
            expected = torch.tensor(g, dtype=torch.float64) / total
            assert torch.allclose(routing.weights[b], expected, rtol=0, atol=1e-10)
        else:
            assert routing.weights[b].unique().tolist() == pytest.approx([1 / (k * m)])
        assert torch.allclose(routing.probabilities[b], torch.tensor(p, dtype=torch.float64), rtol=0, atol=1e-12)
        probabilities.append(p)
        reached += sum(1 / max(sum(row), 1e-6) for row in p) / len(inputs)
    expected = 0.3 * naive_gates.entropy(probabilities) + (0.2 * reached if m & (m - 1) else 0.0)
    assert gate.penalty(routing).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_saturated_bits_leave_one_slot_a_selector():
    gate = DSelectK(3, 8, 3).double()
    with torch.no_grad():
        gate.linear.weight.normal_(std=1e6, generator=torch.Generator().manual_seed(0))
        gate.linear.weight.view(3, 4, 3)[:, 3] = 0.1
    routing = gate(torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert ((routing.probabilities > 0).sum(2) == 1).all()
    assert bool(((gate.expert_map(routing.weights) > 0).sum(1) <= 3).all())


def test_a_sample_out_of_reach_has_equal_weights_and_no_gradient():
    gate = static([[1.0, 1.0]], [0.3], 3, zeta=1.0)
    routing = gate(INPUTS)
    assert routing.weights.flatten().tolist() == pytest.approx([1 / 3] * 6)
    ((routing.weights * torch.arange(3)).sum() + gate.penalty(routing)).backward()
    assert gate.values.grad.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("zeta", "turns_back"), [(1.0, True), (0.0, False)])
def test_the_second_term_turns_selectors_back_from_codes_of_no_slot(zeta, turns_back):
    # The loss pulls both bits to 1, the code of no slot.
    gate = static([[0.0, 0.0]], [0.0], 3, entropy=0.0, zeta=zeta)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(200):
        loss = gate.penalty(gate(INPUTS)) - 10.0 * gate.values[:2].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    routing = gate(INPUTS)
    assert bool((routing.probabilities.sum(2) > 0.1).all()) == turns_back
    slope = torch.autograd.grad(gate.penalty(routing) + routing.weights[0, 0, 0], gate.values)[0]
    assert bool((slope[:2] != 0).all()) == turns_back


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([-2.0, -0.5, -0.4999999, -1e-8, 0.0, 0.3, 0.4999999, 0.5, 2.0]), min_size=6, max_size=6),
    st.lists(st.sampled_from([-300.0, -1.0, 0.0, 300.0]), min_size=2, max_size=2),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_no_number_is_nan_or_infinite_at_the_edges(bits, selectors, dtype):
    gate = static([bits[:3], bits[3:]], selectors, 5, entropy=1.0).to(dtype)
    routing = gate(INPUTS.to(dtype))
    assert routing.weights.sum((1, 2)).tolist() == pytest.approx([1, 1], abs=1e-5)
    ((routing.weights * torch.arange(5)).sum() + gate.penalty(routing)).backward()
    assert bool(gate.values.grad.isfinite().all())


@pytest.mark.parametrize("n", [4, 5])
@pytest.mark.parametrize("bits", [[0.1, -0.2, 0.3], [0.1, 0.9, -0.2]])
def test_gradient_with_and_without_codes_of_probability_zero(n, bits):
    num_bits = (n - 1).bit_length()
    gate = static([bits[:num_bits], [0.2, 0.05, -0.1][:num_bits]], [0.4, -0.3], n)

    def outputs(values):
        routing = torch.func.functional_call(gate, {"values": values}, (INPUTS,))
        return routing.weights, routing.probabilities, gate.penalty(routing)

    assert torch.autograd.gradcheck(outputs, (gate.values.detach().clone().requires_grad_(),))


def test_static_is_the_same_for_all_rows_of_any_width():
    gate = DSelectK(None, 6, 2)
    weights = gate(torch.randn(4, 3, 2)).weights
    assert weights.shape == (12, 2, 6)
    assert torch.equal(weights, weights[:1].expand(12, 2, 6))
    assert dict(gate.named_parameters()).keys() == {"values"}
    assert gate.values.shape == (2 * 4,)


@pytest.mark.parametrize("in_features", [None, 5])
def test_starts_as_published(in_features):
    torch.manual_seed(0)
    gate = DSelectK(in_features, 32, 16, gamma=2.0)
    for parameter in gate.parameters():
        rows = parameter.detach().view(16, 6, -1)
        bits, selectors = rows[:, :5].abs().max().item(), rows[:, 5].abs().max().item()
        assert 0.015 < bits <= 0.02
        assert 0.035 < selectors <= 0.05
    # Every expert is used, each about as much as the others.
    weights = gate.expert_map(gate(torch.randn(7, 5)).weights)
    assert 0.02 < weights.min().item() < weights.max().item() < 0.05


def test_training_ends_at_k_experts_and_at_codes_of_slots():
    torch.manual_seed(1)
    gate = DSelectK(None, 6, 2, entropy=0.2, zeta=0.05)
    wanted = torch.tensor([0.0, 0.3, 0.0, 0.0, 0.7, 0.0])
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.02)
    for _ in range(400):
        routing = gate(torch.zeros(1, 1))
        loss = (gate.expert_map(routing.weights) - wanted).square().sum() + gate.penalty(routing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    routing = gate(torch.zeros(1, 1))
    assert (routing.weights > 0).sum().item() <= 2
    assert routing.probabilities.sum(2).flatten().tolist() == [1.0, 1.0]


def test_penalty_needs_probabilities():
    weights = torch.ones(1, 1, 2) / 2
    with pytest.raises(ValueError, match="slot_weights must have probabilities"):
        DSelectK(1, 2, 1).penalty(SlotWeights(weights, None))


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"k": 5}, ValueError, "k must be at most the number of slots, 4, got 5"),
        ({"k": 0}, ValueError, "k must be an integer >= 1, got 0"),
        ({"k": 2, "gamma": 0.0}, ValueError, "gamma must be a finite number > 0, got 0"),
        ({"k": 2, "entropy": -1e-3}, ValueError, "entropy must be a finite number >= 0, got -0.001"),
        ({"k": 2, "zeta": -1.0}, ValueError, "zeta must be a finite number >= 0, got -1"),
        ({"k": 2, "zeta": "much"}, TypeError, "zeta must be a number, got 'much'"),
    ],
)
def test_wrong_arguments(arguments, error, fault):
    with pytest.raises(error, match=fault):
        DSelectK(3, 4, **arguments)


def test_wrong_number_of_features():
    with pytest.raises(ValueError, match="in_features must be an integer >= 1, got 0"):
        DSelectK(0, 4, 1)
