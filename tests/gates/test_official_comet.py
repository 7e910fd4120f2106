"""The converter against the published formulas, written out by hand, and against the recursive twin."""

import io

import naive_gates
import numpy as np
import pytest
import torch

import moe_search as ms
from moe_search.bench.peers.recursive_comet import RecursiveCOMET
from moe_search.gates.official import leaves_by_recursion, load_official_comet

LEFT, RIGHT = True, False

# Expert by expert, in the published order: its leaf, and on the way to it the split nodes and the turns taken there.
PATHS = {
    4: [
        (3, [(0, LEFT), (1, LEFT)]),
        (4, [(0, LEFT), (1, RIGHT)]),
        (5, [(0, RIGHT), (2, LEFT)]),
        (6, [(0, RIGHT), (2, RIGHT)]),
    ],
    5: [
        (7, [(0, LEFT), (1, LEFT), (3, LEFT)]),
        (8, [(0, LEFT), (1, LEFT), (3, RIGHT)]),
        (4, [(0, LEFT), (1, RIGHT)]),
        (5, [(0, RIGHT), (2, LEFT)]),
        (6, [(0, RIGHT), (2, RIGHT)]),
    ],
    6: [
        (7, [(0, LEFT), (1, LEFT), (3, LEFT)]),
        (8, [(0, LEFT), (1, LEFT), (3, RIGHT)]),
        (9, [(0, LEFT), (1, RIGHT), (4, LEFT)]),
        (10, [(0, LEFT), (1, RIGHT), (4, RIGHT)]),
        (5, [(0, RIGHT), (2, LEFT)]),
        (6, [(0, RIGHT), (2, RIGHT)]),
    ],
    8: [
        (7 + e, [(0, e < 4), (1 + e // 4, e % 4 < 2), (3 + e // 2, e % 2 == 0)])
        for e in range(8)
    ],
    16: [
        (15 + e, [(0, e < 8), (1 + e // 8, e % 8 < 4), (3 + e // 4, e % 4 < 2), (7 + e // 2, e % 2 == 0)])
        for e in range(16)
    ],
}  # fmt: skip
FEATURES, TREES = 3, 2


def path_name(node):
    steps = []
    while node:
        steps.insert(0, "left_child" if node % 2 else "right_child")
        node = (node - 1) // 2
    return steps


def published(n, convention, seed=0, k=TREES, scale=0.5):
    """The state dict of a published gate with random weights, and the same weights as numbers, by node and tree."""
    generator = np.random.default_rng(seed)
    state, nodes = {}, {}
    for node in range(2 * n - 1):
        is_leaf = node >= n - 1
        weight, bias = generator.normal(size=(k, FEATURES)) * scale, generator.normal(size=k) * scale
        if convention == "torch" and not is_leaf:
            bias[:] = 0
        nodes[node] = list(zip(weight.tolist(), bias.tolist(), strict=True))
        path = [*path_name(node), "output_layer" if is_leaf else "selector_layer"]
        if convention == "torch":
            state[".".join([*path, "weight"])] = torch.from_numpy(weight)
            if is_leaf:
                state[".".join([*path, "bias"])] = torch.from_numpy(bias)
        else:
            state["/".join([*path, "kernel"])] = weight.T.copy()
            state["/".join([*path, "bias"])] = bias
    return state, nodes


@pytest.mark.parametrize("convention", ["torch", "tensorflow"])
@pytest.mark.parametrize("n", PATHS)
@pytest.mark.parametrize("gamma", [1.0, 4.0])
def test_weights_of_experts_by_hand(n, convention, gamma):
    state, nodes = published(n, convention)
    gate = load_official_comet(state, gamma=gamma, entropy=0.5)
    assert (gate.num_experts, gate.k, gate.in_features, gate.convention) == (n, TREES, FEATURES, convention)
    inputs = torch.randn(40, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    routing = gate(inputs)
    weights = gate.expert_map(routing.weights)
    for x, w in zip(inputs.tolist(), weights.tolist(), strict=True):
        expected = naive_gates.published_comet(x, nodes, PATHS[n], TREES, gamma, convention)
        assert w == pytest.approx(expected, rel=1e-9, abs=1e-12)
    expected = 0.5 * naive_gates.published_comet_penalty(routing.probabilities.tolist(), convention)
    assert gate.penalty(routing).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", PATHS)
def test_experts_lie_at_the_published_leaves(n):
    state, _ = published(n, "torch")
    gate = load_official_comet(state)
    assert leaves_by_recursion(n) == [leaf for leaf, _ in PATHS[n]]
    for expert, (leaf, _) in enumerate(PATHS[n]):
        assert gate.expert_map.experts[:, leaf - (n - 1)].tolist() == [expert] * TREES


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("k", [1, 2])
def test_equals_the_recursive_twin(n, k):
    torch.manual_seed(n)
    twin = RecursiveCOMET(FEATURES, n, k).double()
    gate = load_official_comet(twin.state_dict())
    inputs, outputs = torch.randn(30, FEATURES).double(), torch.randn(30, n, 2).double()
    weights = gate.expert_map(gate(inputs).weights)
    mixture = torch.einsum("bn,bnd->bd", weights, outputs)
    assert torch.allclose(mixture, twin(list(outputs.unbind(1)), inputs), rtol=0, atol=1e-12)
    # And so are the gradients of the root.
    mixture.square().sum().backward()
    twin(list(outputs.unbind(1)), inputs).square().sum().backward()
    gradient = gate.nodes.weight.grad.view(k, 2 * n - 1, FEATURES)[:, 0]
    assert torch.allclose(gradient, twin.selector_layer.weight.grad, rtol=0, atol=1e-10)


def test_a_permutation_of_every_tree():
    state, _ = published(5, "tensorflow")
    generator = np.random.default_rng(3)
    orders = [generator.permutation(5) for _ in range(TREES)]
    soft = np.stack([np.eye(5)[order] for order in orders]) * 0.9 + 0.01
    gate = load_official_comet(state, permutation=soft)
    x = [0.3, -0.8, 0.1]
    weights = gate(torch.tensor([x], dtype=torch.float64)).weights
    alone = load_official_comet(state)
    expected = np.zeros(5)
    for t in range(TREES):
        of_tree = torch.zeros_like(weights)
        of_tree[:, t] = weights[:, t]
        columns = alone.expert_map(of_tree)[0].detach().numpy()
        # The published code sums the weights of a tree times its permutation matrix over trees.
        expected += columns @ np.eye(5)[orders[t]]
    assert gate.expert_map(weights)[0].tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_one_permutation_for_all_trees():
    state, _ = published(4, "torch")
    gate = load_official_comet(state, permutation=torch.eye(4)[[2, 0, 3, 1]].unsqueeze(0))
    assert gate.expert_map.experts.tolist() == [[2, 0, 3, 1]] * TREES


@pytest.mark.parametrize("suffix", ["", ":0", "/.ATTRIBUTES/VARIABLE_VALUE"])
@pytest.mark.parametrize("prefix", ["", "gate", "moe/gates/0", "moe.gates.0."])
def test_names_as_files_have_them(prefix, suffix):
    state, _ = published(6, "tensorflow")
    start = f"{prefix.removesuffix('.')}/" if prefix else ""
    named = {f"{start}{name}{suffix}": value for name, value in state.items()}
    if prefix:
        named["another/layer/kernel:0"] = np.zeros(3)
    inputs = torch.randn(5, FEATURES, dtype=torch.float64)
    assert torch.equal(
        load_official_comet(named, prefix=prefix)(inputs).weights, load_official_comet(state)(inputs).weights
    )


def test_the_running_mean_of_the_balancing_loss_is_ignored():
    state, _ = published(4, "torch")
    load_official_comet(state | {"alpha_ave_past": torch.tensor(0.0), "left_child.alpha_ave_past": torch.tensor(0.0)})


def test_dtype_and_round_trip():
    state, _ = published(4, "torch")
    gate = load_official_comet({name: tensor.float() for name, tensor in state.items()})
    assert gate.nodes.weight.dtype == torch.float32
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    file.seek(0)
    other = ms.COMET(FEATURES, 4, TREES, convention="torch")
    other.load_state_dict(torch.load(file, weights_only=True))
    inputs = torch.randn(3, FEATURES)
    assert torch.equal(other(inputs).weights, gate(inputs).weights)


def test_the_given_weights_are_not_shared():
    state, _ = published(4, "torch")
    gate = load_official_comet(state)
    state["selector_layer.weight"].zero_()
    assert bool((gate.nodes.weight.view(TREES, 7, FEATURES)[:, 0] != 0).all())


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "error", "fault"),
    [
        (lambda s: without(s, "left_child.selector_layer.weight"), ValueError, r"got \[0, 2\] and \[3, 4, 5, 6\]"),
        (lambda s: without(s, "left_child.left_child.output_layer.weight"), ValueError, "of node 3 must have"),
        (lambda s: s | {"left_child.selector_layer.bias": torch.zeros(2)}, ValueError, "of node 1 must have"),
        (lambda s: s | {"selector_layer.weight": torch.zeros(2)}, ValueError, r"must have a weight of two axes"),
        (lambda s: s | {"selector_layer.weight": torch.zeros(2, 9)}, ValueError, r"of node \d must have .*'weight'"),
        (lambda s: s | {"extra.weight": torch.zeros(2)}, ValueError, "must have names such as .* got 'extra.weight'"),
        (lambda s: s | {"selector_layer.kernel": torch.zeros(2)}, ValueError, "one version, .* got tensorflow, torch"),
        (lambda s: {name: t.long() for name, t in s.items()}, TypeError, "floating-point numbers, got dtype torch.int"),
        (lambda s: {name: t.long().numpy() for name, t in s.items()}, TypeError, "floating-point numbers, got int64"),
        (lambda _: {}, ValueError, "must have names that begin with '', got none of 0"),
        (list, TypeError, "state_dict must map names to tensors, got list"),
        (lambda _: {"selector_weights": torch.zeros(1, 2)}, ValueError, "must have names such as"),
    ],
)  # fmt: skip
def test_wrong_states(change, error, fault):
    with pytest.raises(error, match=fault):
        load_official_comet(change(published(4, "torch")[0]))


@pytest.mark.parametrize(
    ("permutation", "fault"),
    [
        (np.eye(4), r"permutation must have shape \(2, 4, 4\) or \(1, 4, 4\), got shape \(4, 4\)"),
        (np.ones((2, 4, 4)), "permutation must have the largest entries of its rows in different columns"),
    ],
)
def test_wrong_permutations(permutation, fault):
    with pytest.raises(ValueError, match=fault):
        load_official_comet(published(4, "torch")[0], permutation=permutation)
