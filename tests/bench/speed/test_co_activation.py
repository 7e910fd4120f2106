"""What the benchmark of co-activation measures, on tokens whose groups are known."""

import numpy as np

from moe_search.bench.speed import co_activation


def test_groups_that_tokens_choose_together_take_fewer_devices_of_what_was_held_out():
    rng = np.random.default_rng(0)
    noise = rng.random((2, 256, 64)) + 2.0 * (np.arange(64) % 8 == rng.integers(0, 8, (2, 256, 1)))
    tokens = np.argsort(noise, axis=2)[..., -6:]
    alone, *others = co_activation.measure_task("made", tokens, 30)
    assert alone["fewer"] == 0.0
    # A balanced placement scatters the groups.
    assert alone["devices"] > 3.0
    assert others[-2]["plan"] == "tokens, within 20 %"
    assert others[-2]["devices"] < 0.5 * alone["devices"]
    assert others[-2]["fewer"] == 1 - others[-2]["devices"] / alone["devices"]
    assert all(0.5 < row["of batches"] <= row["balance"] <= 1.0 for row in (alone, *others))
