"""The ways of other devices than the CPU, run on the CPU: equal to its own, and the fastest is found once a shape."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import moe_search as ms
from moe_search.layers import device_dispatch
from moe_search.layers.device_dispatch import DeviceDispatch, chosen_path, device_mixtures, possible_paths, trial
from moe_search.layers.dispatch import Dispatch

FEATURES, OUTPUTS = 8, 4

rows_of_weights = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0]), min_size=n, max_size=n), min_size=1, max_size=7)
)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(device_dispatch, "_kept", {})


@settings(deadline=None, max_examples=60)
@given(rows_of_weights)
def test_pairs_are_those_of_the_cpu_with_spare_ones_behind(rows):
    weights = torch.tensor(rows)
    expected = Dispatch.of(weights)
    for most in range(max(int((weights != 0).sum(1).max()), 1), weights.shape[1] + 1):
        dispatch = DeviceDispatch.of(weights, most)
        assert len(dispatch.samples) == len(rows) * most
        assert (dispatch.weights[sum(expected.counts) :] == 0).all()
        found = dispatch.read()
        assert found.counts == expected.counts
        assert torch.equal(found.samples, expected.samples)
        assert torch.equal(found.weights, expected.weights)


@settings(deadline=None, max_examples=40)
@given(rows_of_weights, st.sampled_from([None, 12]), st.booleans(), st.integers(0, 10**6))
def test_mixtures_and_gradients_are_those_of_the_cpu(rows, hidden, gated, seed):
    torch.manual_seed(seed)
    weights = torch.tensor(rows)
    experts = ms.StackedExperts(
        weights.shape[1], FEATURES, OUTPUTS, hidden, nn.Tanh, gated=gated and hidden is not None
    )
    inputs = torch.randn(len(rows), FEATURES)
    most = max(int((weights != 0).sum(1).max()), 1)
    found = []
    for path in ("dense", "sorted", "grouped"):
        leaves = [inputs.clone().requires_grad_(), weights.clone().requires_grad_(), *experts.parameters()]
        (mixture,) = device_mixtures(experts, leaves[0], [leaves[1]], most, path)
        gradients = torch.autograd.grad(mixture.sin().sum(), leaves, materialize_grads=True, allow_unused=True)
        found.append([mixture, *gradients])
    outputs = experts(inputs)
    expected = torch.einsum("bn,bnd->bd", weights, outputs)
    assert torch.allclose(found[0][0], expected, atol=1e-6)
    for path in found[1:]:
        for ours, theirs in zip(path, found[0], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("path", ["dense", "sorted", "grouped"])
def test_an_infinite_expert_spoils_no_sample_that_gives_it_weight_0(path):
    experts = ms.StackedExperts(3, FEATURES, OUTPUTS, 16)
    with torch.no_grad():
        experts.biases[-1][2] = torch.inf
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 1.0, 0.0]])
    (mixture,) = device_mixtures(experts, torch.randn(3, FEATURES), [weights], 2, path)
    assert mixture.isfinite().all(1).tolist() == [True, False, True]
    mixture[[0, 2]].sum().backward()
    assert all(bool(parameter.grad[:2].isfinite().all()) for parameter in experts.parameters())


def test_a_weight_that_is_nan_shows_in_the_output_of_its_sample():
    experts, weights = ms.StackedExperts(3, FEATURES, OUTPUTS), torch.tensor([[torch.nan, 0.0, 0.0], [0.0, 1.0, 0.0]])
    for path in ("dense", "sorted", "grouped"):
        (mixture,) = device_mixtures(experts, torch.randn(2, FEATURES), [weights], 1, path)
        assert mixture.isnan().all(1).tolist() == [True, False]


def test_a_gate_that_gives_no_weight():
    experts = ms.StackedExperts(3, FEATURES, OUTPUTS)
    for path in ("dense", "sorted", "grouped"):
        (mixture,) = device_mixtures(experts, torch.randn(4, FEATURES), [torch.zeros(4, 3)], 2, path)
        assert mixture.tolist() == torch.zeros(4, OUTPUTS).tolist()


@pytest.mark.parametrize(
    ("gates", "most"),
    [
        ([ms.TopK(8, 8, 2)], 2),
        ([ms.EvenTopK(8, 8, 3)], 3),
        ([ms.HashRouting(8, vocabulary=9), ms.TopK(8, 8, 4)], 5),
        ([ms.TopK(8, 8, 5), ms.TopK(8, 8, 4)], 8),
        ([ms.COMET(8, 8, 1)], 8),
        ([ms.DSelectK(8, 8, 1)], 8),
    ],
)
def test_the_most_experts_of_a_sample(gates, most):
    assert device_dispatch.most_experts(gates, 8) == most


class Chosen:
    """The choice for a layer and its batches, with trials that are counted and say what they are told."""

    def __init__(self, monkeypatch, **times):
        self.times, self.trials = times, []
        monkeypatch.setattr(device_dispatch, "trial", self.trial)
        self.experts = ms.StackedExperts(4, FEATURES, OUTPUTS)

    def trial(self, experts, inputs, weights, most, paths):
        self.trials.append(tuple(paths))
        return {path: self.times[path] for path in paths if path in self.times}

    def __call__(self, size=20, most=2, readable=True, experts=None):
        weights = torch.rand(size, 4)
        return chosen_path(experts or self.experts, torch.randn(size, FEATURES), [weights], most, readable)


def test_the_fastest_is_found_once_a_shape(monkeypatch):
    chosen = Chosen(monkeypatch, grouped=2.0, sorted=1.0, dense=3.0)
    assert [chosen(size) for size in (17, 20, 31, 20)] == ["sorted"] * 4
    assert chosen.trials == [("grouped", "sorted", "dense")]
    chosen.times = {"grouped": 1.0, "sorted": 2.0, "dense": 0.5}
    assert chosen(20) == "sorted"  # kept
    assert chosen(32) == "dense"
    with torch.no_grad():
        assert chosen(20) == "dense"
    assert chosen(20, most=1) == "dense"
    assert chosen(20, experts=ms.StackedExperts(4, FEATURES, OUTPUTS, 12)) == "dense"
    assert len(chosen.trials) == 5
    assert chosen(20, experts=ms.StackedExperts(4, FEATURES, OUTPUTS)) == "sorted"  # another layer of the same shape


def test_where_there_is_no_trial_one_rule_holds(monkeypatch):
    chosen = Chosen(monkeypatch, grouped=3.0, sorted=1.0, dense=2.0)
    odd = ms.StackedExperts(4, FEATURES, OUTPUTS).double()
    assert chosen(readable=False) == "grouped"
    torch.use_deterministic_algorithms(True)
    try:
        assert chosen() == "grouped"
        assert chosen(experts=odd) == "sorted"
    finally:
        torch.use_deterministic_algorithms(False)
    assert chosen(readable=False, experts=odd) == "dense"
    assert chosen.trials == []
    # What a trial has found may wait for the device: not where none can be waited for.
    assert chosen() == "sorted"
    assert chosen(readable=False) == "grouped"
    chosen.times["dense"] = 0.5
    assert chosen(100) == chosen(100, readable=False) == "dense"


def test_all_that_fails_on_trial_leaves_the_rule(monkeypatch):
    assert Chosen(monkeypatch)() == "grouped"


def test_dense_is_out_of_question_where_it_takes_the_memory(monkeypatch):
    experts, inputs = ms.StackedExperts(4, FEATURES, OUTPUTS, 16), torch.randn(10, FEATURES)
    assert possible_paths(experts, inputs, True) == ["grouped", "sorted", "dense"]
    monkeypatch.setattr(device_dispatch, "DENSE_BYTES", 10 * 4 * 16 * 4 - 1)
    assert possible_paths(experts, inputs, True) == ["grouped", "sorted"]
    assert possible_paths(experts.double(), inputs.double(), True) == ["sorted"]
    assert possible_paths(experts.double(), inputs.double(), False) == ["dense"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_a_trial_leaves_no_trace(monkeypatch, autocast, backward):
    torch.manual_seed(0)
    experts = ms.StackedExperts(4, FEATURES, 8, 16, nn.Dropout)
    parameters = list(experts.parameters())
    hooks = [
        parameter.register_hook(lambda _: pytest.fail("a hook of the model was called")) for parameter in parameters
    ]
    inputs, weights = torch.randn(12, FEATURES, requires_grad=True), torch.rand(12, 4, requires_grad=True)
    seen, run = [], device_dispatch.device_mixtures

    def seeing(*given):
        mixtures = run(*given)
        seen.append((given[-1], mixtures[0].dtype, mixtures[0].requires_grad))
        return mixtures

    monkeypatch.setattr(device_dispatch, "device_mixtures", seeing)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(backward), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        times = trial(experts, inputs, [weights], 2, ("grouped", "sorted", "dense"))
    assert set(times) == {"grouped", "sorted", "dense"}
    assert set(seen) == {(path, torch.bfloat16 if autocast else torch.float32, backward) for path in times}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter is same for parameter, same in zip(experts.parameters(), parameters, strict=True))
    assert all(each.grad is None for each in (inputs, weights, *parameters))
    for hook in hooks:
        hook.remove()


def test_a_path_that_raises_is_left_out(monkeypatch):
    experts = ms.StackedExperts(4, FEATURES, OUTPUTS).double()
    inputs, weights = torch.randn(12, FEATURES, dtype=torch.float64), torch.rand(12, 4, dtype=torch.float64)

    def no_room(*_):
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setattr(ms.StackedExperts, "forward_sorted", no_room)
    assert set(trial(experts, inputs, [weights], 2, ("sorted", "dense"))) == {"dense"}


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_trial_inside_of_a_checkpoint_is_no_part_of_it(reentrant):
    experts, inputs = ms.StackedExperts(4, FEATURES, OUTPUTS, 16), torch.randn(12, FEATURES, requires_grad=True)
    weights, paths = torch.rand(12, 4), []

    def layer(inputs):
        paths.append(chosen_path(experts, inputs, [weights], 4))
        return device_mixtures(experts, inputs, [weights], 4, paths[-1])[0]

    checkpoint(layer, inputs, use_reentrant=reentrant).sum().backward()
    gradient, inputs.grad = inputs.grad, None
    device_mixtures(experts, inputs, [weights], 4, "dense")[0].sum().backward()
    assert torch.allclose(gradient, inputs.grad, atol=1e-5)
    # A checkpoint of the old kind runs forward without gradients: that is another question.
    assert len(paths) == 2
    assert reentrant or paths[0] == paths[1]
