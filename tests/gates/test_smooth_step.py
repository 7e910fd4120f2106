import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.smooth_step import smooth_step

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
