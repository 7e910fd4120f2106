from functools import partial

import numpy as np
import pytest

from moe_search.bench.peers.eplb import packed_by_element, packed_by_layer
from moe_search.bench.speed import placement_speed, rebalancing_drift
from moe_search.serving.greedy_eplb import eplb, packed

LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]


@pytest.mark.parametrize("pack", [packed, packed_by_layer, packed_by_element])
def test_the_peer_gives_what_eplb_publishes(pack):
    assert eplb(np.array(LOADS), 16, 4, 2, 8, pack).tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert eplb(np.array([[8.0, 4.0, 2.0, 2.0]]), 4, 0, 1, 4, pack).tolist() == [[0, 1, 2, 3]]


def test_a_row_for_every_case_whose_loads_there_are(monkeypatch):
    monkeypatch.delenv("MOE_SEARCH_ROUTING", raising=False)
    small = partial(placement_speed.lognormal, layers=2, sigma=1.0)
    cases = [placement_speed.Case("small", small, 32, 288, 2, 0.9, 8, 2), placement_speed.CASES[0]]
    monkeypatch.setattr(placement_speed, "CASES", cases)
    (row,) = placement_speed.measure(None, seconds=0.01).to_dict("records")
    assert row["instance"] == "small"
    assert row["EPLB"] < row["balance"] <= row["at best"] <= 1.0
    assert min(row[each] for each in ("ours", "peer", "by layer", "by element", "search")) > 0


def test_rebalancing_migrates_less_than_eplb_and_keeping_not_at_all(monkeypatch):
    monkeypatch.delenv("MOE_SEARCH_ROUTING", raising=False)
    windows = rebalancing_drift.drifting(2, 32, 0.1, 8)
    judged = {
        plan: rebalancing_drift.run(windows, 4, 40, plan)
        for plan in (rebalancing_drift.keep, rebalancing_drift.anew(40, 4), rebalancing_drift.near(0.02))
    }
    static, again, warm = judged.values()
    assert static["migrations"] == 0
    assert 0 < warm["migrations"] < 0.5 * again["migrations"]
    assert warm["balance"] > static["balance"]
