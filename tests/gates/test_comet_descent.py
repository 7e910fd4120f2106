import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_search.gates import comet_descent
from moe_search.gates.comet import COMET

FEATURES = 5


def saturated(m, k, scale, seed=0, dtype=torch.float64, **options):
    """A gate with splits as after training: the larger the scale, the fewer lie between 0 and 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = COMET(FEATURES, m, k, **options).to(dtype).eval()
    with torch.no_grad():
        gate.nodes.weight.view(k, -1, FEATURES)[:, : m - 1] *= scale
    return gate


def batch(size, seed=0, dtype=torch.float64):
    return torch.randn(size, FEATURES, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_sizes(monkeypatch):
    """Descend whatever the sizes, as it is only done where it pays."""
    monkeypatch.setattr(comet_descent, "LEAST_LEAVES", 2)
    monkeypatch.setattr(comet_descent, "LEAST_SAMPLES", 1)
    monkeypatch.setattr(comet_descent, "MOST_REACHED", 2.0)


@pytest.mark.usefixtures("small_sizes")
@settings(deadline=None, max_examples=80)
@given(
    st.integers(2, 40), st.integers(1, 2), st.integers(1, 9), st.sampled_from([0.5, 4, 60, 1e6]), st.integers(0, 10**6)
)
def test_equals_the_whole_trees(m, k, size, scale, seed):
    gate, inputs = saturated(m, k, scale, seed), batch(size, seed)
    whole = gate(inputs)
    with torch.no_grad():
        descended = gate(inputs)
    assert whole.logits is not None
    assert descended.logits is None
    assert torch.allclose(descended.weights, whole.weights, rtol=0, atol=1e-9)
    assert torch.allclose(descended.probabilities, whole.probabilities, rtol=0, atol=1e-9)
    assert torch.equal(descended.weights > 0, whole.weights > 0)


@pytest.mark.usefixtures("small_sizes")
def test_one_leaf_is_no_tree():
    gate = COMET(FEATURES, 1, 1).eval()
    with torch.no_grad():
        assert gate(batch(3, dtype=torch.float32)).weights.tolist() == [[[1.0]]] * 3


@pytest.mark.usefixtures("small_sizes")
def test_leaves_are_only_computed_for_samples_that_reach_their_subtree(monkeypatch):
    gate, inputs = saturated(16, 2, 1e6), batch(50)
    with torch.enable_grad():
        p = gate(inputs).probabilities
    counted = []
    affine = comet_descent._affine

    def counting(features, nodes, rows):
        counted.append(len(features) * len(rows))
        return affine(features, nodes, rows)

    monkeypatch.setattr(comet_descent, "_affine", counting)
    with torch.no_grad():
        gate(inputs)
    # Cut at depth 2: 3 splits above, for all; 4 subtrees of 7 nodes with 4 leaves each, contiguous in the last level.
    reached = int((p.unflatten(2, (4, 4)).amax(3) > 0).sum())
    assert reached == 50 * 2
    assert sum(counted) == 50 * 2 * 3 + reached * 7


def test_sizes_at_which_it_pays():
    large = saturated(comet_descent.LEAST_LEAVES, 1, 60, dtype=torch.float32)
    inputs = batch(comet_descent.LEAST_SAMPLES, dtype=torch.float32)
    with torch.no_grad():
        assert large(inputs).logits is None
        assert large(inputs[1:]).logits is not None
        assert saturated(comet_descent.LEAST_LEAVES - 1, 1, 60, dtype=torch.float32)(inputs).logits is not None


def test_not_in_training_mode_nor_with_gradients_nor_where_most_is_reached():
    gate = saturated(comet_descent.LEAST_LEAVES, 1, 60, dtype=torch.float32)
    inputs = batch(comet_descent.LEAST_SAMPLES, dtype=torch.float32)
    assert gate(inputs).logits is not None
    with torch.no_grad():
        assert gate.train()(inputs).logits is not None
        assert saturated(comet_descent.LEAST_LEAVES, 1, 0.01, dtype=torch.float32)(inputs).logits is not None


def test_autocast_has_the_precision_of_whole_trees():
    gate = saturated(comet_descent.LEAST_LEAVES, 2, 60, dtype=torch.float32)
    inputs = batch(comet_descent.LEAST_SAMPLES, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        weights = gate(inputs).weights
        sums = weights.float().sum((1, 2))
    assert torch.allclose(sums, torch.ones_like(sums), atol=0.02)


@pytest.mark.parametrize(("num_leaves", "num_subtrees"), [(2, 2), (6, 2), (11, 4), (16, 4), (25, 4), (37, 8)])
def test_subtrees_hold_every_node_below_the_cut_once(num_leaves, num_subtrees):
    found = []
    for root in range(num_subtrees):
        nodes, num_splits = comet_descent._subtree(num_leaves, num_subtrees, root, torch.device("cpu"))
        nodes = nodes.tolist()
        assert [node < num_leaves - 1 for node in nodes] == [i < num_splits for i in range(len(nodes))]
        for i in range(num_splits):
            assert nodes[2 * i + 1 : 2 * i + 3] == [2 * nodes[i] + 1, 2 * nodes[i] + 2]
        found += nodes
    assert sorted(found) == list(range(num_subtrees - 1, 2 * num_leaves - 1))
