import moe_search.bench.speed.comet_router_speed as comet_router_speed


def test_a_row_for_every_size(monkeypatch):
    monkeypatch.setattr(comet_router_speed, "SIZES", (3, 4))
    monkeypatch.setattr(comet_router_speed, "ROWS", (8,))
    monkeypatch.setattr(comet_router_speed, "COMPILED", (False,))
    table = comet_router_speed.measure(None, seconds=0.01)
    assert table[["n", "rows"]].to_numpy().tolist() == [[3, 8], [4, 8]]
    assert bool((table[["ours", "linear", "times"]] > 0).all().all())
    assert bool((table["met"] == (table["times"] <= 3)).all())
