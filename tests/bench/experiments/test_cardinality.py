from dataclasses import replace

import pytest
import torch

from moe_search.bench.experiments import cardinality
from moe_search.bench.experiments.cardinality_tasks import digits_task, tokens_task
from moe_search.bench.experiments.experiment import find_experiment

DIGITS, TOKENS = (find_experiment(f"cardinality-{name}") for name in ("digits", "tokens"))
TASKS = {"digits": (digits_task, DIGITS.smoke), "tokens": (tokens_task, TOKENS.smoke)}


@pytest.mark.parametrize("gate", ["COMET", "DSelect-k"])
@pytest.mark.parametrize("name", TASKS)
def test_variants_start_alike_and_anneal_within_their_steps(name, gate):
    make, settings = TASKS[name]
    starts, answers = [], []
    for variant in cardinality.VARIANTS:
        task = make(settings, 0)
        on_step = cardinality.put_gate(task, 0, gate, variant, 20)
        starts.append([parameter.detach().clone() for parameter in task.model.parameters()])
        answers.append(cardinality.answer(task, task.test).detach())
        for step in range(4 if on_step else 0):
            on_step(step)
        own = task.moe.gate if on_step is None else task.moe.gate.gate
        assert own.gamma == (1.0 if on_step is None else task.moe.gate.last)
        assert 0 < cardinality.routing_of(task).mean_experts <= 8
    assert all(map(torch.equal, *starts))
    assert torch.equal(*answers)


def test_a_trial_tells_how_many_experts_a_sample_has():
    settings = replace(DIGITS.smoke, steps=20)
    numbers = DIGITS.run_trial(settings, 0, "COMET", "annealed")
    assert 1 <= numbers["experts_per_sample"] <= 8
    assert 0 <= numbers["more_than_k"] <= 1 >= numbers["largest_share"] > 0
    assert 1 <= numbers["experts_in_use"] <= 8
    assert numbers["steps"] == [0, 17, 18, 19, 20]  # not before gamma is at its last
    with pytest.raises(ValueError, match="a variant must be one of defaults, annealed, got 'x'"):
        DIGITS.run_trial(settings, 0, "COMET", "x")


def test_tokens_are_those_of_the_layer_and_its_loss_is_1_for_their_mean():
    settings = TOKENS.smoke
    task = tokens_task(settings, 0)
    mean = task.train.targets.mean(0).expand_as(task.train.targets)
    assert float(task.loss(mean, task.train.targets)) == pytest.approx(1.0, abs=0.01)
    sizes = [len(split) for split in (task.train, task.validation, task.test)]
    assert sizes[0] > sizes[2] > sizes[1] > 0
