import copy
import io
import pickle

import naive_gates
import pytest
import torch
from every_gate import FEATURES, GATES, OUTPUTS, VOCABULARY, batch, every_gate
from hypothesis import given, settings, strategies as st
from torch import nn

from moe_search.gates.comet import COMET
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.dispatch import DISPATCHES
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts

LEARNED = ["Softmax", "TopK-2", "COMET", "COMET-shared"]


class Counting(nn.Module):
    """An expert that remembers the batches it was called on."""

    def __init__(self, expert):
        super().__init__()
        self.expert = expert
        self.batches = []

    def forward(self, inputs):
        self.batches.append(inputs.detach().clone())
        return self.expert(inputs)


class Scripted(HashRouting):
    """Sends sample b to the slot that its first feature names."""

    def __init__(self, n):
        super().__init__(n, in_features=FEATURES)

    def _codes(self, features):
        return features[:, 0].long()


def stacked_layer(make_gate, n=3, m=6, hidden=5, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        moe = MixtureOfExperts(StackedExperts(n, FEATURES, OUTPUTS, hidden), make_gate(n, m)).double()
    moe.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    return moe


def as_modules(experts):
    """The experts of a stack as a list of modules with the same weights."""
    modules = []
    for e in range(len(experts)):
        layers = []
        for weight, bias in zip(experts.weights, experts.biases, strict=True):
            linear = nn.Linear(weight.shape[2], weight.shape[1], dtype=weight.dtype)
            linear.load_state_dict({"weight": weight[e], "bias": bias[e]})
            layers += [linear, nn.ReLU()]
        modules.append(nn.Sequential(*layers[: 2 if len(layers) == 2 else -1]))
    return modules


def module_layer(make_gate, **options):
    moe = stacked_layer(make_gate, **options)
    return MixtureOfExperts(as_modules(moe.experts), moe.gate)


@every_gate
@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 5),
    capacity=st.integers(1, 2),
    size=st.integers(1, 6),
    hidden=st.sampled_from([None, 5]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_naive_mixture(make_gate, n, capacity, size, hidden, seed):
    moe = stacked_layer(make_gate, n=n, m=n * capacity, hidden=hidden, seed=seed)
    modules = as_modules(moe.experts)
    inputs, ids = batch(size, seed)
    with torch.no_grad():
        maps = moe.gate.expert_map.experts.tolist()
        slot_weights = moe.gate(inputs, ids).weights.tolist()
        weights = [naive_gates.expert_weights(sample, maps, n) for sample in slot_weights]
        expected = torch.stack(naive_gates.mixture(inputs, weights, modules))
        assert torch.allclose(moe(inputs, ids), expected, rtol=0, atol=1e-12)
        assert torch.allclose(MixtureOfExperts(modules, moe.gate)(inputs, ids), expected, rtol=0, atol=1e-12)
        outputs = moe.expert_outputs(inputs)
        assert torch.allclose(
            moe.combine(torch.tensor(weights, dtype=torch.float64), outputs), expected, rtol=0, atol=1e-12
        )
        assert torch.allclose(MixtureOfExperts(modules, moe.gate).expert_outputs(inputs), outputs, rtol=0, atol=1e-12)


@every_gate
def test_stack_and_modules_have_the_same_gradients(make_gate):
    stacked, modules = stacked_layer(make_gate), module_layer(make_gate)
    inputs, ids = batch()
    leaves = []
    for moe in (stacked, modules):
        leaf = inputs.clone().requires_grad_()
        (moe(leaf, ids).square().sum() + moe.regularization()).backward()
        leaves.append(leaf)
    assert torch.allclose(leaves[0].grad, leaves[1].grad, rtol=0, atol=1e-12)
    for ours, theirs in zip(stacked.gate.parameters(), modules.gate.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12)
    for e, expert in enumerate(modules.experts):
        used = expert[0].weight.grad is not None
        for layer, name in ((0, "weight"), (0, "bias"), (2, "weight"), (2, "bias")):
            stack = (stacked.experts.weights if name == "weight" else stacked.experts.biases)[layer // 2]
            theirs = getattr(expert[layer], name).grad
            assert torch.allclose(stack.grad[e], theirs if used else torch.zeros(()).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
def test_gradcheck(name, make):
    moe = make(GATES[name], n=2, m=4)
    inputs, _ = batch(3)
    names = [key for key, _ in moe.named_parameters()]

    def loss(x, *parameters):
        routed = torch.func.functional_call(moe, dict(zip(names, parameters, strict=True)), (x,))
        return routed, moe.regularization()

    parameters = tuple(p.detach().clone().requires_grad_() for p in moe.parameters())
    assert torch.autograd.gradcheck(loss, (inputs.requires_grad_(), *parameters))


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
def test_gradients_flow_to_gate_and_experts(name, make):
    moe = make(GATES[name])
    moe(*batch(64)).square().sum().backward()
    for parameter in moe.parameters():
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())
        assert bool((parameter.grad != 0).any())


@every_gate
def test_an_expert_runs_once_on_its_samples_and_on_no_other(make_gate):
    moe = module_layer(make_gate, n=5, m=5)
    counting = [Counting(expert) for expert in moe.experts]
    inputs, ids = batch(4)
    layer = MixtureOfExperts(counting, moe.gate)
    layer(inputs, ids)
    weights = layer.gate.expert_map(layer.gate(inputs, ids).weights)
    for e, expert in enumerate(counting):
        own = inputs[weights[:, e] > 0]
        assert len(expert.batches) == (len(own) > 0)
        if len(own):
            assert torch.equal(expert.batches[0], own)


def test_an_expert_without_samples_is_not_called():
    counting = [Counting(nn.Linear(FEATURES, OUTPUTS)) for _ in range(4)]
    gate = Scripted(4)
    with torch.no_grad():
        gate.table[:4] = torch.arange(4)
    layer = MixtureOfExperts(counting, gate)
    inputs = torch.tensor([[2.0, 0, 0, 0], [0.0, 1, 0, 0], [2.0, 3, 0, 0]])
    output = layer(inputs)
    assert [len(expert.batches) for expert in counting] == [1, 0, 1, 0]
    assert torch.equal(counting[2].batches[0], inputs[[0, 2]])
    assert torch.equal(output[1], counting[0].expert(inputs[1:2])[0])
    output.sum().backward()
    assert counting[1].expert.weight.grad is None
    layer.gate.expert_map.assign([[3, 1, 0, 2]])
    layer(inputs)
    assert [len(expert.batches) for expert in counting] == [2, 0, 1, 1]


@every_gate
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
@pytest.mark.parametrize("training", [True, False])
def test_batch_of_one(make_gate, make, training):
    moe = make(make_gate).train(training)
    inputs, ids = batch()
    alone = [moe(inputs[b : b + 1], ids[b : b + 1]) for b in range(len(inputs))]
    assert torch.allclose(moe(inputs, ids), torch.cat(alone), rtol=0, atol=1e-12)


@every_gate
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
@pytest.mark.parametrize("dispatch", DISPATCHES[:3])
def test_tokens_of_sequences_and_padding(make_gate, make, dispatch):
    """All leading axes are rows; what a mask leaves out has output 0, whatever stands there, and no gradient."""
    moe = make(make_gate).train()
    moe.dispatch = dispatch
    inputs, ids = batch(12)
    expected = moe(inputs, ids)
    tokens, of_tokens = inputs.unflatten(0, (3, 4)), ids.unflatten(0, (3, 4))
    torch.testing.assert_close(moe(tokens, of_tokens), expected.unflatten(0, (3, 4)))
    torch.testing.assert_close(moe(inputs[2], ids[2]), expected[2])
    mask = torch.tensor([[True, True, False, False], [True, False, False, False], [True] * 4])
    padded = tokens.masked_fill(~mask.unsqueeze(2), torch.nan).requires_grad_()
    outputs = moe(padded, of_tokens.masked_fill(~mask, -1), mask.long())
    assert bool((outputs[~mask] == 0).all())
    alone = moe(inputs[mask.flatten()], ids[mask.flatten()])
    torch.testing.assert_close(outputs[mask], alone)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), padded)
    assert bool((gradient[~mask] == 0).all())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    "gate", [HashRouting(2, vocabulary=VOCABULARY), TopK(48, 2, 1), COMET(48, 2, 2)], ids=["hash", "top-1", "comet"]
)
def test_convolutional_experts(gate):
    """An image is a row, flattened by who has it."""
    experts = [nn.Sequential(nn.Unflatten(1, (3, 4, 4)), nn.Conv2d(3, 5, 3, padding=1)) for _ in range(2)]
    moe = MixtureOfExperts(experts, gate)
    generator = torch.Generator().manual_seed(0)
    images, ids = torch.randn(6, 48, generator=generator), torch.randint(VOCABULARY, (6,), generator=generator)
    weights = gate.expert_map(gate(images, ids).weights)
    expected = sum(weights[:, e, None, None, None] * experts[e](images) for e in range(2))
    outputs = moe.expert_outputs(images)
    assert outputs.shape == (6, 2, 5, 4, 4)
    assert torch.allclose(moe(images, ids), expected, atol=1e-6)
    assert torch.allclose(moe.combine(weights, outputs), expected, atol=1e-6)


