"""Build a model with known specialists, scramble its expert map, run one search: the map comes back."""

import pytest
import torch
from specialists import FEATURES, Model, Setting, make
from torch import nn

from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.problems.linear import LinearAssignment
from moe_search.solvers.engine.stop import MaxIterations, MaxRuntime
from moe_search.solvers.exact.enumeration import Enumeration
from moe_search.solvers.exact.hungarian import Hungarian
from moe_search.training.search.permutation_search import PermutationSearch

SEARCHED = 120


def search_once(setting):
    """One search on the first samples, verified on the others; returns its record and the exact optimum."""
    seen = []
    search = PermutationSearch(
        setting.model,
        setting.moe,
        loss=setting.loss,
        period=2,
        stop=MaxIterations(20_000),
        on_search=lambda *found: seen.append(found),
    )
    for part in ((0, SEARCHED), (SEARCHED, None)):
        inputs, targets, ids = setting.batch(*part)
        record = search.step(inputs, targets, ids=ids)
    [(same_record, lowering, result)] = seen
    assert same_record is record
    exact = Hungarian() if isinstance(lowering.problem, LinearAssignment) else Enumeration()
    optimum = exact.solve(lowering.problem, MaxRuntime(60.0))
    assert optimum.status == "optimal"
    assert record.value_found == pytest.approx(optimum.value, rel=1e-9)
    assert record.value_found == lowering.problem.value(result.permutation)
    return record, lowering


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 6)])
@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("gate", ["hash", "top-1", "top-2", "comet", "comet-shared"])
def test_the_map_comes_back(gate, head, n, m):
    if gate == "comet" and m == 6:
        n, m = 2, 4  # two blocks: (6!)^2 maps are too many to try
    setting = make(gate, head, n, m, samples=2 * SEARCHED, seed=2)
    loss = setting.true_loss()
    setting.scramble(seed=3)
    assert setting.true_loss() > 30 * loss
    record, lowering = search_once(setting)
    assert record.outcome == "committed"
    assert record.linearized is (head == "deep" and gate not in ("hash", "top-1"))
    assert record.problem == ("LinearAssignment" if gate in ("hash", "top-1") else "MixtureAssignment")
    assert record.value_before == pytest.approx(lowering.batch_loss, rel=1e-9)
    assert record.verified_gain > record.standard_error > 0
    assert setting.true_loss() == pytest.approx(loss, rel=1e-9)


@pytest.mark.parametrize(("gate", "n", "m"), [("top-2", 4, 4), ("comet", 2, 4)])
def test_a_linearized_search_may_need_a_second_one(gate, n, m):
    """The best map of a linearization around a scrambled mixture is not always the best map of the model."""
    searches = []
    for seed in range(10):
        setting = make(gate, "deep", n, m, samples=2 * SEARCHED, seed=seed)
        loss = setting.true_loss()
        setting.scramble(seed)
        count = 0
        while setting.true_loss() > loss * (1 + 1e-9):
            before = setting.true_loss()
            assert search_once(setting)[0].outcome == "committed"
            assert setting.true_loss() < before
            count += 1
        searches.append(count)
    assert max(searches) <= 2
    assert sum(count <= 1 for count in searches) >= 8


@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_the_map_comes_back_for_classes(gate, head):
    setting = make(gate, head, 4, 4, samples=2 * SEARCHED, loss="cross_entropy")
    loss = setting.true_loss()
    setting.scramble(seed=3)
    assert setting.true_loss() > loss
    assert search_once(setting)[0].outcome == "committed"
    assert setting.true_loss() == pytest.approx(loss, rel=1e-9)


def clusters(k, n, samples, generator):
    """Inputs around n centres; the target is the mean of the linear maps of the k nearest ones."""
    centres = 2.0 * nn.init.orthogonal_(torch.empty(FEATURES, FEATURES), generator=generator)[:n]
    maps = torch.randn(n, FEATURES, FEATURES, generator=generator) / FEATURES**0.5
    inputs = centres[torch.randint(n, (samples,), generator=generator)]
    inputs = inputs + 0.7 * torch.randn(samples, FEATURES, generator=generator)
    scores = inputs @ centres.T
    top, chosen = scores.topk(k, dim=1)
    answers = torch.einsum("nij,bj->bni", maps, inputs)
    picked = answers.gather(1, chosen.unsqueeze(2).expand(-1, -1, FEATURES))
    return inputs, (torch.softmax(top, 1).unsqueeze(2) * picked).sum(1), centres


@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("k", [1, 2])
def test_the_map_of_trained_specialists_comes_back(k, head):
    n = 4
    generator = torch.Generator().manual_seed(2)
    inputs, targets, centres = clusters(k, n, 2 * SEARCHED, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        moe = MixtureOfExperts([nn.Linear(FEATURES, FEATURES) for _ in range(n)], TopK(FEATURES, n, k))
        deep = nn.Sequential(nn.Linear(FEATURES, 16), nn.Softplus(), nn.Linear(16, FEATURES))
        model = Model(moe, nn.Linear(FEATURES, FEATURES) if head == "linear" else deep)
    # The gate knows the clusters; which expert learns which of them is left to the map.
    with torch.no_grad():
        moe.gate.linear.weight.copy_(centres)
        moe.gate.linear.bias.zero_()
    setting = Setting(model, inputs, targets, None, nn.MSELoss())
    untrained = setting.true_loss()
    optimizer = torch.optim.Adam([*moe.experts.parameters(), *model.head.parameters()], lr=2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        setting.loss(model(inputs), targets).backward()
        optimizer.step()
    loss = setting.true_loss()
    assert loss < 0.2 * untrained
    setting.scramble(seed=3)
    assert setting.true_loss() > 2 * loss
    assert search_once(setting)[0].outcome == "committed"
    assert setting.true_loss() == pytest.approx(loss, rel=1e-4)
