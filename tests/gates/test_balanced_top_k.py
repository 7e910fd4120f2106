"""BalancedTopK: the optimum, capacity, padding, weights and gradients, precision, compilation, export, Ctrl-C."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st

import moe_search as ms
from moe_search.gates.balanced_top_k import balanced_slots

FEATURES = 5


def made(n, k, **given):
    torch.manual_seed(0)
    gate = ms.BalancedTopK(FEATURES, n, k, **given)
    with torch.no_grad():
        gate.linear.bias[0] += 4.0  # all rows would like expert 0
    return gate


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 4), k=st.integers(1, 3), rows=st.integers(1, 5), factor=st.sampled_from([1.0, 1.3, 9.0]))
def test_it_is_the_best_of_all_choices_within_the_capacity(n, k, rows, factor):
    k = min(k, n)
    gate = made(n, k, capacity_factor=factor)
    slot_weights = gate(torch.randn(rows, FEATURES))
    chosen = slot_weights.weights[:, 0] > 0
    capacity = -(-round(factor * 10) * rows * k // (10 * n))
    assert chosen.sum(1).tolist() == [k] * rows
    assert int(chosen.sum(0).max()) <= capacity
    logits = slot_weights.logits[:, 0].detach().double()
    totals = []
    for choice in itertools.product(itertools.combinations(range(n), k), repeat=rows):
        mask = torch.zeros(rows, n, dtype=torch.bool).scatter(1, torch.tensor(choice), True)
        if int(mask.sum(0).max()) <= capacity:
            totals.append(float(logits[mask].sum()))
    assert float(logits[chosen].sum()) == pytest.approx(max(totals), rel=1e-9, abs=1e-9)


def test_padding_takes_no_capacity_and_changes_nothing():
    gate = made(3, 2)
    inputs = torch.randn(4, 6, FEATURES)
    mask = torch.rand(4, 6) < 0.6
    padded = inputs.masked_fill(~mask[..., None], torch.nan)
    weights = gate(padded, mask=mask).weights
    assert torch.equal(weights[mask.flatten()], gate(inputs[mask]).weights)
    assert not weights[~mask.flatten()].any()
    assert not gate(padded, mask=torch.zeros_like(mask)).weights.any()
    for dtype in (torch.int64, torch.uint8, torch.int16):
        assert torch.equal(gate(padded, mask=mask.to(dtype)).weights, weights)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none_show_in_their_row_and_end_no_run(bad):
    gate = made(4, 2)
    inputs = torch.randn(10, FEATURES)
    inputs[3] = bad
    weights = gate(inputs).weights.squeeze(1)
    assert weights.isnan().any(1).tolist() == [row == 3 for row in range(10)]
    assert (weights != 0).sum(0).tolist() == [5] * 4


def test_it_says_how_many_slots_a_row_has_and_takes_any_capacity_factor():
    gate = made(4, 2, capacity_factor=1e308)
    weights = gate(torch.randn(10, FEATURES)).weights
    assert gate.most_slots == 2 == int((weights > 0).sum(2).max())


def test_weights_are_those_of_top_k_where_nothing_is_crowded_and_greedy_in_eval_mode():
    for k, settings_ in ((1, {}), (2, {}), (2, {"renormalize": False}), (1, {"scores": "sigmoid"})):
        top_k = ms.TopK(FEATURES, 4, k, **settings_)
        free = ms.BalancedTopK(FEATURES, 4, k, capacity_factor=100.0, **settings_)
        tight = ms.BalancedTopK(FEATURES, 4, k, **settings_)
        for gate in (free, tight):
            gate.load_state_dict(top_k.state_dict())
        inputs = torch.randn(21, FEATURES)
        expected = top_k(inputs).weights
        assert torch.allclose(free(inputs).weights, expected)
        assert torch.allclose(tight.eval()(inputs).weights, expected)
        tight.greedy_eval = False
        loads = (tight(inputs).weights > 0).sum((0, 1))
        assert loads.max() <= -(-21 * k // 4)


def test_gradients_are_those_of_the_weights_with_the_choice_fixed():
    gate = made(4, 2, renormalize=False).double()
    inputs = torch.randn(9, FEATURES, dtype=torch.float64, requires_grad=True)
    parts = torch.randn(9, 1, 4, dtype=torch.float64)
    slot_weights = gate(inputs)
    (slot_weights.weights * parts).sum().backward()
    found = gate.linear.weight.grad.clone()
    gate.zero_grad()
    chosen = slot_weights.weights > 0
    (gate.linear(inputs).softmax(1).unsqueeze(1) * chosen * parts).sum().backward()
    assert torch.allclose(gate.linear.weight.grad, found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    gate = made(4, 2)
    inputs = torch.randn(16, FEATURES)
    with torch.autocast("cpu", dtype=dtype):
        slot_weights = gate(inputs)
        slot_weights.weights.sum().backward()
    assert (slot_weights.weights > 0).sum((0, 1)).tolist() == [8] * 4
    assert gate.linear.weight.grad.isfinite().all()
    assert (gate.to(dtype)(inputs.to(dtype)).weights > 0).sum((0, 1)).tolist() == [8] * 4


def test_equal_logits_are_shared_out_the_same_way_every_time():
    gate = made(4, 2)
    torch.nn.init.zeros_(gate.linear.weight)
    torch.nn.init.zeros_(gate.linear.bias)
    first = gate(torch.randn(10, FEATURES)).weights
    assert torch.equal(first, gate(torch.randn(10, FEATURES)).weights)
    assert (first > 0).sum((0, 1)).tolist() == [5] * 4


def test_it_compiles_and_exports_as_one_operator():
    layer = ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, 3), made(4, 2))
    inputs = torch.randn(10, FEATURES)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(inputs), layer(inputs), atol=1e-6)
    torch.library.opcheck(balanced_slots, (torch.randn(6, 4), None, 2, 1.0))
    for greedy in (True, False):
        gate = made(4, 2, greedy_eval=greedy).eval()
        exported = torch.export.export(Weights(gate), (inputs,)).module()
        assert torch.equal(exported(inputs), gate(inputs).weights)


class Weights(torch.nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.gate = gate

    def forward(self, inputs):
        return self.gate(inputs).weights


def test_ctrl_c_ends_the_training_step(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_search.solvers.exact.transport.flow_slice", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(4, 2)(torch.randn(8, FEATURES))


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"capacity_factor must be a finite number >= 1, got 0\.5"):
        ms.BalancedTopK(FEATURES, 4, 2, capacity_factor=0.5)
    with pytest.raises(ValueError, match="scores must be one of softmax, sigmoid"):
        ms.BalancedTopK(FEATURES, 4, 2, scores="tanh")
    with pytest.raises(ValueError, match="k must be at most the number of slots, 4, got 5"):
        ms.BalancedTopK(FEATURES, 4, 5)
