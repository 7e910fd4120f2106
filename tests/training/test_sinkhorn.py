import copy
import io
import math

import naive_training as naive
import pytest
import torch
from hypothesis import given, settings, strategies as st
from specialists import FEATURES, make
from torch import nn

from moe_search.gates.comet import COMET
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.training import sinkhorn as module
from moe_search.training.sinkhorn import SinkhornPermutation, round_permutations, sinkhorn

# k = 1 and k >= 2, one row of the map and one for each selector, m = n and m > n.
GATES = {
    "softmax": lambda: Softmax(FEATURES, 4),
    "top-2 of 6 slots": lambda: TopK(FEATURES, 3, 2, 6),
    "comet-2": lambda: COMET(FEATURES, 4, 2),
    "comet-3 of 6 slots": lambda: COMET(FEATURES, 3, 3, 6),
    "comet-2 shared": lambda: COMET(FEATURES, 4, 2, shared_map=True),
}
every_gate = pytest.mark.parametrize("make_gate", GATES.values(), ids=GATES.keys())


def wrapped(make_gate, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = make_gate().double()
        gate.expert_map.scramble(torch.Generator().manual_seed(seed))
        return SinkhornPermutation(gate, **{"steps": 10, **options}).double()


def samples(size=7, seed=0):
    return torch.randn(size, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(m=st.integers(1, 5), iterations=st.integers(1, 12), scale=st.sampled_from([0.1, 1.0, 20.0]), seed=st.integers(0))
def test_sinkhorn_is_the_naive_one(m, iterations, scale, seed):
    scores = scale * torch.randn(2, m, m, generator=torch.Generator().manual_seed(seed % 2**63), dtype=torch.float64)
    for matrix, log_p in zip(scores.tolist(), sinkhorn(scores, iterations), strict=True):
        torch.testing.assert_close(log_p.exp(), torch.tensor(naive.sinkhorn(matrix, iterations)).double())


def test_two_iterations_by_hand():
    # [[1, 3], [1, 1]]: columns / 2 and / 4 give [[1/2, 3/4], [1/2, 1/4]]; rows / (5/4) and / (3/4).
    once = torch.tensor([[0.4, 0.6], [2 / 3, 1 / 3]], dtype=torch.float64)
    scores = torch.tensor([[1.0, 3.0], [1.0, 1.0]], dtype=torch.float64).log()
    torch.testing.assert_close(sinkhorn(scores, 1).exp(), once)
    torch.testing.assert_close(sinkhorn(once.log(), 1), sinkhorn(scores, 2))
    torch.testing.assert_close(sinkhorn(scores, 200).exp().sum(0), torch.ones(2).double())


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_rounding_is_the_best_of_all_permutations(m, seed):
    log_p = sinkhorn(torch.randn(3, m, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), 20)
    assert round_permutations(log_p).tolist() == [naive.best_permutation(matrix) for matrix in log_p.exp().tolist()]


@every_gate
def test_weights_are_those_of_the_slots_times_the_matrix(make_gate):
    gate, inputs = wrapped(make_gate, temperatures=(0.05, 0.01), iterations=(3, 3)), samples()
    routing = gate(inputs)
    matrices = [naive.sinkhorn((row / 0.05).tolist(), 3) for row in gate.log_weights.detach()]
    expected = [naive.permuted(sample, matrices) for sample in gate.gate(inputs).weights.tolist()]
    torch.testing.assert_close(routing.weights, torch.tensor(expected).double())
    assert torch.equal(routing.logits, gate.gate(inputs).logits)


@every_gate
def test_a_permutation_that_is_hard_already_is_what_is_committed(make_gate):
    gate, inputs = wrapped(make_gate, steps=1), samples()
    drawn = torch.stack([torch.randperm(gate.num_slots) for _ in gate.log_weights])
    with torch.no_grad():
        gate.log_weights.copy_(nn.functional.one_hot(drawn, gate.num_slots))
    before, experts = gate.expert_map(gate(inputs).weights), gate.expert_map.experts.clone()
    gate.step()
    assert gate.finished
    torch.testing.assert_close(gate.expert_map(gate(inputs).weights), before)
    for old, new, seats in zip(experts.tolist(), gate.expert_map.experts.tolist(), drawn.tolist(), strict=True):
        assert new == [old[seat] for seat in seats]


@every_gate
def test_a_finished_permutation_gives_the_gate_its_sparse_weights_back(make_gate):
    gate, inputs = wrapped(make_gate, steps=3), samples()
    for _ in range(3):
        assert not gate.finished
        assert bool(gate(inputs).weights.sum((1, 2)).sub(1).abs().max() < 1e-12)
        gate.step()
    routing = gate(inputs)
    assert torch.equal(routing.weights, gate.gate(inputs).weights)
    assert torch.equal(gate.penalty(routing), gate.gate.penalty(gate.gate(inputs)))
    assert gate.expert_map is gate.gate.expert_map


def test_gradients_are_those_of_finite_differences():
    gate, inputs = wrapped(GATES["comet-2"], temperatures=(0.5, 0.1), iterations=(4, 4)), samples(3)

    def outputs(log_weights):
        routing = torch.func.functional_call(gate, {"log_weights": log_weights}, (inputs,))
        return routing.weights, gate.penalty(routing)

    assert torch.autograd.gradcheck(outputs, (gate.log_weights.detach().clone().requires_grad_(),))


def test_penalty_is_the_entropy_of_the_matrices_by_hand():
    gate = wrapped(lambda: COMET(FEATURES, 2, 2, entropy=0.3), entropy=0.5)
    with torch.no_grad():
        gate.log_weights.zero_()
    routing = gate(samples())
    # Two uniform matrices of 2 x 2, each of entropy 2 log 2.
    expected = gate.gate.penalty(gate.gate(samples())) + 0.5 * 2 * math.log(2)
    torch.testing.assert_close(gate.penalty(routing), expected.detach())


def test_the_schedule_is_log_linear_in_the_temperature_and_linear_in_the_iterations():
    gate, met = wrapped(GATES["softmax"], steps=4), []
    for _ in range(4):
        met.append((gate.temperature, gate.num_iterations))
        gate.step()
    assert [tau for tau, _ in met] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])
    assert [count for _, count in met] == [20, 52, 85, 118]
    assert (gate.temperature, gate.num_iterations) == (pytest.approx(1e-7), 150)


