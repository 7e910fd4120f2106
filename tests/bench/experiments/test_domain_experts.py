from dataclasses import replace

import pytest
import torch

from moe_search.bench.experiments.domain_experts import (
    NEAREST_MEAN,
    domain_data,
    draw_domains,
    experts_of_domains,
    in_style,
    merge,
    run_trial,
)
from moe_search.bench.experiments.experiment import find_experiment
from moe_search.bench.experiments.pretraining import branch_off, train_apart
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.bench.experiments.two_image_model import make_model
from moe_search.training.lowering.batch import Batch

SMOKE = find_experiment("domains-digits").smoke
SMALL = replace(
    SMOKE,
    model=replace(SMOKE.model, num_train=3200, num_validation=200, pretraining_epochs=5, hidden_features=16),
    steps=20,
    schedule=SearchSchedule(period=2, until=10, iterations=500),
)


def test_styles_by_hand():
    canvas = torch.tensor([[0.0, 0.25, 0.5, 1.0]])  # 0 0.25 over 0.5 1
    expected = [
        [0.0, 0.25, 0.5, 1.0],
        [0.25, 1.0, 0.0, 0.5],
        [1.0, 0.5, 0.25, 0.0],
        [0.5, 0.0, 1.0, 0.25],
    ]
    styled = in_style(canvas.repeat(8, 1), torch.arange(8), 2)
    assert styled[:4].tolist() == expected
    assert torch.equal(styled[4:], 1 - styled[:4])


def test_domains_are_equally_frequent():
    drawn = draw_domains(43, torch.Generator().manual_seed(0))
    assert sorted(drawn.bincount(minlength=8).tolist()) == [5] * 5 + [6] * 3
    assert not torch.equal(drawn, drawn.sort().values)
    assert torch.equal(drawn, draw_domains(43, torch.Generator().manual_seed(0)))


def test_experts_and_gate_see_other_canvases():
    data = domain_data(SMOKE, 0)
    first, second = data.half(0), data.half(1)
    assert torch.equal(torch.cat([first[0].inputs, second[0].inputs]), data.all.train.inputs)
    assert torch.equal(torch.cat([first[0].targets, second[0].targets]), data.all.train.targets)
    assert torch.equal(torch.cat([first[1], second[1]]), data.domains)
    assert len(first[1]) == len(second[1]) == SMOKE.model.num_train // 2


def test_an_expert_is_trained_on_its_domain_alone():
    generator = torch.Generator().manual_seed(0)
    pixels = SMOKE.model.canvas**2
    domains = torch.arange(8).repeat(16)
    data = Batch(torch.rand(128, pixels, generator=generator), torch.randint(10, (128, 2), generator=generator))
    changed = data.inputs.clone()
    changed[domains == 3] = 0.0
    sizes = replace(SMOKE.model, batch_size=32, pretraining_epochs=2)
    one, other = (make_model("Top-k", sizes, 0) for _ in range(2))
    head = one.head.weight.clone()
    train_apart(one, data, domains, sizes, 0)
    train_apart(other, Batch(changed, data.targets), domains, sizes, 0)
    for first, second in zip(one.moe.experts.parameters(), other.moe.experts.parameters(), strict=True):
        same = [torch.equal(a, b) for a, b in zip(first, second, strict=True)]
        assert same == [True] * 3 + [False] + [True] * 4
    assert torch.equal(one.head.weight, head)
    assert not torch.equal(one.moe.experts.weights[0], make_model("Top-k", sizes, 0).moe.experts.weights[0])


def test_experts_branch_off_from_one_that_saw_all_domains():
    data, _ = domain_data(SMOKE, 0).half(0)
    model, fresh = (make_model("Top-k", SMOKE.model, 0) for _ in range(2))
    branch_off(model, data, 2, SMOKE.model, 0)
    for after, before in zip(model.moe.experts.parameters(), fresh.moe.experts.parameters(), strict=True):
        assert torch.equal(after, after[:1].expand_as(after))
        assert not torch.equal(after[0], before[0])
    assert torch.equal(model.head.weight, fresh.head.weight)
    branched = experts_of_domains(replace(SMOKE, seed_epochs=2), 0)
    near, far = (
        torch.pdist(each.moe.experts.weights[0].detach().flatten(1))
        for each in (branched, experts_of_domains(SMOKE, 0))
    )
    # Branches differ, but stay nearer to each other than experts with weights of their own.
    assert near.min() > 0
    assert near.max() < far.min()


@pytest.mark.parametrize("gate", [NEAREST_MEAN, "Top-k"])
def test_only_the_order_of_the_experts_is_wrong(gate):
    merged = merge(SMALL, 0, gate)
    data = domain_data(SMALL, 0)
    # Every expert is best on its own domain, and the gate's slot for that domain is where the right map puts it.
    outputs = merged.model.classify(merged.model.moe.expert_outputs(data.all.validation.inputs))
    picked = outputs.gather(3, data.all.validation.targets[:, None, :, None].expand(-1, 8, -1, -1))
    losses = (outputs.logsumexp(3) - picked[..., 0]).mean(2)
    losses = losses.detach()
    by_domain = torch.stack([losses[data.validation_domains == d].mean(0) for d in range(8)])
    assert by_domain.argmin(1).tolist() == list(range(8))
    rows = torch.arange(len(losses))
    assert float(losses[rows, data.validation_domains].mean()) == pytest.approx(merged.known_loss, rel=1e-5)
    assert merged.known_loss < merged.intact_loss
    chosen = merged.model.moe.gate(data.all.validation.inputs).weights.sum(1).argmax(1)
    agree = (merged.right_map[chosen] == data.validation_domains).double().mean()
    assert float(agree) == pytest.approx(merged.gate_accuracy)
    assert merged.gate_accuracy > 0.5
    assert sorted(merged.right_map.tolist()) == list(range(8))
    assert merged.model.moe.gate.expert_map.experts[0].tolist() == list(range(8))
    assert torch.equal(merged.model.head.weight, torch.eye(20))
    assert experts_of_domains(SMALL, 0).moe.gate is not merged.model.moe.gate


def test_search_finds_the_right_order_before_the_first_weight_changes():
    found = run_trial(SMALL, 0, NEAREST_MEAN, "search")
    assert (found["steps_to_intact"], found["reached"], found["right_slots"]) == (2.0, 1.0, 1.0)
    losses = found["validation_losses"]
    assert losses[1] == losses[0]
    assert losses[2] == found["intact_loss"] < losses[0]
    alone = run_trial(SMALL, 0, NEAREST_MEAN, "none")
    assert alone["validation_losses"][0] == losses[0]
    assert alone["validation_losses"][1] != losses[0]
    assert alone["steps_to_intact"] > 2
