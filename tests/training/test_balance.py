import copy
import functools
import math
import re

import naive_balance as naive
import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

import moe_search as ms
from moe_search.gates.comet import COMET
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import SlotWeights
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.training.balance import (
    LossFreeBalancing,
    importance_loss,
    load_balancing_loss,
    router_z_loss,
    smooth_load_loss,
)

FEATURES = 5


def routed(gate, size, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in gate.double().parameters():
            torch.nn.init.normal_(parameter)
        gate.expert_map.scramble(torch.Generator().manual_seed(seed))
        routing = gate(torch.randn(size, FEATURES, dtype=torch.float64))
    experts = gate.expert_map.experts.tolist()
    weights = [naive_gates.expert_weights(row, experts, gate.num_experts) for row in routing.weights.tolist()]
    return routing, weights, experts


sizes = given(
    n=st.integers(1, 4),
    capacity=st.integers(1, 2),
    k=st.integers(1, 4),
    size=st.integers(1, 6),
    seed=st.integers(0, 999),
)


@settings(deadline=None, max_examples=30)
@sizes
def test_losses_are_their_formulas(n, capacity, k, size, seed):
    m = n * capacity
    for gate in (TopK(FEATURES, n, min(k, m), m), COMET(FEATURES, n, min(k, m), m, shared_map=seed % 2 == 0)):
        routing, weights, experts = routed(gate, size, seed)
        expected = naive.squared_variation(naive.importance(weights))
        assert importance_loss(routing, gate.expert_map).item() == pytest.approx(expected, abs=1e-12)
        load = naive.load(weights)
        probabilities = [0.0] * n
        for sample in routing.logits.tolist():
            softmaxes = [naive_gates.softmax(row) for row in sample]
            for e, p in enumerate(naive_gates.expert_weights(softmaxes, experts, n)):
                probabilities[e] += p / len(sample) / size
        expected = n * sum(f / sum(load) * p for f, p in zip(load, probabilities, strict=True))
        assert load_balancing_loss(routing, gate.expert_map).item() == pytest.approx(expected)
        rows = [row for sample in routing.logits.tolist() for row in sample]
        expected = sum(math.log(sum(math.exp(a) for a in row)) ** 2 for row in rows) / len(rows)
        assert router_z_loss(routing).item() == pytest.approx(expected)


@settings(deadline=None, max_examples=30)
@sizes
def test_smooth_load_loss_is_its_formula(n, capacity, k, size, seed):
    m = n * capacity
    k = min(k, m)
    gate = TopK(FEATURES, n, k, m, noise=True)
    routing, _, experts = routed(gate, size, seed)
    if k == m:
        assert smooth_load_loss(routing, gate.expert_map, k).item() == 0
        return
    load = [0.0] * n
    for parts in zip(
        *(t[:, 0].tolist() for t in (routing.logits, routing.noisy_logits, routing.noise_scale)), strict=True
    ):
        again = naive.chosen_again(*parts, k)
        for e, p in enumerate(naive_gates.expert_weights([again], experts, n)):
            load[e] += p
    assert smooth_load_loss(routing, gate.expert_map, k).item() == pytest.approx(
        naive.squared_variation(load), abs=1e-9
    )


def hand(weights, logits=None, **noise):
    as_tensor = {name: torch.tensor(values).double().unsqueeze(1) for name, values in noise.items()}
    logits = None if logits is None else torch.tensor(logits).double().unsqueeze(1)
    return SlotWeights(torch.tensor(weights).double().unsqueeze(1), logits, None, **as_tensor)


def test_importance_by_hand():
    # Importances 1.75 and 0.25: mean 1, variance 0.5625.
    routing = hand([[1.0, 0.0], [0.75, 0.25]])
    assert importance_loss(routing, ExpertMap(2)).item() == pytest.approx(0.5625)
    assert importance_loss(hand([[1.0, 0.0], [0.0, 1.0]]), ExpertMap(2)).item() == 0
    # Four slots, two an expert: importances 1 and 1.
    assert importance_loss(hand([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]), ExpertMap(2, 4)).item() == 0


def test_load_balancing_by_hand():
    # All samples go to expert 0, whose probabilities are 3/4 and 1/2: 2 (1 * 5/8 + 0 * 3/8).
    routing = hand([[1.0, 0.0], [1.0, 0.0]], [[math.log(3), 0.0], [0.0, 0.0]])
    assert load_balancing_loss(routing, ExpertMap(2)).item() == pytest.approx(1.25)
    even = hand([[1.0, 0.0], [0.0, 1.0]], [[0.3, 0.3], [7.0, 7.0]])
    assert load_balancing_loss(even, ExpertMap(2)).item() == pytest.approx(1.0)


def test_router_z_by_hand():
    # log sums 0 and log 4.
    routing = hand([[1.0, 0.0]] * 2, [[-math.log(2)] * 2, [math.log(2)] * 2])
    assert router_z_loss(routing).item() == pytest.approx(math.log(4) ** 2 / 2)


def test_load_by_hand():
    # Slot 0 stays with Phi((1 - 0) / 1), slot 1 comes in with Phi((0 - 2) / 1).
    routing = hand([[1.0, 0.0]], [[1.0, 0.0]], noisy_logits=[[2.0, 0.0]], noise_scale=[[1.0, 1.0]])
    load = [0.8413447460685429, 0.022750131948179195]
    expected = naive.squared_variation(load)
    assert smooth_load_loss(routing, ExpertMap(2), 1).item() == pytest.approx(expected)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    expert_map = ExpertMap(2, 4)
    logits, noise = torch.randn(2, 3, 1, 4, dtype=torch.float64).unbind(0)

    def losses(logits, scale):
        noisy = logits + noise * scale
        weights = noisy.softmax(2)
        routing = SlotWeights(weights, logits, None, noisy, scale)
        return (
            importance_loss(routing, expert_map),
            smooth_load_loss(routing, expert_map, 2),
            load_balancing_loss(routing, expert_map),
            router_z_loss(routing),
        )

    scale = torch.full_like(logits, 0.7)
    assert torch.autograd.gradcheck(losses, (logits.requires_grad_(), scale.requires_grad_()))


@pytest.mark.parametrize("loss", ["importance", "load", "switch"])
def test_minimizing_a_penalty_evens_out_the_load(loss):
    torch.manual_seed(0)
    gate = TopK(FEATURES, 4, 1, noise=True)
    with torch.no_grad():
        gate.linear.bias += torch.tensor([3.0, 0.0, 0.0, 0.0])
    inputs = torch.randn(256, FEATURES)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)

    def imbalance():
        return naive.squared_variation((gate(inputs).weights > 0).sum((0, 1)).tolist())

    before = imbalance()
    for _ in range(150):
        routing = gate(inputs)
        penalty = {
            # With k = 1 every weight is 1: importance has a gradient for k >= 2 or dense weights only.
            "importance": lambda r: importance_loss(SlotWeights(r.logits.softmax(2), None), gate.expert_map),
            "load": lambda r: smooth_load_loss(r, gate.expert_map, 1),
            "switch": lambda r: load_balancing_loss(r, gate.expert_map),
        }[loss](routing)
        penalty.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert imbalance() < 0.2 * before