def test_experts_with_one_number_a_sample():
    experts = [nn.Sequential(nn.Linear(FEATURES, 1), nn.Flatten(0)) for _ in range(2)]
    moe = MixtureOfExperts(experts, Softmax(FEATURES, 2))
    inputs, _ = batch(dtype=torch.float32)
    assert moe(inputs).shape == (9,)
    weights = moe.gate.expert_map(moe.gate(inputs).weights)
    assert torch.allclose(moe.combine(weights, moe.expert_outputs(inputs)), moe(inputs), atol=1e-6)


def test_combine_keeps_the_precision_of_the_experts():
    moe = stacked_layer(GATES["Softmax"])
    outputs = torch.arange(6.0).reshape(1, 3, 2)
    mixture = moe.combine(torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64), outputs)
    assert mixture.dtype == torch.float32
    assert mixture.tolist() == [[1.5, 2.5]]


class TestRegularization:
    def test_is_the_penalty_of_the_last_training_forward(self):
        moe = stacked_layer(GATES["COMET"])
        moe(*batch(seed=1))
        moe(*batch(seed=2))
        expected = moe.gate.penalty(moe.gate(batch(seed=2)[0]))
        assert expected > 0
        assert torch.equal(moe.regularization(), expected)
        moe.regularization().backward()
        assert bool((moe.gate.nodes.weight.grad != 0).any())

    def test_is_zero_in_eval_mode_and_before_any_forward(self):
        moe = stacked_layer(GATES["COMET"])
        assert moe.regularization().shape == ()
        assert moe.regularization().item() == 0
        moe(*batch())
        moe.eval()
        assert moe.regularization().item() == 0
        moe.train()
        assert moe.regularization().item() > 0

    def test_a_forward_in_eval_mode_leaves_the_routing(self):
        moe = stacked_layer(GATES["COMET"])
        moe.eval()
        moe(*batch())
        assert moe.routing is None
        moe.train()
        moe(*batch())
        routing = moe.routing
        assert torch.equal(routing.weights, moe.gate(batch()[0]).weights)
        moe.eval()
        moe(*batch(seed=5))
        assert moe.routing is routing

    @every_gate
    def test_is_a_scalar_for_every_gate(self, make_gate):
        moe = stacked_layer(make_gate)
        (moe(*batch()).sum() + moe.regularization()).backward()
        assert moe.regularization().shape == ()


