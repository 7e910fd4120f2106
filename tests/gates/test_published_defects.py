"""Defects of the published gates that must not be ours, one test for each (those of its search: tests/training)."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import moe_search as ms
from moe_search.bench.peers.recursive_comet import RecursiveCOMET
from moe_search.gates.official import leaves_by_recursion

FEATURES = 5


class Counting(nn.Module):
    """An expert that counts the samples it was run on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(FEATURES, 2)
        self.samples = 0

    def forward(self, inputs):
        self.samples += len(inputs)
        return self.linear(inputs)


def samples(size=64, seed=0):
    return torch.randn(size, FEATURES, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("kind", [ms.COMET, ms.DSelectK])
def test_a_permutation_for_each_of_two_and_more_selectors(kind, k):
    torch.manual_seed(k)
    gate = kind(FEATURES, 4, k)
    inputs = samples()
    weights = gate(inputs).weights
    rows = [np.random.default_rng(t).permutation(4) for t in range(k)]
    gate.expert_map.assign_permutation(np.concatenate([t * 4 + row for t, row in enumerate(rows)]))
    mixed = sum(weights[:, t] @ torch.eye(4)[torch.from_numpy(row)] for t, row in enumerate(rows))
    assert torch.allclose(gate.expert_map(weights), mixed, atol=1e-6)
    assert np.array_equal(gate.expert_map.permutation().reshape(k, 4) % 4, np.stack(rows))
    # And a search takes all of them into account at once.
    model = nn.Sequential(ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, 3), gate), nn.Linear(3, 1))
    lowering = ms.lower(model, model[0], inputs, model(inputs).detach(), nn.MSELoss())
    assert lowering.problem.size == 4 * k
    assert lowering.problem.value(lowering.initial) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [ms.COMET, ms.DSelectK])
def test_no_entropy_loss_in_eval_mode(kind):
    moe = ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, 3), kind(FEATURES, 4, 2, entropy=1.0))
    moe(samples())
    assert moe.regularization().item() > 0.01
    moe.eval()
    moe(samples())
    assert moe.regularization().item() == 0


def test_converted_leaves_are_put_from_recursive_into_heap_order():
    # The published gate collects its leaves by recursion: expert 0 is not at the first leaf of the heap.
    assert leaves_by_recursion(6) == [7, 8, 9, 10, 5, 6]
    torch.manual_seed(0)
    twin = RecursiveCOMET(FEATURES, 6, 2)
    gate = ms.load_official_comet(twin.state_dict())
    assert gate.expert_map.experts.tolist() == [[4, 5, 0, 1, 2, 3]] * 2
    inputs, outputs = samples(), torch.randn(64, 6, 3)

    def mixture():
        return torch.einsum("bn,bnd->bd", gate.expert_map(gate(inputs).weights), outputs)

    assert torch.allclose(mixture(), twin(list(outputs.unbind(1)), inputs), atol=1e-5)
    gate.expert_map.assign([list(range(6))] * 2)
    assert not torch.allclose(mixture(), twin(list(outputs.unbind(1)), inputs), atol=1e-2)


def test_the_published_versions_differ_and_ours_says_which_it_is():
    # All have the same weights, and bias 0 in the splits.
    torch.manual_seed(0)
    gates = {name: ms.COMET(FEATURES, 16, 2, convention=name) for name in ("paper", "torch", "tensorflow")}
    leaves, splits = torch.randn(2, 16, FEATURES) * 5, torch.randn(2, 15, FEATURES) * 0.15
    for gate in gates.values():
        with torch.no_grad():
            gate.nodes.weight.copy_(torch.cat([splits, leaves], 1).flatten(0, 1))
            for bias in (gate.nodes.bias, gate.leaf_bias):
                if bias is not None:
                    bias.zero_()
        assert f"convention={gate.convention}" in repr(gate)
    inputs = samples(2000)
    weights = {name: gate(inputs).weights for name, gate in gates.items()}
    differences = [(weights[a] - weights[b]).abs().max().item() for a, b in itertools.combinations(weights, 2)]
    assert min(differences) > 1e-3
    # torch's cut gives up leaves that are reached.
    reached = gates["torch"](inputs).probabilities > 0
    assert bool(((weights["torch"] == 0) & reached).any())
    assert bool((weights["paper"][reached] > 0).float().mean() > 0.99)
    assert ms.COMET(FEATURES, 16, 2).convention == "paper"


def test_experts_are_skipped_from_the_start():
    torch.manual_seed(0)
    runs = {}
    for convention in ("paper", "torch", "tensorflow"):
        experts = [Counting() for _ in range(16)]
        gate = ms.COMET(FEATURES, 16, 2, convention=convention)
        ms.MixtureOfExperts(experts, gate)(samples(256))
        runs[convention] = sum(expert.samples for expert in experts) / 256
    # From the published start, every sample uses all experts.
    assert runs["torch"] == runs["tensorflow"] == 16
    assert runs["paper"] < 12


def test_what_is_not_chosen_is_not_computed():
    torch.manual_seed(0)
    gate = ms.COMET(FEATURES, 16, 2)
    with torch.no_grad():
        gate.nodes.weight *= 1e4  # all splits are hard
    experts = [Counting() for _ in range(16)]
    moe = ms.MixtureOfExperts(experts, gate)
    for training in (True, False):
        for expert in experts:
            expert.samples = 0
        moe.train(training)(samples(256))
        assert sum(expert.samples for expert in experts) <= 2 * 256