def test_they_are_added_to_the_loss_of_a_layer():
    moe = ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, 3), ms.TopK(FEATURES, 4, k=2, noise=True))
    loss = moe(torch.randn(9, FEATURES)).square().mean() + moe.regularization()
    routing, expert_map = moe.routing, moe.gate.expert_map
    loss = loss + 0.1 * ms.importance_loss(routing, expert_map) + 0.1 * ms.smooth_load_loss(routing, expert_map, k=2)
    loss = loss + 0.01 * ms.load_balancing_loss(routing, expert_map) + 0.001 * ms.router_z_loss(routing)
    loss.backward()
    assert all(bool((parameter.grad != 0).any()) for parameter in moe.parameters())


def test_gates_without_logits_or_noise():
    gate = HashRouting(2, in_features=FEATURES)
    routing = gate(torch.randn(4, FEATURES))
    for penalty in (lambda: router_z_loss(routing), lambda: load_balancing_loss(routing, gate.expert_map)):
        with pytest.raises(ValueError, match=r"slot_weights must have logits, as those of .* do, got None"):
            penalty()
    plain = TopK(FEATURES, 4, 2)
    with pytest.raises(ValueError, match=r"slot_weights must have noisy logits, .* got None"):
        smooth_load_loss(plain(torch.randn(4, FEATURES)), plain.expert_map, 2)
    noisy = TopK(FEATURES, 4, 2, noise=True)
    for k in (0, 5):
        with pytest.raises(ValueError, match=rf"k must be in 1 \.\. 4, the number of slots, got {k}"):
            smooth_load_loss(noisy(torch.randn(4, FEATURES)), noisy.expert_map, k)


