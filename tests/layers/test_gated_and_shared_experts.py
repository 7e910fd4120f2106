"""Gated experts, and experts that all samples pass, against loops over plain modules."""

import copy

import pytest
import torch
from torch import nn

from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.dispatch import DISPATCHES
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

N, FEATURES, HIDDEN = 5, 8, 12
ACTIVATIONS = {"SwiGLU": nn.SiLU, "GEGLU": nn.GELU, "GLU": nn.Sigmoid, "ReGLU": nn.ReLU, "bilinear": None}


class Gated(nn.Module):
    """One gated expert of three plain layers."""

    def __init__(self, experts, e):
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(before, after, bias=len(experts.biases) > 0).to(experts.weights[0])
            for before, after in ((FEATURES, HIDDEN), (FEATURES, HIDDEN), (HIDDEN, FEATURES))
        )
        self.activation = experts.activation
        with torch.no_grad():
            for name, i, rows in (("gate", 0, slice(HIDDEN)), ("up", 0, slice(HIDDEN, None)), ("down", 1, slice(None))):
                layer = getattr(self, name)
                layer.weight.copy_(experts.weights[i][e, rows])
                if layer.bias is not None:
                    layer.bias.copy_(experts.biases[i][e, rows])

    def forward(self, x):
        return self.down(self.activation(self.gate(x)) * self.up(x))


def swiglu(n=N, activation=nn.SiLU, bias=False, dtype=torch.float64):
    return StackedExperts(n, FEATURES, FEATURES, HIDDEN, activation, gated=True, bias=bias).to(dtype)


def stacked_gradients(modules, name):
    """What the gradient of a stack must be, from the modules of its experts."""

    def of(layer):
        parameters = [getattr(getattr(module, layer), name) for module in modules]
        return torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])

    return [torch.cat([of("gate"), of("up")], 1), of("down")]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("k", [1, 2, N])
def test_gated_experts_are_those_of_plain_layers(dispatch, activation, bias, k):
    torch.manual_seed(0)
    dtype = torch.float32 if dispatch == "grouped" else torch.float64  # which takes no other
    experts = swiglu(activation=activation, bias=bias, dtype=dtype)
    gate = (Softmax(FEATURES, N) if k == N else TopK(FEATURES, N, k)).to(dtype)
    modules = [Gated(experts, e) for e in range(N)]
    ours = MixtureOfExperts(experts, gate, dispatch)
    plain = MixtureOfExperts(modules, copy.deepcopy(gate), "sorted")
    inputs = torch.randn(9, FEATURES, dtype=dtype, requires_grad=True)
    others = inputs.detach().clone().requires_grad_()
    mixture, expected = ours(inputs), plain(others)
    torch.testing.assert_close(mixture, expected)
    mixture.sin().sum().backward()
    expected.sin().sum().backward()
    torch.testing.assert_close(inputs.grad, others.grad)
    torch.testing.assert_close(ours.gate.linear.weight.grad, plain.gate.linear.weight.grad)
    for stack, name in ((experts.weights, "weight"), (experts.biases, "bias")):
        for parameter, gradient in zip(stack, stacked_gradients(modules, name) if len(stack) else [], strict=True):
            torch.testing.assert_close(parameter.grad, gradient)


def test_gradients_are_the_slopes():
    torch.manual_seed(0)
    moe = MixtureOfExperts(
        swiglu(3), Softmax(FEATURES, 3).double(), shared=swiglu(1), shared_gate=nn.Linear(FEATURES, 1).double()
    )
    names, parameters = zip(*moe.named_parameters(), strict=True)
    inputs = torch.randn(2, FEATURES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, *p: torch.func.functional_call(moe, dict(zip(names, p, strict=True)), (x,)), (inputs, *parameters)
    )


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_shared_experts_are_added_to_every_sample(dispatch, weighed):
    torch.manual_seed(0)
    experts, shared, gate = swiglu(dtype=torch.float32), swiglu(2, dtype=torch.float32), TopK(FEATURES, N, 2)
    shared_gate = nn.Linear(FEATURES, 1, bias=False) if weighed else None
    moe = MixtureOfExperts(experts, gate, dispatch, shared=shared, shared_gate=shared_gate)
    inputs = torch.randn(9, FEATURES)
    of_shared = Gated(shared, 0)(inputs) + Gated(shared, 1)(inputs)
    if weighed:
        of_shared = torch.sigmoid(inputs @ shared_gate.weight.T) * of_shared
    routed = MixtureOfExperts(experts, gate, dispatch)(inputs)
    torch.testing.assert_close(moe(inputs), routed + of_shared)
    one_module = MixtureOfExperts(experts, gate, dispatch, shared=Gated(shared, 0))
    torch.testing.assert_close(one_module(inputs), routed + Gated(shared, 0)(inputs))
    moe(inputs).sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in moe.shared.parameters())


