import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_models import EXPERTS, FAMILIES, GROUPS, tiny_model, tokens
from transformers import AutoModelForCausalLM

from moe_search.huggingface.calibration import checked_batches, record_rows, sequence_losses
from moe_search.huggingface.mixture_layers import moe_layers
from moe_search.huggingface.pruning import CRITERIA, expert_scores, inner_products, prune_experts
from moe_search.huggingface.routing_rule import routing_rule
from moe_search.huggingface.selection import kept_only
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.heuristic.subset_search import SubsetSearch

# The one masks scores by their distance from the highest, the other adds a bias to a softmax.
UNKNOWN = {"phimoe", "ernie4_5_moe"}
MODELS = {**{name: (name, {}) for name in FAMILIES}, **{f"{name} groups": (name, GROUPS[name]) for name in GROUPS}}


def recorded(model, batches, rows=64):
    return record_rows(model, checked_batches("batches", batches), moe_layers(model), rows, 0)


@pytest.mark.parametrize("name", MODELS)
def test_the_error_of_a_subset_is_that_of_the_layer_cut_down(name):
    family, changes = MODELS[name]
    model = tiny_model(family, **changes)
    layers, (rows, _) = moe_layers(model), recorded(model, [tokens(0), tokens(1)])
    for layer, met in zip(layers, rows, strict=True):
        rule = routing_rule(layer, met, keep=4)
        assert (rule is None) == (family in UNKNOWN)
        if rule is None:
            continue
        gram, products = inner_products(layer, met)
        energies = met.outputs.double().square().sum(1).numpy()
        problem = rule.problem(gram, products, energies, 4, layer.top_k)
        assert problem.num_groups == layer.num_groups
        assert problem.value(problem.best_by(np.arange(EXPERTS))) > 0
        for seed in range(3):
            kept = problem.random_solution(np.random.default_rng(seed))
            with kept_only([layer], [kept]), torch.no_grad():
                _, weights, index = layer.block.get_submodule("gate" if hasattr(layer.block, "gate") else "router")(
                    met.hidden
                )[:3]
                error = (layer.experts(met.hidden, index, weights) - met.outputs).double().square().sum()
            assert problem.value(kept) == pytest.approx(float(error), rel=1e-3)


def test_rows_of_a_layer_have_its_outputs_and_the_gradient_of_the_summed_loss():
    model, ids = tiny_model("olmoe"), tokens()
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, :4] = 0
    labels[1, 6:] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    rows, share = recorded(model, [batch], rows=1000)
    losses = sequence_losses(model, [batch])
    with torch.no_grad():
        told = model(input_ids=ids, attention_mask=mask)
    assert losses.mean == pytest.approx(
        float(torch.nn.functional.cross_entropy(*shifted(told.logits, labels, mask))), rel=1e-5
    )
    assert losses.targets.tolist() == [7, 5, 11]
    assert share == pytest.approx(1 / losses.targets.sum())
    assert all(len(met.hidden) == mask.sum() for met in rows)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    layer, met = moe_layers(model)[1], rows[1]
    direction = torch.randn(met.outputs.shape, generator=torch.Generator().manual_seed(0))
    changed = []
    for step in (1e-2, -1e-2):
        full = torch.zeros(ids.numel(), met.outputs.shape[1])
        full[mask.flatten() > 0] = step * direction
        hook = layer.experts.register_forward_hook(lambda _, __, outputs, change=full: outputs + change)
        changed.append(sequence_losses(model, [batch]).sums.sum())
        hook.remove()
    slope = float((met.gradients * direction).sum())
    assert (changed[0] - changed[1]) / 2e-2 == pytest.approx(slope, rel=1e-2)


def shifted(logits, labels, mask):
    # What follows padding is foretold from it, which is no forecast.
    wanted = labels[:, 1:].masked_fill(mask[:, 1:] * mask[:, :-1] == 0, -100)
    return logits[:, :-1].flatten(0, 1), wanted.flatten()