def make(seed=0, n=3, m=6, k=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = ms.TopK(5, n, k, m).double()
        gate.expert_map.scramble(torch.Generator().manual_seed(seed))
        return ms.MixtureOfExperts(ms.StackedExperts(n, 5, 2).double(), gate)


def batches(seed, count, size=12):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    expert_limit=st.sampled_from([1.0, 1.1, 1.5]),
    slot_limit=st.sampled_from([None, 0.5, 0.8]),
    memory=st.sampled_from([0.0, 0.5, 0.95]),
)
def test_biases_are_those_of_the_formula(seed, expert_limit, slot_limit, memory):
    moe = make(seed)
    limits = {"expert_limit": expert_limit, "slot_limit": slot_limit}
    balancing = LossFreeBalancing(moe, rate=0.05, memory=memory, **limits)
    loads = None
    for inputs in batches(seed, 3):
        moe(inputs)
        gate = moe.gate
        expected, loads = naive.lowered_biases(
            gate.linear.weight.tolist(), gate.linear.bias.tolist(), gate.expert_map.experts[0].tolist(),
            inputs.tolist(), gate.k, 3, loads, 0.05, memory, **limits,
        )  # fmt: skip
        balancing.step()
        assert gate.linear.bias.tolist() == pytest.approx(expected)
        assert balancing.slot_loads.tolist() == pytest.approx(loads)
        gate.expert_map.scramble(torch.Generator().manual_seed(seed + 1))  # a search may come in between


def test_biases_by_hand():
    moe = ms.MixtureOfExperts(ms.StackedExperts(2, 1, 1), ms.TopK(1, 2, 1, 4))
    with torch.no_grad():
        moe.gate.linear.weight.zero_()
        moe.gate.linear.bias.copy_(torch.tensor([0.0, 3.2, 2.0, 1.0]))
    moe.gate.expert_map.assign_permutation([0, 1, 2, 3])  # slots 0 and 1 under expert 0
    balancing = LossFreeBalancing(moe, rate=0.5, slot_limit=1.0, memory=0.5)
    seen = []
    for _ in range(5):
        moe(torch.ones(4, 1))
        balancing.step()
        seen.append([round(bias, 5) for bias in moe.gate.linear.bias.tolist()])
    # Slot 1 has all samples twice, then slot 2: the averages are (2, 0), (2, 0), (1, 1), (0.5, 1.5), and (1.25, 0.75).
    assert seen == [
        [-0.5, 2.2, 2.0, 1.0],
        [-1.0, 1.2, 2.0, 1.0],
        [-1.0, 1.2, 2.0, 1.0],
        [-1.0, 1.2, 1.0, 0.5],
        [-1.5, 0.2, 1.0, 0.5],
    ]


def test_biases_of_the_choice_alone():
    gate = ms.TopK(1, 2, 1, scores="sigmoid", choice_bias=True)
    moe = ms.MixtureOfExperts(ms.StackedExperts(2, 1, 1), gate)
    with torch.no_grad():
        gate.linear.weight.zero_()
        gate.linear.bias.copy_(torch.tensor([0.0, 1.0]))
    balancing = LossFreeBalancing(moe, rate=0.5, memory=0.0)
    seen = []
    for _ in range(2):
        moe(torch.ones(4, 1))
        balancing.step()
        seen.append(moe.routing.weights[0, 0].tolist())
    assert gate.choice_bias.tolist() == [-0.5, -0.5]
    assert gate.linear.bias.tolist() == [0.0, 1.0]
    assert seen == [[0.0, pytest.approx(torch.tensor(1.0).sigmoid().item())], [0.5, 0.0]]


def test_crowded_samples_spread():
    moe = make(3, n=4, m=16, k=1)
    with torch.no_grad():
        moe.gate.linear.bias[moe.gate.expert_map.experts[0] == 0] += 5.0
    inputs = torch.cat(batches(0, 50))
    balancing = LossFreeBalancing(moe, memory=0.5)
    for _ in range(400):
        moe(inputs)
        balancing.step()
    loads = moe.gate.expert_map((moe.gate(inputs).weights > 0).double()).sum(0)
    assert loads.max() / loads.mean() < 1.2


