import io
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import naive_balance as naive
import naive_gates
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from rich.console import Console
from specialists import make

from moe_search.gates.comet import COMET
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.gate import SlotWeights
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.routing_statistics import RoutingStatistics
from moe_search.training.search.permutation_search import PermutationSearch

mpl.use("agg")

FEATURES = 5
GATES = {
    "top-1": lambda n, m: TopK(FEATURES, n, 1, m),
    "top-2": lambda n, m: TopK(FEATURES, n, min(2, m), m),
    "softmax": lambda n, m: Softmax(FEATURES, n, m),
    "hash": lambda n, m: HashRouting(n, m, in_features=FEATURES),
    "comet-2": lambda n, m: COMET(FEATURES, n, min(2, m), m, gamma=0.1),
    "comet-2 shared": lambda n, m: COMET(FEATURES, n, min(2, m), m, gamma=0.1, shared_map=True),
}


def hand(weights):
    return SlotWeights(torch.tensor(weights).unsqueeze(1), None)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(GATES)),
    n=st.integers(1, 5),
    capacity=st.integers(1, 2),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_statistics_of_batches_are_the_naive_ones_of_all_samples(name, n, capacity, sizes, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = GATES[name](n, n * capacity).double()
        batches = [torch.randn(size, FEATURES, dtype=torch.float64) for size in sizes]
    gate.expert_map.scramble(torch.Generator().manual_seed(seed))
    statistics, weights = RoutingStatistics(), []
    for batch in batches:
        routing = gate(batch)
        statistics.update(routing, gate.expert_map)
        experts = gate.expert_map.experts.tolist()
        weights += [naive_gates.expert_weights(row, experts, n) for row in routing.weights.tolist()]
    summary = statistics.summary()
    load, importance = naive.load(weights), naive.importance(weights)
    counts = [sum(w > 0 for w in sample) for sample in weights]
    assert summary.num_samples == sum(sizes)
    assert summary.load.tolist() == load
    assert summary.importance.tolist() == pytest.approx(importance)
    assert summary.co_activation.tolist() == naive.co_activation(weights)
    assert summary.experts_per_sample.tolist() == [counts.count(j) for j in range(n + 1)]
    assert summary.mean_experts == pytest.approx(sum(counts) / len(counts))
    shares = [[w / sum(sample) for w in sample] for sample in weights]
    expected = sum(naive.entropy(sample) for sample in shares) / len(weights)
    assert summary.sample_entropy == pytest.approx(expected, abs=1e-12)
    assert summary.mean_entropy == pytest.approx(naive.entropy([i / sum(importance) for i in importance]), abs=1e-12)
    assert summary.dead_experts.tolist() == [e for e in range(n) if load[e] == 0]


def test_by_hand():
    # Expert 0 holds slots 0 and 3, expert 1 slots 1 and 2.
    expert_map = ExpertMap(2, 4)
    expert_map.assign([[0, 1, 1, 0]])
    statistics = RoutingStatistics()
    statistics.update(hand([[0.5, 0.0, 0.0, 0.5], [0.25, 0.75, 0.0, 0.0]]), expert_map)
    summary = statistics.summary()
    assert summary.load.tolist() == [2, 1]
    assert summary.importance.tolist() == [1.25, 0.75]
    assert summary.co_activation.tolist() == [[2, 1], [1, 1]]
    assert summary.experts_per_sample.tolist() == [0, 1, 1]
    assert summary.mean_experts == 1.5
    assert summary.sample_entropy == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / 2)
    assert summary.mean_entropy == pytest.approx(-(0.625 * math.log(0.625) + 0.375 * math.log(0.375)))
    assert summary.dead_experts.tolist() == []
    assert (summary.load.dtype, summary.importance.dtype) == (torch.int64, torch.float64)


