import numpy as np
import pytest
import torch
from tiny_models import EXPERTS, FAMILIES, tiny_model, tokens

from moe_search.huggingface.mixture_layers import moe_layers
from moe_search.problems.placement import Cluster, ExpertPlacement
from moe_search.training.routing_statistics import RoutingStatistics


def routed(model, ids, mask=None):
    """What the router of every layer answers about the tokens that are no padding: weights and indices [T, k]."""
    seen, hooks = [], []
    for layer in moe_layers(model):
        hooks.append(layer.router.register_forward_hook(lambda _, __, answer: seen.append(answer[1:3])))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    rows = slice(None) if mask is None else mask.flatten() > 0
    return [(weights[rows].double(), index[rows]) for weights, index in seen]


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_a_model_are_those_of_its_routers_without_padding(family):
    model, ids = tiny_model(family), tokens()
    mask = torch.ones_like(ids)
    mask[0, :5] = mask[2, 8:] = 0
    statistics = RoutingStatistics()
    with statistics.watch(model), torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    summaries = statistics.summaries()
    assert list(summaries) == [layer.name for layer in moe_layers(model)]
    for summary, (weights, index) in zip(summaries.values(), routed(model, ids, mask), strict=True):
        dense = torch.zeros(len(index), EXPERTS, dtype=torch.float64).scatter(1, index, weights)
        active = torch.zeros(len(index), EXPERTS, dtype=torch.int64).scatter(1, index, 1)
        assert summary.num_samples == int(mask.sum()) == len(index)
        assert (summary.k, summary.mean_experts) == (2, 2.0)
        assert torch.equal(summary.co_activation, active.t() @ active)
        torch.testing.assert_close(summary.importance, dense.sum(0))
    with pytest.raises(ValueError, match=r"one layer for a summary, got 2: call summaries\(\)"):
        statistics.summary()


def test_windows_of_loads_are_those_of_their_batches_and_are_placed(tmp_path):
    model = tiny_model("olmoe")
    batches = [tokens(seed) for seed in range(5)]
    statistics, expected = RoutingStatistics(window=2), []
    with statistics.watch(model), torch.no_grad():
        for ids in batches:
            model(input_ids=ids, use_cache=False)
    for ids in batches:
        expected.append([np.bincount(index.flatten(), minlength=EXPERTS) for _, index in routed(model, ids)])
    loads = statistics.loads()
    assert loads.shape == (3, 2, EXPERTS)
    for window in range(3):
        assert (loads[window] == np.sum(expected[2 * window : 2 * window + 2], axis=0)).all()
    statistics.save_loads(tmp_path / "trace.npz")
    with np.load(tmp_path / "trace.npz") as trace:
        assert (trace["load"] == loads).all()
        assert trace["layers"].tolist() == ["model.layers.0.mlp", "model.layers.1.mlp"]
        placement = ExpertPlacement(trace["load"], Cluster(num_devices=2, slots_per_device=5))
    assert (placement.load == loads.sum(0)).all()
    with pytest.raises(ValueError, match=r"path must end in \.npz, got .*trace"):
        statistics.save_loads(tmp_path / "trace")
    statistics.reset()
    with pytest.raises(ValueError, match="there must be at least one batch"):
        statistics.loads()


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_is_computed_anew_for_the_backward_pass_is_not_counted(reentrant):
    model, ids = tiny_model("mixtral").train(), tokens()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    statistics, runs = RoutingStatistics(), []
    moe_layers(model)[0].experts.register_forward_pre_hook(lambda *_: runs.append(1))
    with statistics.watch(model):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert len(runs) == 2
    assert [summary.num_samples for summary in statistics.summaries().values()] == [ids.numel()] * 2


def test_tokens_that_are_generated_are_counted_once_each():
    model, ids = tiny_model("qwen3_moe"), tokens(sequences=2, length=6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    statistics = RoutingStatistics()
    with statistics.watch(model):
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    # The last token is not fed back.
    assert [summary.num_samples for summary in statistics.summaries().values()] == [10 + 2 * 3] * 2
