from moe_search.bench.speed import neuron_transport_speed


def test_a_row_for_every_case(monkeypatch):
    case = neuron_transport_speed.Case(24, 4, 2)
    monkeypatch.setattr(neuron_transport_speed, "CASES", (case,))
    monkeypatch.setattr(neuron_transport_speed, "ROWS", 50)
    (row,) = neuron_transport_speed.measure(None, seconds=0.01).to_dict("records")
    assert row["instance"] == "24 neurons, 2 of 4"
    assert min(row["ours"], row["peer"], row["ratio"]) > 0
