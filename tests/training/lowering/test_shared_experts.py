"""What all samples pass is a constant of the problem, whichever way it is lowered, and no map changes it."""

import copy

import numpy as np
import pytest
import torch
from specialists import FEATURES, lowered, make, random_permutation, searching, step
from torch import nn

import moe_search as ms

KINDS = {
    ("hash", "L1"): "LinearAssignment",
    ("sigmoid-1", "squared"): "LinearAssignment",
    ("top-2", "L1"): "PairwiseAssignment",
    ("olmoe-2", "L1"): "PairwiseAssignment",
    ("top-2", "squared"): "MixtureAssignment",
    ("olmoe-2", "squared"): "MixtureAssignment",
    ("comet", "squared"): "MixtureAssignment",
}


def make_shared(gate, loss, n=4, m=4):
    """A setting whose layer has a shared expert as large as the mixture, weighed by a sigmoid."""
    setting = make(gate, "linear", n, m)
    torch.manual_seed(1)
    setting.moe.shared = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Tanh(), nn.Dropout(0.5)).double()
    setting.moe.shared_gate = nn.Linear(FEATURES, 1).double()
    setting.model.eval()
    with torch.no_grad():
        setting.targets = setting.model(setting.inputs, ids=setting.ids)
    setting.model.train()
    setting.loss = nn.L1Loss() if loss == "L1" else setting.loss
    return setting


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 6)])
@pytest.mark.parametrize(("gate", "loss"), KINDS)
def test_values_are_the_true_loss_under_any_map(gate, loss, n, m):
    setting = make_shared(gate, loss, n, m)
    setting.scramble()
    lowering = lowered(setting)
    assert type(lowering.problem).__name__ == KINDS[gate, loss]
    assert not lowering.linearized
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)
    rng = np.random.default_rng(1)
    for _ in range(4):
        permutation = random_permutation(lowering.problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


@pytest.mark.parametrize("k", [1, 2])
def test_padding_may_hold_anything_and_passes_nothing(k):
    torch.manual_seed(0)
    shared = nn.Linear(FEATURES, 3)
    moe = ms.MixtureOfExperts(ms.StackedExperts(4, FEATURES, 3), ms.TopK(FEATURES, 4, k), shared=shared).double()
    inputs, mask = torch.randn(40, FEATURES, dtype=torch.float64), torch.arange(40) % 3 > 0
    inputs[~mask] = torch.nan
    targets = torch.randn(40, 3, dtype=torch.float64)
    record = ms.PermutationSearch(moe, moe, loss=nn.MSELoss(), stop=ms.MaxIterations(50)).search_batches(
        [(inputs, targets, None, None, {"mask": mask})], verify=[(inputs, targets, None, None, {"mask": mask})]
    )
    fresh = copy.deepcopy(moe)
    fresh.gate.expert_map.reset_parameters()
    loss = nn.functional.mse_loss(fresh(inputs, mask=mask), targets).item()
    assert record.value_before == pytest.approx(loss, rel=1e-9)
    x, y, rows = (tensor.unflatten(0, (8, 5)) for tensor in (inputs, targets, mask))
    of_tokens = ms.lower_tokens(fresh, [fresh], x, y, nn.MSELoss(), mask=rows)
    assert np.isfinite(of_tokens[0].first_order.cost).all()


@pytest.mark.parametrize(("gate", "loss"), [("sigmoid-1", "squared"), ("top-2", "L1"), ("olmoe-2", "squared")])
def test_a_search_finds_the_map_back(gate, loss):
    setting = make_shared(gate, loss)
    best = setting.expert_map.experts.clone()
    setting.scramble(2)
    assert not torch.equal(setting.expert_map.experts, best)
    search = searching(setting, period=2)
    step(search, setting, 0, 48)
    assert step(search, setting, 48).outcome == "committed"
    assert torch.equal(setting.expert_map.experts, best)