@pytest.mark.parametrize("make", [stacked_layer, module_layer])
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda moe: pickle.loads(pickle.dumps(moe))])
def test_a_copy_after_a_training_forward(make, copier):
    moe = make(GATES["COMET"])
    expected = moe(*batch())
    copied = copier(moe)
    assert moe.routing is not None
    assert copied.routing is None
    assert copied.regularization().item() == 0
    assert torch.equal(copied(*batch()), expected)
    (expected.sum() + moe.regularization()).backward()
    assert all(parameter.grad is None for parameter in copied.parameters())


@every_gate
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
def test_state_dict_round_trip_after_a_training_forward(make_gate, make):
    moe, other = make(make_gate, seed=1), make(make_gate, seed=2)
    expected = moe(*batch())
    file = io.BytesIO()
    torch.save(moe.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(*batch()), expected)
    assert "gate.expert_map.experts" in moe.state_dict()


def test_autocast():
    inputs, _ = batch(dtype=torch.float32)
    for make in (stacked_layer, module_layer):
        moe = make(GATES["Softmax"]).float()
        expected = moe(inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixture = moe(inputs)
            assert moe.combine(torch.ones(9, 3) / 3, moe.expert_outputs(inputs)).shape == (9, OUTPUTS)
        assert mixture.dtype == torch.bfloat16
        assert torch.allclose(mixture.float(), expected, atol=0.05)


@every_gate
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        (torch.zeros(0, FEATURES), r"hold at least one row, got shape \(0, 4\)"),
        (torch.tensor(0.0), "got a scalar"),
        (torch.zeros(9, FEATURES, dtype=torch.int64), "floating point, got dtype torch.int64"),
        (torch.zeros(9, FEATURES, device="meta"), "device of the gate, cpu, got meta"),
    ],
)
def test_wrong_inputs(make_gate, make, inputs, fault):
    moe = make(make_gate)
    with pytest.raises(ValueError, match=f"inputs must .*{fault}"):
        moe(inputs, batch()[1])
    assert moe.routing is None