def test_watching_a_layer_adds_what_goes_through_its_gate_in_both_modes():
    moe = MixtureOfExperts(StackedExperts(4, FEATURES, 3), TopK(FEATURES, 4, 2))
    inputs, statistics, expected = torch.randn(8, FEATURES), RoutingStatistics(), RoutingStatistics()
    moe(inputs)
    with statistics.watch(moe) as watching:
        assert watching is statistics
        moe(inputs)
        moe.eval()(inputs[:3])
    moe(inputs)
    for batch in (inputs, inputs[:3]):
        expected.update(moe.gate(batch), moe.gate.expert_map)
    assert statistics.summary().num_samples == 11
    assert torch.equal(statistics.summary().co_activation, expected.summary().co_activation)
    with pytest.raises(ZeroDivisionError), statistics.watch(moe):
        raise ZeroDivisionError
    assert not moe.gate._forward_hooks
    statistics.reset()
    with pytest.raises(ValueError, match="there must be at least one batch before a summary, got none"):
        statistics.summary()


@pytest.mark.parametrize("shared_map", [False, True])
def test_watching_a_layer_of_several_gates_adds_up_its_tasks(shared_map):
    gates = [GATES[name](4, 8) for name in ("top-1", "softmax", "top-2")]
    multi = MultiGateMixtureOfExperts(StackedExperts(4, FEATURES, 3), gates, shared_map=shared_map)
    multi.tasks[0].gate.expert_map.scramble(torch.Generator().manual_seed(0))
    inputs, together, of_task = torch.randn(8, FEATURES), RoutingStatistics(window=1), RoutingStatistics()
    with together.watch(multi), of_task.watch(multi.tasks[2]):
        multi(inputs)
        multi.eval()(inputs[:3])
    for statistics, tasks in ((together, gates), (of_task, gates[2:])):
        expected = RoutingStatistics()
        for gate in tasks:
            expected.update(gate(inputs), gate.expert_map)
            expected.update(gate(inputs[:3]), gate.expert_map)
        assert statistics.summary().num_samples == 11 * len(tasks)
        assert torch.equal(statistics.summary().co_activation, expected.summary().co_activation)
    assert together.loads().shape == (2, 1, 4)
    assert not any(gate._forward_hooks for gate in gates)


def test_watching_a_layer_leaves_out_what_a_search_runs_through_it():
    setting = make("top-2", samples=20)
    search = PermutationSearch(setting.model, setting.moe, loss=setting.loss, period=2, stop=MaxIterations(100))
    statistics = RoutingStatistics()
    with statistics.watch(setting.moe):
        for _ in range(2):
            setting.model(setting.inputs)
            search.step(setting.inputs, setting.targets)
        setting.model(setting.inputs)
    assert len(search.history) == 1
    assert statistics.summary().num_samples == 3 * 20


def test_no_graph_and_no_later_batch_hangs_on_a_summary():
    gate, statistics = TopK(FEATURES, 4, 2), RoutingStatistics()
    statistics.update(gate(torch.randn(6, FEATURES)), gate.expert_map)
    summary = statistics.summary()
    before = summary.load.clone()
    statistics.update(gate(torch.randn(6, FEATURES)), gate.expert_map)
    assert torch.equal(summary.load, before)
    assert not summary.importance.requires_grad


def test_the_table_shows_every_expert_and_names_the_dead():
    statistics = RoutingStatistics()
    statistics.update(hand([[0.25, 0.0, 0.75]] * 1200), ExpertMap(3))
    console = Console(width=100, file=io.StringIO())
    console.print(statistics.summary().table())
    shown = " ".join(console.file.getvalue().split())
    assert "expert 0 1,200 50.0% 300.0 25.0% expert 1 0 0.0% 0.0 0.0% expert 2 1,200 50.0% 900.0 75.0%" in shown
    assert "1,200 samples, 2.00 experts a sample; dead experts: 1; entropy 0.562 nats a sample, 0.562" in shown


