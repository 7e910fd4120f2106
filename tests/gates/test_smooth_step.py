import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.comet import COMET, DESCENT_LEAVES, DESCENT_SLOTS
from moe_search.gates.smooth_step import leaf_probabilities, live_leaves, smooth_step

numbers = st.floats(-3, 3, allow_subnormal=False)
gammas = st.floats(0.05, 5)


@settings(deadline=None, max_examples=200)
@given(numbers, gammas)
def test_formula_and_symmetry(t, gamma):
    value = smooth_step(torch.tensor(t, dtype=torch.float64), gamma).item()
    mirrored = smooth_step(torch.tensor(-t, dtype=torch.float64), gamma).item()
    assert value == pytest.approx(naive_gates.smooth_step(t, gamma), abs=1e-12)
    assert 0 <= value <= 1
    assert value + mirrored == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_by_hand_and_exact_ends(dtype):
    t = torch.tensor([-9.0, -0.5, -0.25, 0.0, 0.25, 0.5, 9.0], dtype=dtype, requires_grad=True)
    value = smooth_step(t)
    # At 1/4: -2/64 + 3/8 + 1/2 = 27/32.
    assert value.tolist() == [0.0, 0.0, 5 / 32, 0.5, 27 / 32, 1.0, 1.0]
    value.sum().backward()
    # The slope is -6 t^2 + 3/2 inside.
    assert t.grad.tolist() == [0.0, 0.0, 1.125, 1.5, 1.125, 0.0, 0.0]


@pytest.mark.parametrize("gamma", [0.3, 1.0, 4.0])
def test_gradient(gamma):
    t = torch.linspace(-1.3, 1.3, 41, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: smooth_step(t, gamma), (t,))


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=2, max_size=20), gammas)
def test_monotone(values, gamma):
    t = torch.tensor(sorted(values), dtype=torch.float64)
    assert bool((smooth_step(t, gamma).diff() >= -1e-15).all())


def splits_of(rows, m, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, m - 1, generator=generator, dtype=torch.float64) * scale


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 5), st.integers(2, 40), st.sampled_from([1.5, 3.0, 1e6]), st.integers(0, 10**6))
def test_equals_the_probabilities_of_all_leaves(rows, m, scale, seed):
    splits = splits_of(rows, m, seed, scale)
    reached = live_leaves(splits, 1.0)
    if reached is None:
        assert scale < 1e6
        return
    leaves, probabilities = reached
    expected = leaf_probabilities(splits.t(), 1.0).t()
    assert sorted(leaves.tolist()) == expected.flatten().nonzero().flatten().tolist()
    assert torch.equal(expected.flatten()[leaves], probabilities)


def test_looks_at_one_path_where_splits_are_hard(monkeypatch):
    looked_at = []

    def counted(t, gamma):
        looked_at.append(t.numel())
        return (t > 0).double()

    monkeypatch.setattr("moe_search.gates.smooth_step._part", counted)
    live_leaves(splits_of(10, 64, 0, 1e6), 1.0)
    # One node a tree, on each of six levels.
    assert looked_at == [10] * 6


def test_gives_up_where_everything_is_alive():
    assert live_leaves(torch.zeros(3, 63), 1.0) is None


@pytest.fixture
def any_batch(monkeypatch):
    """Descend for small batches too."""
    monkeypatch.setattr("moe_search.gates.comet.DESCENT_LEAVES", 1)


@pytest.mark.usefixtures("any_batch")
@pytest.mark.parametrize("convention", ["paper", "torch", "tensorflow"])
@pytest.mark.parametrize("m", [DESCENT_SLOTS, 200, 256])
@pytest.mark.parametrize("scale", [1.0, 5.0, 1e5])
def test_comet_gives_the_same_with_and_without(m, convention, scale):
    torch.manual_seed(0)
    gate = COMET(4, m, 2, convention=convention)
    with torch.no_grad():
        gate.nodes.weight.view(2, -1, 4)[:, : m - 1] *= scale
    inputs = torch.randn(9, 4)
    expected = gate(inputs)
    gate.eval()
    with torch.no_grad():
        routing = gate(inputs)
    for name in ("weights", "logits", "probabilities"):
        assert torch.equal(getattr(routing, name), getattr(expected, name))


def test_comet_descends_at_inference_only(monkeypatch):
    calls = []
    monkeypatch.setattr("moe_search.gates.comet.live_leaves", lambda *args: calls.append(args))
    size = DESCENT_LEAVES // (2 * DESCENT_SLOTS)
    gate, inputs = COMET(4, DESCENT_SLOTS, 2), torch.randn(size, 4)
    gate(inputs)
    with torch.no_grad():
        gate(inputs)
        COMET(4, DESCENT_SLOTS - 1, 2).eval()(torch.randn(2 * size, 4))
        gate.eval()(inputs[1:])
    gate.eval()(inputs)
    assert calls == []
    with torch.no_grad():
        gate(inputs)
    assert len(calls) == 1


@pytest.mark.usefixtures("any_batch")
def test_a_compiled_gate_has_no_graph_break():
    gate, inputs = COMET(4, DESCENT_SLOTS, 2).eval(), torch.randn(9, 4)
    torch.compiler.reset()
    with torch.no_grad():
        weights = torch.compile(gate, fullgraph=True, backend="eager")(inputs).weights
        assert torch.allclose(weights, gate(inputs).weights, atol=1e-6)
