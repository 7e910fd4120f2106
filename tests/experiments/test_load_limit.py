from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moe_search.experiments import load_limit
from moe_search.experiments.registry import find_experiment
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.load_limited import LoadLimited


@pytest.fixture(scope="module")
def settings():
    return find_experiment("load-limit").smoke


def test_a_crowded_gate_uses_its_first_experts(settings):
    model = load_limit.crowded_model(replace(settings, warming_steps=100), 0)
    inputs = load_limit.load(settings.images, 0).train.inputs
    loads = load_limit.loads_of_experts(model, inputs)
    assert loads.sum() == 2 * len(inputs)
    assert loads[: settings.crowded].sum() > 0.9 * loads.sum()
    weights = model.moe.gate(inputs).weights[:, 0]
    experts = model.moe.gate.expert_map.experts[0]
    counted = [sum(int((weights[:, s] > 0).sum()) for s in range(64) if experts[s] == e) for e in range(8)]
    assert loads.tolist() == counted


def test_a_penalty_of_weight_0_is_none(settings):
    runs = [
        load_limit.run_trial(replace(settings, penalty_weight=weight), 0, "Top-k", search)["validation_losses"]
        for weight, search in ((0.0, "penalty"), (1.0, "penalty"), (1.0, "none"))
    ]
    assert runs[0] == runs[2]
    assert runs[0] != runs[1]


def test_the_map_of_a_search_is_taken_where_the_present_one_breaks_the_limit(settings):
    model = load_limit.crowded_model(replace(settings, warming_steps=0), 0)
    expert_map = model.moe.gate.expert_map
    take = load_limit.keep_limit(model)
    slots = torch.zeros(64)
    slots[:8] = 1.0  # all load on the slots of expert 0
    limited = LoadLimited(LinearAssignment([[0.0] * 8] * 64), slots.numpy(), 1.25)
    result = SimpleNamespace(permutation=limited.start)
    before = expert_map.permutation()
    assert not limited.feasible(before)
    take(SimpleNamespace(outcome="committed"), SimpleNamespace(problem=limited), result)
    assert expert_map.permutation().tolist() == before.tolist()  # the search has seen to it itself
    take(SimpleNamespace(outcome="no improvement"), SimpleNamespace(problem=limited), result)
    assert limited.feasible(expert_map.permutation())
    kept = expert_map.permutation()
    take(SimpleNamespace(outcome="refused"), SimpleNamespace(problem=limited), SimpleNamespace(permutation=before))
    assert expert_map.permutation().tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("gate", "search", "message"),
    [
        ("Hash", "none", "gate must be Top-k, got 'Hash'"),
        ("Top-k", "magic", "search must be one of none, penalty, search, enforced, got 'magic'"),
    ],
)
def test_unknown_names(settings, gate, search, message):
    with pytest.raises(ValueError, match=message):
        load_limit.run_trial(settings, 0, gate, search)
