import math

import naive_gates
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.comet import COMET
from moe_search.gates.gate import SlotWeights
from moe_search.gates.smooth_step import leaf_probabilities


def leaves_of(splits):
    """The probabilities of the leaves of one tree."""
    return leaf_probabilities(torch.tensor(splits, dtype=torch.float64)[:, None], 1.0).squeeze(1)


def make(n, m, k, seed=0, features=3, scale=1.0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = COMET(features, n, k, m, **options).double()
        with torch.no_grad():
            for parameter in gate.parameters():
                parameter.mul_(scale)
        return gate, torch.randn(4, features, dtype=torch.float64)


def constant(splits, logits, gamma=1.0, **options):
    """A gate of one tree whose nodes take no notice of the single feature."""
    gate = COMET(1, len(logits), 1, gamma=gamma, **options).double()
    with torch.no_grad():
        gate.nodes.weight.zero_()
        gate.nodes.bias.copy_(torch.tensor([*splits, *logits], dtype=torch.float64))
    return gate


ZERO = torch.zeros(1, 1, dtype=torch.float64)
VERSIONS = ("paper", "torch", "tensorflow")


def test_leaves_lie_in_heap_order_for_six():
    # S(1/4) = 27/32 and S(0) = 1/2 with gamma = 1. Splits are nodes 0 .. 4, leaves nodes 5 .. 10:
    #            0
    #       1         2
    #     3   4     5   6
    #    7 8 9 10
    quarter = 27 / 32
    p = leaves_of([0.25, 0.0, -0.25, 0.25, 0.0])
    left, right = quarter, 1 - quarter  # of the root
    assert p.tolist() == pytest.approx(
        [
            right * (1 - quarter),  # node 5: right, left at node 2, where S(-1/4) = 5/32
            right * quarter,  # node 6
            left * 0.5 * quarter,  # node 7: left, left, left
            left * 0.5 * (1 - quarter),  # node 8
            left * 0.5 * 0.5,  # node 9: left, right, left
            left * 0.5 * 0.5,  # node 10
        ],
        abs=1e-15,
    )


@pytest.mark.parametrize(
    ("path", "leaf"),
    [
        ({0: -1, 2: 1}, 5),
        ({0: -1, 2: -1}, 6),
        ({0: 1, 1: 1, 3: 1}, 7),
        ({0: 1, 1: 1, 3: -1}, 8),
        ({0: 1, 1: -1, 4: 1}, 9),
        ({0: 1, 1: -1, 4: -1}, 10),
    ],
)
def test_a_hard_path_ends_at_its_heap_node(path, leaf):
    splits = [float(path.get(node, 0)) for node in range(5)]
    expected = [float(node == leaf) for node in range(5, 11)]
    assert leaves_of(splits).tolist() == expected


def test_one_leaf_and_two():
    assert leaf_probabilities(torch.zeros(2, 0, 4), 1.0).tolist() == [[[1.0] * 4]] * 2
    assert leaves_of([0.25]).tolist() == [27 / 32, 5 / 32]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.1, 1.0, 4.0]), st.integers(0, 10**6))
