import dataclasses
import math
import sys

import pytest
import torch

from moe_search.bench.speed import dispatch_speed
from moe_search.bench.speed.dispatch_speed import BAR, CLOSE, PEERS, Case, cases, measure_case, peer_layer

SMALL = Case(samples=16, width=8, hidden=16, num_experts=4, k=2, routing="uniform", backward=True)


@pytest.mark.parametrize("backward", [False, True])
def test_a_row_has_times_of_all_that_can_run(backward):
    pytest.importorskip("transformers")
    pytest.importorskip("mixture_of_experts")
    row = measure_case(dataclasses.replace(SMALL, backward=backward), seconds=0.01)
    times = {name: row[f"{name}_ms"] for name in ("dense", "sorted", "grouped")}
    assert min(times.values()) > 0
    assert times[row["best"]] <= CLOSE * min(times.values())
    assert row["chosen"] == "dense"
    assert 0 < row["standard_error"] < math.inf
    assert row["met"] == (row["ratio"] <= BAR)
    assert row["direction"] == ("forward+backward" if backward else "forward")
    assert all(row[f"{peer}_ratio"] == pytest.approx(row[f"{peer}_ms"] / row["auto_ms"]) for peer in PEERS)
    assert row["left_out"] == ""


def test_what_is_left_out_is_said():
    pytest.importorskip("transformers")
    pytest.importorskip("mixture_of_experts")
    row = measure_case(dataclasses.replace(SMALL, k=4, num_experts=8), seconds=0.01)
    assert math.isnan(row["lucidrains_ratio"])
    assert row["left_out"] == "lucidrains: routes a token to at most two experts"


def test_dense_is_left_out_where_it_would_take_minutes():
    large = dataclasses.replace(SMALL, samples=4096, width=256, hidden=512, num_experts=64)
    layer = dispatch_speed.our_layer(large, large.router())
    assert dispatch_speed.refuses(large, layer, "dense") == "32 times the multiplications of the others"
    assert dispatch_speed.refuses(SMALL, layer, "dense") is None


def test_grouped_is_left_out_where_shapes_do_not_align():
    odd = dataclasses.replace(SMALL, width=6)
    layer = dispatch_speed.our_layer(odd, odd.router())
    refused = dispatch_speed.refuses(odd, layer, "grouped")
    assert refused is not None
    assert "needs rows of a multiple of 16 bytes, got in_features=6" in refused
    assert dispatch_speed.refuses(odd, layer, "sorted") is None


@pytest.mark.parametrize("peer", PEERS)
def test_a_missing_peer_names_its_pip_command(monkeypatch, peer):
    for name in ("transformers", "transformers.models.mixtral.modeling_mixtral", "mixture_of_experts"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'is not installed; .*: pip install "moe-search\[peers\]"'):
        peer_layer(SMALL, SMALL.router(), peer)


@pytest.mark.parametrize("peer", ["mixtral", "mixtral_grouped"])
def test_mixtral_computes_the_formula(peer):
    pytest.importorskip("transformers")
    router, inputs = SMALL.router(), SMALL.inputs()
    layer = peer_layer(SMALL, router, peer)
    block = layer.layer
    logits = inputs @ router.T
    largest, experts = logits.topk(SMALL.k, dim=1)
    expected = torch.zeros_like(inputs)
    for b, x in enumerate(inputs):
        for e, weight in zip(experts[b].tolist(), largest[b].softmax(0), strict=True):
            gate, up = (block.experts.gate_up_proj[e] @ x).chunk(2)
            expected[b] += weight * (block.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
    assert torch.allclose(layer(inputs), expected, atol=1e-4)


def test_routing_is_even_or_skewed():
    counts = {}
    for routing in ("uniform", "zipf"):
        case = dataclasses.replace(SMALL, samples=4000, width=64, num_experts=16, k=1, routing=routing)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            top = (case.inputs() @ case.router().T).argmax(1)
        counts[routing] = torch.bincount(top, minlength=16) / 4000
    assert counts["uniform"].max() < 2 / 16
    assert counts["zipf"].max() > 3 / 16
    assert counts["zipf"][0] == counts["zipf"].max()


def test_the_ratio_is_of_rounds_that_did_not_choose_the_best(monkeypatch):
    # Two that take the same time, and a fast one that is fast in no round that counts.
    milliseconds = {"auto": [3.0, 3.0], "dense": [1.0, 2.0], "sorted": [2.0, 1.0], "grouped": [9.0, 9.0]}
    turns = []

    def take_turns(steps, seconds, device, least_rounds):
        turns.append(list(steps))
        return {name: milliseconds.get(name, [5.0, 5.0]) * least_rounds for name in steps}

    monkeypatch.setattr(dispatch_speed, "_take_turns", take_turns)
    monkeypatch.setattr(dispatch_speed, "PEERS", ())
    row = measure_case(SMALL, seconds=0.01)
    assert turns == [["auto", "dense", "sorted", "grouped"], ["auto", "dense", "sorted"]]
    assert (row["best"], row["ratio"], row["standard_error"], row["met"]) == ("dense", 1.5, 0.0, False)


def test_cases_are_those_of_the_bar_and_full_routing():
    found = list(cases())
    assert len(found) == len({(str(case), case.backward) for case in found})
    sparse = [case for case in found if case.k < case.num_experts]
    assert len(sparse) == 108
    assert {case.num_experts for case in sparse} == {8, 16, 64}
    assert {case.k for case in sparse} == {1, 2, 4}
    full = [case for case in found if case.k == case.num_experts]
    assert {case.num_experts for case in full} == {8, 16, 64}
    weights = full[0].gate(full[0].router())(full[0].inputs()).weights
    assert weights.count_nonzero() == weights.numel()