def test_the_temperature_stays_at_its_last_value_and_nothing_turns_to_nan():
    gate, inputs = wrapped(GATES["comet-2"], steps=3), samples()
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(1000):
        if not gate.finished:
            routing = gate(inputs)
            (routing.weights.square().sum() + gate.penalty(routing)).backward()
            assert all(bool(p.grad.isfinite().all()) for p in gate.parameters())
            optimizer.step()
            optimizer.zero_grad()
        gate.step()
    assert gate.temperature == pytest.approx(1e-7)
    assert bool(gate(inputs).weights.isfinite().all())
    assert bool(gate.log_weights.isfinite().all())


@pytest.mark.parametrize("size", [0.0, 1e-300, 1.0, 1e8, 1e30])
def test_scores_of_any_size_give_finite_weights_and_gradients(size):
    gate = wrapped(GATES["top-2 of 6 slots"], temperatures=(1e-7, 1e-7))
    with torch.no_grad():
        gate.log_weights.mul_(size)
    routing = gate(samples())
    (routing.weights.square().sum() + gate.penalty(routing)).backward()
    assert bool(routing.weights.isfinite().all())
    assert bool(gate.log_weights.grad.isfinite().all())


def round_trip(gate, fresh):
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    return fresh


@every_gate
def test_step_and_finished_are_in_the_state_dict(make_gate):
    gate, inputs = wrapped(make_gate, seed=1, steps=2), samples()
    gate.step()
    half = round_trip(gate, wrapped(make_gate, seed=2, steps=2))
    assert half.temperature == gate.temperature
    assert torch.equal(half(inputs).weights, gate(inputs).weights)
    for one in (gate, half):
        one.step()
        assert one.finished
    assert torch.equal(half.expert_map.experts, gate.expert_map.experts)
    hard = round_trip(gate, wrapped(make_gate, seed=3, steps=2))
    assert hard.finished
    assert not hard.log_weights.requires_grad
    assert torch.equal(hard(inputs).weights, gate.gate(inputs).weights)
    experts = hard.expert_map.experts.clone()
    hard.step()
    assert torch.equal(hard.expert_map.experts, experts)
    soft = round_trip(wrapped(make_gate, steps=2), hard)
    assert not soft.finished
    assert soft.log_weights.requires_grad


@pytest.mark.parametrize("learned", [True, False])
def test_a_state_leaves_a_frozen_permutation_frozen(learned):
    def make(finished=False):
        gate = wrapped(GATES["comet-2"], steps=1).requires_grad_(learned)
        if finished:
            gate.step()
        return gate

    for states in ([False], [True, False], [True, True, False], [False, True, False]):
        gate = make()
        for finished in states:
            round_trip(make(finished), gate)
            assert gate.finished == finished
            assert gate.log_weights.requires_grad == (learned and not finished)
    thawed = make(finished=True).requires_grad_(True)
    assert not round_trip(make(finished=True), thawed).log_weights.requires_grad


def test_the_map_is_in_the_state_dict_once():
    gate = wrapped(GATES["comet-2"])
    assert [key for key in gate.state_dict() if key.endswith("experts")] == ["gate.expert_map.experts"]
    copied = copy.deepcopy(gate)
    assert copied.expert_map is copied.gate.expert_map is not gate.expert_map


