import math

import naive_balance as naive
import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

import moe_search as ms
from moe_search.gates.comet import COMET
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.slot_weights import SlotWeights
from moe_search.gates.top_k import TopK
from moe_search.training.balance import importance_loss, load_balancing_loss, router_z_loss, smooth_load_loss

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
