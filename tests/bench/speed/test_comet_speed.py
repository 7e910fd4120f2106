import moe_search.bench.speed.comet_speed as comet_speed


def test_a_row_for_every_size_with_equal_outputs(monkeypatch):
    monkeypatch.setattr(comet_speed, "SIZES", (3, 16))
    monkeypatch.setattr(comet_speed, "INFERENCE_SIZES", (64,))
    monkeypatch.setattr(comet_speed, "BATCHES", (8,))
    # It raises if ours and the peer disagree.
    table = comet_speed.measure(None, seconds=0.01)
    assert table[["n", "batch"]].to_numpy().tolist() == [[3, 8], [16, 8], [64, 8]]
    assert bool((table[["ours", "peer", "ratio"]] > 0).all().all())
    assert [met is None for met in table["met"]] == [True, False, True]
