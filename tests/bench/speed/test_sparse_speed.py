from moe_search.bench.speed import sparse_speed


def test_measure_compares_searches_that_find_the_same(monkeypatch):
    monkeypatch.setattr(sparse_speed, "EVALUATIONS", ((260, 2, 0.0), (260, 3, None)))
    monkeypatch.setattr(sparse_speed, "MOVES", ((260, 2),))
    table = sparse_speed.measure(None, 0.3)
    assert table["met"].tolist() == [True, None, None]
    assert (table["ours"] > 0).all()
    assert (table["peer"] > 0).all()
