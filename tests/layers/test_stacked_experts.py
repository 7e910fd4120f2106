import pytest
import torch
from torch import nn

from moe_search.layers.stacked_experts import StackedExperts

HIDDEN = pytest.mark.parametrize("hidden", [None, 5])


def make(hidden=None, n=3, activation=nn.ReLU, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StackedExperts(n, 4, 2, hidden, activation).to(dtype)


def inputs_of(size, dtype=torch.float64):
    return torch.randn(size, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))


def naive(experts, e, x):
    """Expert e on one sample, in vectors."""
    y = experts.weights[0][e] @ x + experts.biases[0][e]
    y = experts.activation(y)
    return y if len(experts.weights) == 1 else experts.weights[1][e] @ y + experts.biases[1][e]


class Sorted(nn.Module):
    """Experts whose forward is that of sorted samples."""

    def __init__(self, experts, counts):
        super().__init__()
        self.experts, self.counts = experts, counts

    def forward(self, inputs):
        return self.experts.forward_sorted(inputs, self.counts)


@HIDDEN
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, None])
def test_every_expert_on_every_sample(hidden, activation):
    experts, inputs = make(hidden, activation=activation), inputs_of(6)
    outputs = experts(inputs)
    assert outputs.shape == (6, 3, 2)
    for b in range(6):
        for e in range(3):
            assert torch.allclose(outputs[b, e], naive(experts, e, inputs[b]), rtol=0, atol=1e-12)


@HIDDEN
@pytest.mark.parametrize("counts", [(2, 3, 1), (0, 6, 0), (6, 0, 0), (1, 0, 5)])
def test_sorted_samples(hidden, counts):
    experts, inputs = make(hidden), inputs_of(6)
    outputs = experts.forward_sorted(inputs, counts)
    owners = [e for e in range(3) for _ in range(counts[e])]
    expected = torch.stack([naive(experts, e, x) for e, x in zip(owners, inputs, strict=True)])
    assert torch.allclose(outputs, expected, rtol=0, atol=1e-12)


@HIDDEN
def test_gradients(hidden):
    module, inputs = Sorted(make(hidden, activation=nn.Tanh), (1, 0, 3)), inputs_of(4).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def outputs(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    parameters = tuple(p.detach().clone().requires_grad_() for p in module.parameters())
    assert torch.autograd.gradcheck(outputs, (inputs, *parameters))
    assert torch.autograd.gradcheck(module.experts, (inputs,))


@HIDDEN
def test_an_expert_without_samples_does_not_run(hidden):
    experts = make(hidden)
    sizes = []
    experts.activation.register_forward_hook(lambda _module, args, _output: sizes.append(len(args[0])))
    experts.forward_sorted(inputs_of(4), (1, 0, 3))
    assert sizes == [1, 3]


def test_an_expert_without_samples_gets_a_zero_gradient():
    experts = make(5)
    experts.forward_sorted(inputs_of(4), (1, 0, 3)).sum().backward()
    for parameter in experts.parameters():
        assert bool((parameter.grad[1] == 0).all())
        assert bool((parameter.grad[2] != 0).any())


@HIDDEN
def test_start_is_that_of_linear_layers(hidden):
    experts = StackedExperts(200, 16, 9, hidden)
    for weight, bias in zip(experts.weights, experts.biases, strict=True):
        bound = weight.shape[2] ** -0.5
        for parameter in (weight, bias):
            assert parameter.abs().max() <= bound
            assert parameter.abs().max() > 0.97 * bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert len({tuple(w.flatten().tolist()) for w in experts.weights[0]}) == 200


@pytest.mark.parametrize("activation", [nn.ReLU(), torch.relu])
def test_an_activation_is_made_not_given(activation):
    with pytest.raises(TypeError, match=r"activation must return a module when it is called, as torch\.nn\.ReLU does"):
        StackedExperts(3, 4, 2, activation=activation)


def test_one_activation_for_all():
    experts = StackedExperts(3, 4, 2, activation=nn.PReLU)
    assert [name for name, _ in experts.named_parameters()] == ["activation.weight", "weights.0", "biases.0"]
    assert len(experts) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"num_experts": 0}, ValueError, "num_experts must be an integer >= 1, got 0"),
        ({"in_features": -1}, ValueError, "in_features must be an integer >= 1, got -1"),
        ({"out_features": 2.0}, TypeError, "out_features must be an integer, got 2.0"),
        ({"hidden_features": 0}, ValueError, "hidden_features must be an integer >= 1, got 0"),
        ({"activation": lambda: torch.relu}, TypeError, "activation must return a torch.nn.Module, got builtin"),
    ],
)
def test_wrong_arguments(arguments, error, fault):
    with pytest.raises(error, match=fault):
        StackedExperts(**({"num_experts": 3, "in_features": 4, "out_features": 2} | arguments))


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        (torch.zeros(0, 4), r"at least one row, got shape \(0, 4\)"),
        (torch.zeros(5, 3), r"have shape \[\.\.\., 4\], in_features .*, got shape \(5, 3\)"),
        (torch.zeros(3), r"have shape \[\.\.\., 4\], in_features .*, got shape \(3,\)"),
        (torch.zeros(5, 4, 1), r"have shape \[\.\.\., 4\], in_features .*, got shape \(5, 4, 1\)"),
        (torch.zeros(5, 4, dtype=torch.int32), "floating point, got dtype torch.int32"),
        (torch.zeros(5, 4, dtype=torch.float64), "the dtype of the experts, torch.float32, got torch.float64"),
        (torch.zeros(5, 4, device="meta"), "on the device of the experts, cpu, got meta"),
    ],
)
def test_wrong_inputs(inputs, fault):
    experts = make(dtype=torch.float32)
    for call in (experts, lambda x: experts.forward_sorted(x, (len(x), 0, 0))):
        with pytest.raises(ValueError, match=f"inputs must .*{fault}"):
            call(inputs)


@pytest.mark.parametrize("counts", [(2, 2), (2, 2, 2), (5, 0, 0, 0)])
def test_wrong_counts(counts):
    with pytest.raises(ValueError, match="counts must be 3 numbers that sum to the 5 rows of inputs"):
        make().forward_sorted(inputs_of(5), counts)