def test_the_repr_is_short():
    statistics = RoutingStatistics()
    statistics.update(hand([[0.25, 0.0, 0.75]] * 1200), ExpertMap(3))
    assert repr(statistics.summary()) == (
        "RoutingSummary(num_samples=1200, num_experts=3, mean_experts=2, max_load=1.5, num_dead=1, k=None)"
    )


def test_the_plot_shows_the_shares_of_every_expert():
    statistics = RoutingStatistics()
    statistics.update(hand([[0.25, 0.0, 0.75]] * 1200), ExpertMap(3))
    ax = statistics.summary().plot()
    assert ax.get_title() == "1,200 samples, 2.00 experts a sample"
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights == [[0.5, 0.0, 0.5], [0.25, 0.0, 0.75]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["even share", "load", "importance"]
    given = plt.figure().subplots()
    assert statistics.summary().plot(given) is given
    assert given.get_title() == ""
    plt.close("all")


def test_k_is_that_of_the_gate_watched():
    statistics, layers = RoutingStatistics(), {}
    for name in ("top-1", "top-2", "softmax"):
        layers[name] = MixtureOfExperts(StackedExperts(4, FEATURES, 3), GATES[name](4, 8))
        with statistics.watch(layers[name]):
            layers[name](torch.randn(5, FEATURES))
        assert statistics.summary().k == {"top-1": 1}.get(name)  # of several, none is that of all
    statistics.reset()
    with statistics.watch(layers["top-2"]):
        layers["top-2"](torch.randn(5, FEATURES))
    assert statistics.summary().k == 2
    console = Console(width=100, file=io.StringIO())
    console.print(statistics.summary().table())
    assert "experts a sample for k = 2;" in " ".join(console.file.getvalue().split())


def test_what_update_accepts():
    statistics = RoutingStatistics()
    with pytest.raises(TypeError, match="slot_weights must be SlotWeights, got Tensor"):
        statistics.update(torch.ones(1, 1, 2), ExpertMap(2))
    with pytest.raises(TypeError, match="expert_map must be an ExpertMap, got ndarray"):
        statistics.update(hand([[0.5, 0.5]]), np.zeros(2))
    with pytest.raises(ValueError, match=r"slot_weights must have shape \[B, 1, 3\], got shape \(1, 1, 2\)"):
        statistics.update(hand([[0.5, 0.5]]), ExpertMap(3))
    statistics.update(hand([[0.5, 0.5]]), ExpertMap(2))
    with pytest.raises(ValueError, match="expert_map must have 2 experts as in earlier batches, got 1"):
        statistics.update(hand([[0.5, 0.5]]), ExpertMap(1, 2))
    with pytest.raises(TypeError, match=r"moe must be a .* or MultiGateMixtureOfExperts, got TopK"):
        statistics.watch(TopK(2, 2, 1)).__enter__()
    assert statistics.summary().num_samples == 1


@pytest.mark.parametrize("name", sorted(GATES))
def test_padding_is_no_sample(name):
    moe = MixtureOfExperts(StackedExperts(3, FEATURES, 2), GATES[name](3, 6)).eval()
    tokens = torch.randn(4, 5, FEATURES, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20).view(4, 5) % 7 > 1
    statistics, alone = RoutingStatistics(), RoutingStatistics()
    with statistics.watch(moe):
        moe(tokens, mask=mask)
    with alone.watch(moe):
        moe(tokens[mask])
    found, expected = statistics.summary(), alone.summary()
    assert found.num_samples == expected.num_samples == int(mask.sum())
    for field in ("load", "co_activation", "experts_per_sample"):
        assert torch.equal(getattr(found, field), getattr(expected, field))
    assert found.sample_entropy == pytest.approx(expected.sample_entropy, abs=1e-6)
    statistics.reset()
    with statistics.watch(moe):
        moe(tokens, mask=torch.zeros_like(mask))
    with pytest.raises(ValueError, match="at least one sample before a summary, got padding only"):
        statistics.summary()
