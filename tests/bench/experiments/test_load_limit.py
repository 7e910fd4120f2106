import copy
from dataclasses import replace

import pytest
import torch

from moe_search.bench.experiments import load_limit
from moe_search.bench.experiments.experiment import find_experiment
from moe_search.bench.experiments.training import SearchSchedule, endless_batches, train_by_steps
from moe_search.bench.experiments.two_image_model import two_task_loss


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


def test_a_limit_that_only_few_samples_break_by_chance_is_kept(settings):
    schedule = SearchSchedule(period=4, until=12, batches=12, iterations=200)
    wide = replace(settings, load_limit=1.2, images=replace(settings.images, schedule=schedule))
    alone, searched = (load_limit.run_trial(wide, 0, "Top-k", search) for search in ("slow", "maps"))
    assert alone["raised_limits"] == 0
    assert searched["committed"] > 0
    assert searched["training_load"] < alone["training_load"]
    assert searched["dead_experts"] <= alone["dead_experts"]


def test_biases_of_rate_0_are_none(settings):
    losses = {
        (rate, search): load_limit.run_trial(replace(settings, bias_rate=rate), 0, "Top-k", search)["validation_losses"]
        for rate, search in ((0.0, "biases"), (0.5, "biases"), (0.5, "slow"), (0.0, "search"), (0.5, "maps"))
    }
    assert losses[0.0, "biases"] == losses[0.5, "slow"] != losses[0.5, "biases"]
    assert losses[0.0, "search"] == losses[0.5, "maps"]


def test_a_gate_of_rate_0_learns_nothing(settings):
    def run(rate):
        model = load_limit.crowded_model(replace(settings, warming_steps=0), 0)
        before = copy.deepcopy(model.state_dict())
        data = load_limit.load(settings.images, 0).train
        batches = endless_batches(data, 16, 0)
        schedule = settings.images.schedule
        options = {"steps": 3, "learning_rate": 0.01, "search": "none", "schedule": schedule, "seed": 0}
        train_by_steps(model, model.moe, two_task_loss, batches, lambda: 0.0, gate_rate=rate, **options)
        return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}

    learned, frozen = run(None), run(0.0)
    assert learned - frozen == {"moe.gate.linear.weight", "moe.gate.linear.bias"}
    assert frozen


def test_limits_that_no_map_keeps_are_counted(settings):
    tight = replace(settings, load_limit=1.0)  # the mean itself, which integers hardly meet
    assert load_limit.run_trial(tight, 0, "Top-k", "maps")["raised_limits"] > 0


@pytest.mark.parametrize(
    ("gate", "search", "message"),
    [
        ("Hash", "none", "gate must be one of Top-k, got 'Hash'"),
        ("Top-k", "magic", "search must be one of none, penalty, slow, biases, maps, search, got 'magic'"),
    ],
)
def test_unknown_names(settings, gate, search, message):
    with pytest.raises(ValueError, match=message):
        load_limit.run_trial(settings, 0, gate, search)