def test_one_hungarian_at_the_end_and_no_sinkhorn_after_it(monkeypatch):
    calls = []
    for name in ("sinkhorn", "linear_sum_assignment"):
        original = getattr(module, name)

        def counted(*args, name=name, original=original, **options):
            calls.append(name)
            return original(*args, **options)

        monkeypatch.setattr(module, name, counted)
    gate, inputs = wrapped(GATES["comet-2"], steps=5), samples()
    for _ in range(5):
        gate.penalty(gate(inputs))
        gate.step()
    # Six: one a forward and one to round. Two: one for each row of the map.
    assert [calls.count("sinkhorn"), calls.count("linear_sum_assignment")] == [6, 2]
    calls.clear()
    for training in (True, False):
        gate.train(training)
        for _ in range(4):
            gate.penalty(gate(inputs))
            gate.step()
    assert calls == []


def test_noise_comes_from_the_generator_of_torch_and_in_training_only():
    gate, inputs = wrapped(GATES["comet-2"], noise=0.05, temperatures=(0.1, 0.1)), samples()
    plain = wrapped(GATES["comet-2"], temperatures=(0.1, 0.1))

    def drawn(seed):
        torch.manual_seed(seed)
        return gate(inputs).weights

    with torch.random.fork_rng(devices=[]):
        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))
        mean = torch.stack([gate.log_permutation() for _ in range(300)]).mean(0)
        state = torch.get_rng_state()
        gate.eval()
        assert torch.equal(gate(inputs).weights, plain(inputs).weights)
        assert torch.equal(torch.get_rng_state(), state)
    # The noise has one mean for all entries, which Sinkhorn takes out.
    assert (mean - gate.log_permutation()).abs().max() < 0.3


@pytest.mark.parametrize("gate", ["top-2", "comet"])
def test_training_brings_a_scrambled_map_back(gate):
    setting = make(gate, "none", 4, 4, samples=256)
    setting.scramble(seed=3)
    scrambled = setting.true_loss()
    torch.manual_seed(0)
    moe = setting.model.moe
    moe.gate = SinkhornPermutation(moe.gate, 100, temperatures=(0.1, 1e-3), iterations=(10, 30))
    optimizer = torch.optim.Adam([moe.gate.log_weights], lr=0.05)
    for _ in range(100):
        loss = setting.loss(setting.model(setting.inputs), setting.targets) + moe.regularization()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        moe.gate.step()
    assert moe.gate.finished
    assert setting.true_loss() < 0.5 * scrambled


def test_a_layer_takes_it_as_its_gate():
    gate = SinkhornPermutation(TopK(FEATURES, 4, 2), steps=1)
    moe = MixtureOfExperts(StackedExperts(4, FEATURES, 3), gate)
    inputs = samples().float()
    (moe(inputs).sum() + moe.regularization()).backward()
    assert bool((gate.log_weights.grad != 0).any())
    gate.step()
    assert gate.log_weights.grad is None
    assert moe(inputs).shape == (7, 3)
    assert bool(((gate.expert_map(moe.routing.weights) > 0).sum(1) == 2).all())


@pytest.mark.parametrize(
    ("options", "error", "fault"),
    [
        ({"gate": nn.Linear(2, 2)}, TypeError, "gate must be a Gate, got Linear"),
        ({"gate": SinkhornPermutation(Softmax(2, 2), 1)}, ValueError, "gate must not be a SinkhornPermutation"),
        ({"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
        ({"steps": 1.5}, TypeError, "steps must be an integer, got 1.5"),
        ({"temperatures": 1e-3}, TypeError, "temperatures must be two numbers, the first and the last, got 0.001"),
        ({"temperatures": (1e-3, 0.0)}, ValueError, "temperatures must be a finite number > 0, got 0"),
        ({"iterations": (0, 5)}, ValueError, "iterations must be an integer >= 1, got 0"),
        ({"entropy": -1.0}, ValueError, "entropy must be a finite number >= 0, got -1"),
        ({"noise": math.nan}, ValueError, "noise must be a finite number >= 0, got nan"),
    ],
)
def test_what_the_constructor_accepts(options, error, fault):
    with pytest.raises(error, match=fault):
        SinkhornPermutation(**{"gate": Softmax(FEATURES, 4), "steps": 3, **options})


@pytest.mark.parametrize("state", [None, torch.tensor([1]), torch.tensor([1.0, 0.0]), torch.tensor([-1, 0])])
def test_an_extra_state_that_is_none(state):
    gate = wrapped(GATES["softmax"])
    with pytest.raises(ValueError, match="the extra state must be two integers from 0 on"):
        gate.set_extra_state(state)