def test_state_dicts_and_sizes():
    experts = swiglu(bias=True)
    assert [(name, tuple(p.shape)) for name, p in experts.named_parameters()] == [
        ("weights.0", (N, 2 * HIDDEN, FEATURES)),
        ("weights.1", (N, FEATURES, HIDDEN)),
        ("biases.0", (N, 2 * HIDDEN)),
        ("biases.1", (N, FEATURES)),
    ]
    assert experts.multiplications == 3 * FEATURES * HIDDEN
    moe = MixtureOfExperts(swiglu(), TopK(FEATURES, N, 2), shared=swiglu(1), shared_gate=nn.Linear(FEATURES, 1))
    assert {name.split(".")[0] for name in moe.state_dict()} == {"experts", "gate", "shared", "shared_gate"}
    assert list(swiglu().state_dict()) == ["weights.0", "weights.1"]
    other = swiglu()
    other.load_state_dict(moe.experts.state_dict())
    assert torch.equal(other.weights[0], moe.experts.weights[0])
    assert "gated=True, bias=False" in repr(other)


def test_experts_without_biases_and_gate():
    torch.manual_seed(0)
    for hidden in (None, HIDDEN):
        experts, inputs = StackedExperts(N, FEATURES, 4, hidden, nn.Tanh, bias=False), torch.randn(7, FEATURES)
        expected = []
        for e in range(N):
            outputs = torch.tanh(inputs @ experts.weights[0][e].T)
            expected.append(outputs if hidden is None else outputs @ experts.weights[1][e].T)
        torch.testing.assert_close(experts(inputs), torch.stack(expected, 1))
        counts = [3, 0, 1, 0, 3]
        owners = torch.arange(N).repeat_interleave(torch.tensor(counts))
        for grouped in (False, True):
            found = experts.forward_sorted(inputs, counts, grouped=grouped)
            torch.testing.assert_close(found, torch.stack(expected, 1)[torch.arange(7), owners])


def test_what_does_not_fit_together():
    gate = TopK(FEATURES, N, 2)
    with pytest.raises(ValueError, match="hidden_features must be given for gated experts, got None"):
        StackedExperts(N, FEATURES, FEATURES, gated=True)
    with pytest.raises(TypeError, match="shared must be a torch module, got function"):
        MixtureOfExperts(swiglu(), gate, shared=lambda x: x)
    with pytest.raises(ValueError, match="shared must be given for a shared_gate to weigh, got None"):
        MixtureOfExperts(swiglu(), gate, shared_gate=nn.Linear(FEATURES, 1))
    moe = MixtureOfExperts(swiglu(dtype=torch.float32), gate, shared=nn.Linear(FEATURES, 1))
    with pytest.raises(ValueError, match=r"outputs of the shape of the mixture, \(7, 8\), got shape \(7, 1\)"):
        moe(torch.randn(7, FEATURES))


def test_shared_experts_of_tokens_leave_padding_out():
    moe = MixtureOfExperts(
        swiglu(), TopK(FEATURES, N, 2), shared=swiglu(1), shared_gate=nn.Linear(FEATURES, 1)
    ).double()
    inputs = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    padded = inputs.masked_fill(~mask.unsqueeze(-1), float("nan"))
    outputs = moe(padded, mask=mask)
    assert not outputs[~mask].any()
    torch.testing.assert_close(outputs[mask], moe(inputs[mask]))
    outputs.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in moe.parameters() if parameter.grad is not None)