@pytest.mark.parametrize("make", [stacked_layer, module_layer])
@pytest.mark.parametrize("shape", [(9, FEATURES + 1), (9,), (9, FEATURES, 2)])
def test_inputs_of_another_shape(make, shape):
    with pytest.raises(ValueError, match=r"inputs must have shape \[\.\.\., 4\], in_features .*, got shape \(9"):
        make(GATES["TopK-2"])(torch.zeros(shape, dtype=torch.float64))


def test_an_empty_batch_for_all_experts():
    with pytest.raises(ValueError, match=r"inputs must hold at least one row, got shape \(0, 4\)"):
        module_layer(GATES["TopK-2"]).expert_outputs(torch.zeros(0, FEATURES).double())


@pytest.mark.parametrize("count", [2, 4])
def test_another_number_of_experts(count):
    with pytest.raises(ValueError, match=f"experts must be 3, as many as the gate's, got {count}"):
        MixtureOfExperts(StackedExperts(count, FEATURES, OUTPUTS), Softmax(FEATURES, 3))
    with pytest.raises(ValueError, match=f"experts must be 3, as many as the gate's, got {count}"):
        MixtureOfExperts([nn.Identity() for _ in range(count)], Softmax(FEATURES, 3))


@pytest.mark.parametrize(
    ("experts", "gate", "fault"),
    [
        ([nn.Identity()], nn.Linear(4, 1), "gate must be a Gate, got Linear"),
        (nn.Linear(4, 4), Softmax(4, 1), "experts must be StackedExperts or an iterable of modules, got Linear"),
        ([nn.Identity(), torch.relu], Softmax(4, 2), "experts must be torch modules, got builtin.* for expert 1"),
    ],
)
def test_wrong_types(experts, gate, fault):
    with pytest.raises(TypeError, match=fault):
        MixtureOfExperts(experts, gate)


@pytest.mark.parametrize(
    ("expert", "error", "fault"),
    [
        (nn.Linear(FEATURES, 2), ValueError, r"of one shape, got samples of shape \(3,\) and, from expert 1, \(2,\)"),
        (nn.Flatten(0), ValueError, r"one output for each of their 9 samples, got shape \(36,\) from expert 1"),
        (nn.LSTM(FEATURES, 3), TypeError, "experts must return tensors, got tuple from expert 1"),
    ],
)
def test_wrong_outputs(expert, error, fault):
    moe = MixtureOfExperts([nn.Linear(FEATURES, OUTPUTS), expert], Softmax(FEATURES, 2))
    inputs, _ = batch(dtype=torch.float32)
    for call in (moe, moe.expert_outputs):
        with pytest.raises(error, match=f"experts must return .*{fault}|{fault}"):
            call(inputs)


@pytest.mark.parametrize(("weights", "outputs"), [((9, 2), (9, 3, 1)), ((9, 3), (8, 3, 1)), ((9, 3), (9, 2, 1))])
def test_combine_refuses_other_shapes(weights, outputs):
    with pytest.raises(ValueError, match=r"must have shapes \[B, 3\] and \[B, 3, ...\], got \(9"):
        stacked_layer(GATES["Softmax"]).combine(torch.zeros(weights), torch.zeros(outputs))


@every_gate
@pytest.mark.parametrize("make", [stacked_layer, module_layer])
@pytest.mark.cuda
def test_cuda(make_gate, make):
    moe = make(make_gate)
    inputs, ids = batch()
    expected = moe(inputs, ids)
    moe.cuda()
    mixture = moe(inputs.cuda(), ids.cuda())
    assert torch.allclose(mixture.cpu(), expected, rtol=0, atol=1e-12)
    (mixture.sum() + moe.regularization()).backward()
    with pytest.raises(ValueError, match="inputs must be on the device of the gate, cuda:0, got cpu"):
        moe(inputs, ids.cuda())