def test_equals_the_recursive_formula(n, capacity, k, gamma, seed):
    m = n * capacity
    k = min(k, m)
    gate, inputs = make(n, m, k, seed, gamma=gamma, entropy=0.3)
    routing = gate(inputs)
    nodes = gate.nodes.weight.tolist(), gate.nodes.bias.tolist()
    probabilities = []
    for b, x in enumerate(inputs.tolist()):
        g, p = naive_gates.comet(x, *nodes, k, gamma)
        probabilities.append(p)
        assert torch.allclose(routing.weights[b], torch.tensor(g, dtype=torch.float64), rtol=0, atol=1e-12)
        assert torch.allclose(routing.probabilities[b], torch.tensor(p, dtype=torch.float64), rtol=0, atol=1e-12)
    assert gate.penalty(routing).item() == pytest.approx(0.3 * naive_gates.entropy(probabilities), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
def test_saturated_splits_leave_one_slot_a_tree(n, capacity, k, seed):
    m = n * capacity
    k = min(k, m)
    gate, inputs = make(n, m, k, seed, scale=1e6)
    with torch.no_grad():
        gate.nodes.weight.view(k, -1, 3)[:, m - 1 :] *= 1e-6  # the leaves stay as they were
        gate.nodes.bias.view(k, -1)[:, m - 1 :] *= 1e-6
    routing = gate(inputs)
    assert ((routing.probabilities > 0).sum(2) == 1).all()
    assert bool(((routing.weights > 0).sum(2) <= 1).all())
    assert bool(((routing.weights > 0) <= (routing.probabilities > 0)).all())


def test_unsaturated_splits_use_every_slot():
    gate, inputs = make(6, 6, 2, scale=1e-3)
    assert bool((gate(inputs).weights > 0).all())


def test_weights_compare_slots_of_all_trees():
    gate = COMET(1, 2, 2).double()
    with torch.no_grad():
        gate.nodes.weight.zero_()
        # Tree by tree: the split, then leaves 0 and 1. Both trees go left for certain.
        gate.nodes.bias.copy_(torch.tensor([1.0, math.log(3.0), 9.0, 1.0, 0.0, -5.0], dtype=torch.float64))
    assert gate(ZERO).weights.flatten().tolist() == pytest.approx([0.75, 0.0, 0.25, 0.0], abs=1e-12)


@pytest.mark.parametrize("splits", [[0.1, -0.2, 0.3, 0.05, -0.4], [0.1, 0.7, -0.9, 0.05, -0.4]])
def test_gradient_with_and_without_paths_of_probability_zero(splits):
    gate = constant(splits, [0.3, -0.4, 0.8, 0.1, -0.2, 0.6])

    def outputs(bias):
        routing = torch.func.functional_call(gate, {"nodes.bias": bias}, (ZERO,))
        return routing.weights, routing.probabilities, gate.penalty(routing)

    assert torch.autograd.gradcheck(outputs, (gate.nodes.bias.detach().clone().requires_grad_(),))


def test_gradient_of_the_inputs():
    gate, inputs = make(3, 6, 2, gamma=3.0)
    assert torch.autograd.gradcheck(lambda x: gate(x).weights, (inputs.requires_grad_(),))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([-2.0, -0.5, -0.4999999, -1e-8, 0.0, 0.3, 0.4999999, 0.5, 2.0]), min_size=11, max_size=11),
    st.lists(st.sampled_from([-300.0, -1.0, 0.0, 300.0]), min_size=12, max_size=12),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_no_number_is_nan_or_infinite_at_the_edges(splits, logits, dtype):
    gate = constant(splits, logits, entropy=1.0).to(dtype)
    routing = gate(ZERO.to(dtype))
    assert routing.weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert bool((routing.weights[routing.probabilities == 0] == 0).all())
    ((routing.weights * torch.arange(12)).sum() + gate.penalty(routing)).backward()
    assert bool(gate.nodes.bias.grad.isfinite().all())
    assert bool(gate.nodes.weight.grad.isfinite().all())


def test_saturated_splits_get_no_gradient():
    gate = constant([1.0, 0.2], [0.1, 0.2, 0.3])
    (gate(ZERO).weights ** 2).sum().backward()
    assert gate.nodes.bias.grad[0] == 0
    assert gate.nodes.bias.grad[1] != 0


def test_penalty_is_the_entropy_of_the_paths_not_of_the_weights():
    gate = constant([0.0, 1.0], [5.0, -5.0, 0.0], entropy=0.5)
    # p = (1/2, 1/2, 0): heap leaves 2, 3, 4, of which 4 is out of reach.
    routing = gate(ZERO)
    assert routing.probabilities.flatten().tolist() == [0.5, 0.5, 0.0]
    assert gate.penalty(routing).item() == pytest.approx(0.5 * math.log(2), abs=1e-15)
    assert constant([1.0, 1.0], [0.0] * 3).penalty(constant([1.0, 1.0], [0.0] * 3)(ZERO)).item() == 0


def test_penalty_needs_probabilities():
    weights = torch.ones(1, 1, 2) / 2
    with pytest.raises(ValueError, match="slot_weights must have probabilities"):
        COMET(1, 2, 1).penalty(SlotWeights(weights, weights))