def test_the_standard_error_is_that_of_sequences():
    model, other = tiny_model("olmoe"), tiny_model("olmoe", seed=1)
    batches = checked_batches("batches", [tokens(seed, sequences=20) for seed in range(5)])
    first, second = sequence_losses(model, batches), sequence_losses(other, batches)
    mean, error = first.increase(second)
    assert mean == pytest.approx(second.mean - first.mean)
    rng, drawn = np.random.default_rng(0), []
    for _ in range(2000):
        picked = rng.integers(0, 100, 100)
        drawn.append((second.sums - first.sums)[picked].sum() / first.targets[picked].sum())
    assert error == pytest.approx(np.std(drawn), rel=0.1)


def test_scores_by_hand():
    weights = np.array([[0.5, 0.5, 0.0], [0.9, 0.0, 0.1]])
    norms = np.array([[2.0, 1.0, 5.0], [1.0, 1.0, 3.0]])
    scores = expert_scores(weights, norms)
    assert scores["frequency"].tolist() == [2, 1, 1]
    assert scores["gate sum"] == pytest.approx([1.4, 0.5, 0.1])
    assert scores["EAN"] == pytest.approx([3.0, 1.0, 3.0])
    assert scores["REAP"] == pytest.approx([0.95, 0.5, 0.3])
    assert scores["REAP sum"] == pytest.approx([1.9, 0.5, 0.3])


