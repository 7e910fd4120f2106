import numpy as np
import pytest

from moe_search.bench.speed import balanced_routing
from moe_search.bench.speed.balanced_routing import Case


def test_rows_of_routings_and_of_training_steps(monkeypatch):
    cases = (Case(64, 4, 1, False, 0.0), Case(64, 4, 2, True, 1e9))
    monkeypatch.setattr(balanced_routing, "CASES", cases)
    monkeypatch.setattr(balanced_routing, "STEP_TOKENS", 64)
    table = balanced_routing.measure(None, 0.01)
    assert table["instance"][:2].tolist() == ["64 x 4, k=1", "64 x 4, k=2, skewed"]
    assert table["met"][:2].tolist() == [True, False]
    assert len(table) == 2 + 4
    routings = table[:2]
    assert (routings["kept"] <= 100).all()
    assert (routings["top-k dropped"] > 0).all()
    # Without drops, nothing within the capacity keeps more.
    none_dropped = routings[routings["Sinkhorn dropped"] == 0]
    assert (none_dropped["Sinkhorn kept"] <= none_dropped["kept"] + 1e-9).all()


def test_sinkhorn_and_drops_by_hand():
    plan = np.exp(balanced_routing.sinkhorn(np.log([[4.0, 1.0], [1.0, 4.0]])))
    assert plan == pytest.approx(np.array([[0.8, 0.2], [0.2, 0.8]]))
    taken = balanced_routing.within_capacity(np.array([[3.0, 1.0], [2.0, 1.0], [1.0, 5.0], [1.0, 0.0]]), 1)
    assert taken.tolist() == [[True, False], [True, False], [False, True], [False, False]]
