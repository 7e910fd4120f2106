import dataclasses

import pytest

transformers = pytest.importorskip("transformers")

from moe_search.bench.speed import token_layer_speed  # noqa: E402


def test_a_row_for_every_layer_and_direction_with_equal_outputs_and_gradients(monkeypatch):
    small = token_layer_speed.Case(sequences=2, length=9, width=8, hidden=12, num_experts=4)
    cases = [small, dataclasses.replace(small, shared=True), dataclasses.replace(small, skewed=True)]
    monkeypatch.setattr(token_layer_speed, "CASES", cases)
    # It raises if ours and the peer disagree.
    table = token_layer_speed.measure(None, seconds=0.0)
    assert table["block"].tolist() == ["Mixtral"] * 2 + ["Qwen2-MoE"] * 2 + ["Mixtral"] * 2
    assert table["task"].tolist() == ["forward", "training step"] * 3
    assert bool((table[["ours", "peer", "ratio"]] > 0).all().all())