def test_a_plan_is_what_its_checkpoint_loses(tmp_path):
    model = tiny_model("olmoe", output_router_logits=True)
    batches, held_out = [tokens(seed) for seed in range(4)], [tokens(9, sequences=8)]
    plan = prune_experts(model, batches, 0.5, held_out=held_out)
    assert {each.criterion for each in plan.candidates} == set(CRITERIA)
    assert [each.increase for each in plan.candidates] == sorted(each.increase for each in plan.candidates)
    assert (plan.num_experts, [len(each) for each in plan.kept]) == (EXPERTS, [4, 4])
    before = sequence_losses(model, checked_batches("held_out", held_out))
    assert plan.intact == before.mean
    assert plan == prune_experts(model, batches, 4, held_out=held_out)
    only = prune_experts(model, batches, 4, held_out=held_out, criteria=("REAP", "gate sum"))
    found = {each.criterion: (each.kept, each.forecast, each.increase) for each in plan.candidates}
    assert {each.criterion: (each.kept, each.forecast, each.increase) for each in only.candidates} == {
        name: found[name] for name in ("REAP", "gate sum")
    }
    plan.apply(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager")
    after = sequence_losses(loaded, checked_batches("held_out", held_out))
    assert after.mean == pytest.approx(plan.verified, rel=1e-6)
    assert before.increase(after)[1] == pytest.approx(plan.standard_error, rel=1e-4)
    best = plan.candidates[0]
    for each in plan.candidates:
        # The same experts are as good, and experts that are much worse are not.
        assert each.as_good or each.kept != best.kept
        assert not each.as_good or each.increase - best.increase < 2 * (each.standard_error + best.standard_error)
    assert best.as_good
    console = Console(width=80, file=io.StringIO())
    console.print(plan.table())
    shown = console.file.getvalue()
    assert "4 of 8 experts in 2 layers" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert all(name in shown for name in CRITERIA)


def test_one_mapping_may_come_again_auto_may_be_in_a_list_and_gradients_be_off():
    model, batch = tiny_model("mixtral"), {"input_ids": tokens()}
    with torch.inference_mode():
        plan = prune_experts(model, [batch] * 6, 4, criteria=["auto", "REAP"])
    assert {each.criterion for each in plan.candidates} == set(CRITERIA)


def test_error_is_the_least_that_its_search_finds():
    model = tiny_model("mixtral")
    batches = [tokens(seed) for seed in range(3)]
    plan = prune_experts(model, batches, 3, criteria="error", rows=10_000)
    rows, _ = recorded(model, batches[:2], rows=10_000)
    for layer, met, kept in zip(moe_layers(model), rows, plan.kept, strict=True):
        gram, products = inner_products(layer, met)
        energies = met.outputs.double().square().sum(1).numpy()
        problem = routing_rule(layer, met, 3).problem(gram, products, energies, 3, 2)
        assert SubsetSearch().solve(problem, MaxRuntime(math.inf)).solution.tolist() == list(kept)


def test_padding_changes_nothing():
    model, ids = tiny_model("qwen3_moe"), [tokens(seed, length=10) for seed in range(3)]
    padded = []
    for each in ids:
        blank = torch.zeros(len(each), 3, dtype=torch.int64)
        mask = torch.cat([torch.ones_like(each), blank], 1)
        padded.append({"input_ids": torch.cat([each, blank], 1), "attention_mask": mask})
    plain, other = (prune_experts(model, each, 4, rows=10_000) for each in (ids, padded))
    assert [(each.criterion, each.kept) for each in plain.candidates] == [
        (each.criterion, each.kept) for each in other.candidates
    ]
    for first, second in zip(plain.candidates, other.candidates, strict=True):
        assert first.forecast == pytest.approx(second.forecast, rel=1e-3)
        assert (first.increase, first.standard_error) == pytest.approx(
            (second.increase, second.standard_error), rel=1e-3
        )


@pytest.mark.parametrize("name", ["deepseek_v2 groups", "deepseek_v3 groups", "phimoe"])
def test_groups_and_routers_of_no_known_rule(name):
    family, changes = MODELS[name]
    model = tiny_model(family, **changes)
    batches = [tokens(seed) for seed in range(2)]
    plan = prune_experts(model, batches, 4)
    layers = moe_layers(model)
    for layer, kept in zip(layers, plan.kept, strict=True):
        counts = np.bincount(np.array(kept) * layer.num_groups // EXPERTS)
        assert set(counts) == {4 // layer.num_groups}
    assert plan.unknown == (tuple(layer.name for layer in layers) if family in UNKNOWN else ())
    assert ("error" in {each.criterion for each in plan.candidates}) == (family not in UNKNOWN)
    if family in UNKNOWN:
        with pytest.raises(ValueError, match=r"criteria must hold a score, as the routers of model\.layers\.0"):
            prune_experts(model, batches, 4, criteria="error")
    plan.apply(model)
    assert [layer.num_experts for layer in moe_layers(model)] == [4, 4]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"keep": 8}, ValueError, "keep must be less than the 8 experts of a layer, got 8"),
        ({"keep": 1}, ValueError, "keep must be at least the 2 experts that a row takes, got 1"),
        ({"keep": 1.5}, ValueError, "keep must be a part between 0 and 1, or a number of experts, got 1.5"),
        ({"criteria": "best"}, ValueError, "criteria must be one of auto, error, frequency, gate sum, EAN, REAP"),
        ({"criteria": []}, ValueError, "criteria must hold at least one, got none"),
        ({"batches": []}, ValueError, "batches must hold at least one batch, got none"),
        ({"batches": [tokens()]}, ValueError, "batches must be at least two where none are held out, got one"),
        ({"batches": [tokens()[0]]}, TypeError, r"batches must hold tensors of token ids, \[sequences, tokens\]"),
        ({"held_out": ["text"]}, TypeError, "held_out must hold .* got str"),
        ({"rows": 0}, ValueError, "rows must be an integer >= 1, got 0"),
        ({"model": torch.nn.Linear(2, 2)}, ValueError, "model must have mixture layers of transformers 5"),
    ],
)
def test_what_is_refused(changes, error, message):
    arguments = {"batches": [tokens(0), tokens(1)], "keep": 4, **changes}
    model = arguments.pop("model", None) or tiny_model("mixtral")
    with pytest.raises(error, match=message):
        prune_experts(model, **arguments)