def test_a_run_that_loads_its_state_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(moe, balancing, inputs):
        for batch in inputs:
            moe(batch)
            balancing.step()
        return moe.gate.linear.bias.tolist()

    moe = make()
    first = copy.deepcopy(moe)
    whole = run(first, LossFreeBalancing(first), batches(1, 6))
    second = copy.deepcopy(moe)
    balancing = LossFreeBalancing(second)
    assert balancing.state_dict() == {"num_experts": 3, "slot_loads": None}
    run(second, balancing, batches(1, 6)[:3])
    ms.save_state(balancing.state_dict(), tmp_path / "state.safetensors")
    again = LossFreeBalancing(second)
    again.load_state_dict(ms.load_state(tmp_path / "state.safetensors"))
    assert run(second, again, batches(1, 6)[3:]) == whole
    with pytest.raises(ValueError, match=re.escape("slot_loads must have shape (3,), got (6,)")):
        LossFreeBalancing(make(m=3)).load_state_dict(balancing.state_dict())
    with pytest.raises(ValueError, match="num_experts must be 2, got 3"):
        LossFreeBalancing(make(n=2)).load_state_dict(balancing.state_dict())
    with pytest.raises(ValueError, match="state must have the keys num_experts, slot_loads, got none"):
        again.load_state_dict({})
    with pytest.raises(TypeError, match="state must be a dict, as it was saved, got list"):
        again.load_state_dict([])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rate": -0.1}, ValueError, "rate must be a finite number >= 0, got -0.1"),
        ({"rate": "x"}, TypeError, "rate must be"),
        ({"expert_limit": 0.9}, ValueError, "expert_limit must be at least 1, the mean load, got 0.9"),
        ({"slot_limit": 0.0}, ValueError, "slot_limit must be"),
        ({"slot_limit": 0.49}, ValueError, "slot_limit must be at least 0.5, the mean load of a slot, got 0.49"),
        ({"memory": 1.0}, ValueError, "memory must be less than 1, got 1.0"),
        ({"process_group": 3}, TypeError, "process_group must be"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        LossFreeBalancing(make(), **options)


def test_other_layers_and_a_step_without_a_forward_are_refused():
    experts = ms.StackedExperts(4, 5, 2)
    with pytest.raises(TypeError, match="moe must be a MixtureOfExperts with a TopK gate, got a gate Softmax"):
        LossFreeBalancing(ms.MixtureOfExperts(experts, ms.Softmax(5, 4)))
    with pytest.raises(TypeError, match="moe must be a MixtureOfExperts with a TopK gate, got StackedExperts"):
        LossFreeBalancing(experts)
    moe = make()
    balancing = LossFreeBalancing(moe)
    with pytest.raises(ValueError, match="moe must have run in training mode before a step, got no routing"):
        balancing.step()
    moe(batches(0, 1)[0])
    balancing.step()
    moe.eval()(batches(0, 1)[0])
    with pytest.raises(ValueError, match="moe must have run in training mode before another step, got no routing"):
        balancing.step()
    moe.gate = ms.SinkhornPermutation(moe.gate, steps=1)
    with pytest.raises(TypeError, match="moe must be a MixtureOfExperts with a TopK gate, got a gate SinkhornPerm"):
        balancing.step()


def test_biases_of_half_precision_are_refused():
    moe = make()
    balancing = LossFreeBalancing(moe)
    moe.bfloat16()
    moe(batches(0, 1)[0].bfloat16())
    message = "the biases of the gate must be of float32 or float64, also under autocast, got torch.bfloat16"
    with pytest.raises(TypeError, match=message):
        balancing.step()
    with pytest.raises(TypeError, match=message):
        LossFreeBalancing(moe)


def test_a_batch_that_is_not_a_number_is_left_out():
    moe = make()
    balancing = LossFreeBalancing(moe)
    moe(batches(0, 1)[0])
    balancing.step()
    loads, biases = balancing.slot_loads, moe.gate.linear.bias.tolist()
    moe(torch.full((4, 5), torch.nan, dtype=torch.float64))
    balancing.step()
    assert torch.equal(balancing.slot_loads, loads)
    assert moe.gate.linear.bias.tolist() == biases


@pytest.mark.parametrize("rest", [[0, 3, 4], []])
def test_padding_counts_in_no_penalty_and_no_load(rest):
    torch.manual_seed(0)
    gate = TopK(FEATURES, 4, 2, noise=True).double()
    moe = ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, 2).double(), gate)
    inputs, mask = torch.randn(2, 3, FEATURES, dtype=torch.float64), torch.zeros(6, dtype=torch.bool)
    mask[rest] = True
    moe(inputs.masked_fill(~mask.view(2, 3, 1), torch.nan), mask=mask.view(2, 3))
    routing = moe.routing
    alone = SlotWeights(
        *(getattr(routing, name)[mask] for name in ("weights", "logits")),
        noisy_logits=routing.noisy_logits[mask],
        noise_scale=routing.noise_scale[mask],
    )
    for loss in (importance_loss, load_balancing_loss, functools.partial(smooth_load_loss, k=2)):
        found = loss(routing, gate.expert_map).item()
        assert found == (pytest.approx(loss(alone, gate.expert_map).item()) if rest else 0)
    assert router_z_loss(routing).item() == (pytest.approx(router_z_loss(alone).item()) if rest else 0)
    balancing = LossFreeBalancing(moe)
    balancing.step()
    if rest:
        pairs = (alone.weights > 0).sum((0, 1)).double()
        assert torch.allclose(balancing.slot_loads, 4 * pairs / pairs.sum())
    else:
        assert balancing.slot_loads is None