def test_shared_map_is_one_row_for_all_trees():
    gate, inputs = make(3, 6, 2, shared_map=True)
    assert gate.expert_map.experts.shape == (1, 6)
    gate.expert_map.assign([[2, 0, 1, 1, 0, 2]])
    weights = gate(inputs).weights
    expected = [naive_gates.expert_weights(w.tolist(), [[2, 0, 1, 1, 0, 2]], 3) for w in weights]
    assert torch.allclose(gate.expert_map(weights), torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def split_at(p, logits, convention, entropy=1.0):
    """Two leaves, the left one of probability p, as a convention weights and penalizes them."""
    low, high = -0.5, 0.5
    while high - low > 1e-17 and (low + high) / 2 not in (low, high):
        middle = (low + high) / 2
        low, high = (middle, high) if naive_gates.smooth_step(middle, 1.0) < p else (low, middle)
    gate = COMET(1, 2, 1, entropy=entropy, convention=convention).double()
    with torch.no_grad():
        gate.nodes.weight.copy_(torch.tensor([[high], [logits[0]], [logits[1]]], dtype=torch.float64))
        for bias in (gate.nodes.bias, gate.leaf_bias):
            if bias is not None:
                bias.zero_()
    routing = gate(torch.ones(1, 1, dtype=torch.float64))
    assert routing.probabilities[0, 0, 0].item() == pytest.approx(p, rel=1e-6)
    return routing.weights[0, 0, 0].item(), gate.penalty(routing).item()


@pytest.mark.parametrize("p", [0.3, 1e-3, 1.1e-5, 0.9e-5, 1e-7])
def test_conventions_by_hand(p):
    logits, q = (8.0, 0.0), 1 - p
    top = math.exp(8.0)
    weights, penalties = {}, {}
    for convention in ("paper", "torch", "tensorflow"):
        weights[convention], penalties[convention] = split_at(p, logits, convention)
    assert weights["paper"] == pytest.approx(top * p / (top * p + q), rel=1e-6)
    assert weights["tensorflow"] == pytest.approx(top * (p + 1e-8) / (top * (p + 1e-8) + q + 1e-8), rel=1e-6)
    cut = top * (p + 1e-6) / (top * (p + 1e-6) + q + 1e-6) if p >= 1e-5 else 0.0
    assert weights["torch"] == pytest.approx(cut, rel=1e-6)
    assert penalties["paper"] == pytest.approx(-p * math.log(p) - q * math.log(q), rel=1e-6)
    expected = -p * math.log(p + 1e-6) - q * math.log(q + 1e-6)
    assert penalties["tensorflow"] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    a, b = max(p, 1e-6) + 1e-6, q + 1e-6
    assert penalties["torch"] == pytest.approx(-a * math.log(a) - b * math.log(b), rel=1e-6)


def test_the_torch_version_has_no_bias_in_the_splits():
    names = {convention: set(dict(COMET(3, 4, 2, convention=convention).named_parameters())) for convention in VERSIONS}
    assert names["paper"] == names["tensorflow"] == {"nodes.weight", "nodes.bias"}
    assert names["torch"] == {"nodes.weight", "leaf_bias"}
    gate = COMET(3, 4, 2, convention="torch")
    # At the origin every split is even, whatever the weights are.
    assert gate(torch.zeros(1, 3)).probabilities.unique().tolist() == [0.25]


@pytest.mark.parametrize("convention", ["torch", "tensorflow"])
def test_published_versions_start_small(convention):
    torch.manual_seed(0)
    gate = COMET(20, 8, 4, gamma=2.0, convention=convention)
    weight = gate.nodes.weight.view(4, 15, 20).abs()
    assert 0.018 < weight[:, :7].max().item() <= 0.02
    assert 0.045 < weight[:, 7:].max().item() <= 0.05
    if convention == "torch":
        assert bool((gate.leaf_bias == 0).all())
    else:
        bias = gate.nodes.bias.view(4, 15).abs()
        assert 0 < bias[:, :7].max().item() <= 0.02
        assert 0.02 < bias[:, 7:].max().item() <= 0.05


@pytest.mark.parametrize("convention", ["torch", "tensorflow"])
@pytest.mark.parametrize("splits", [[0.1, -0.2, 0.3, 0.05, -0.4], [0.1, 0.7, -0.9, 0.05, -0.4]])
def test_gradient_of_the_published_versions(splits, convention):
    gate = COMET(1, 6, 1, convention=convention).double()
    one = torch.ones(1, 1, dtype=torch.float64)

    def outputs(weight):
        routing = torch.func.functional_call(gate, {"nodes.weight": weight}, (one,))
        return routing.weights, routing.probabilities, gate.penalty(routing)

    values = torch.tensor([*splits, 0.3, -0.4, 0.8, 0.1, -0.2, 0.6], dtype=torch.float64).unsqueeze(1)
    assert torch.autograd.gradcheck(outputs, (values.requires_grad_(),))


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"k": 5}, ValueError, "k must be at most the number of slots, 4, got 5"),
        ({"k": 0}, ValueError, "k must be an integer >= 1, got 0"),
        ({"k": 2, "gamma": 0.0}, ValueError, "gamma must be a finite number > 0, got 0"),
        ({"k": 2, "gamma": math.nan}, ValueError, "gamma must be a finite number > 0, got nan"),
        ({"k": 2, "gamma": "wide"}, TypeError, "gamma must be a number, got 'wide'"),
        ({"k": 2, "entropy": -1e-3}, ValueError, "entropy must be a finite number >= 0, got -0.001"),
        ({"k": 2, "entropy": math.inf}, ValueError, "entropy must be a finite number >= 0, got inf"),
        (
            {"k": 2, "convention": "keras"},
            ValueError,
            "convention must be one of paper, torch, tensorflow, got 'keras'",
        ),
    ],
)
def test_wrong_arguments(arguments, error, fault):
    with pytest.raises(error, match=fault):
        COMET(3, 4, **arguments)
