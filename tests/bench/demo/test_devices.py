import numpy as np
import pytest

from moe_search.bench.demo import devices
from moe_search.problems import ExpertPlacement
from moe_search.serving import Policy, PolicyOutcome, Simulation


def test_the_trace_is_that_of_a_router_which_gives_every_token_six_experts():
    trace = devices.read_trace(16)
    assert trace.counts.shape == (4, 16, 9, 64)
    assert (trace.counts.sum(axis=3) == 6 * 512).all()
    assert trace.tasks == ("intent", "law", "summary", "translation")
    assert "commit 579a7711" in trace.source
    with np.load(devices.TRACE, allow_pickle=False) as arrays:
        assert "Copyright (c) 2023 DeepSeek" in str(arrays["notice"])
    assert np.array_equal(devices.read_trace(3).counts, trace.counts[:, :3])


def test_a_rebalance_comes_near_the_bound_by_fewer_migrations_than_eplb():
    counts = devices.read_trace(8).counts[:, :, :2]
    first, last = counts[0, : devices.LAST], counts[1, -devices.LAST :]
    done = devices.rebalance(first, last)
    total = last.sum(axis=(0, 2))
    assert np.allclose(done.before.sum(axis=1), total)
    assert np.allclose(done.after.sum(axis=1), total)
    assert np.array_equal(done.bounds, ExpertPlacement(last, devices.CLUSTER).load_bounds)
    assert (done.after.max(axis=1) <= (1 + devices.TOLERANCE) * done.bounds * (1 + 1e-12)).all()
    assert (done.before.max(axis=1) > done.after.max(axis=1)).any()
    assert 0 < done.migrations < done.of_eplb
    text = devices.rebalanced_sentence(done)
    assert f"by {done.migrations} migrations; EPLB's algorithm makes {done.of_eplb}" in text


def played(balance):
    """Return a simulation of two rebalances, in which policy number i has one of these balances and 10 i migrations."""
    outcomes = (
        PolicyOutcome(policy, np.full(2, each), np.full(2, 0.9), np.array([10 * i, 10 * i]))
        for i, (policy, each) in enumerate(zip(devices.POLICIES, balance, strict=True))
    )
    return Simulation(tuple(outcomes), np.ones(2), 1, 100)


@pytest.fixture
def result():
    trace = devices.Trace(np.zeros((2, 7, 1, 64)), ("one", "two"), "made up")
    one, two = played((0.9, 0.8, 0, 0.92, 0, 0)), played((0.9, 0.7, 0, 0.9, 0, 0))
    even = np.ones((1, 8))
    return devices.DevicesResult(
        trace, played((0.7, 0.85, 0, 0.88, 0, 0)), (one, two), devices.Rebalanced(even, even, np.ones(1), 0, 0)
    )


def test_sentences_tell_the_numbers(result):
    assert devices.devices_sentence(result) == (
        "Devices: on traffic of DeepSeek-V2-Lite, a search within 2% of the bound balances the next window to 0.880 "
        "by 300.0% of the migrations of EPLB's algorithm, which comes to 0.850; a placement that stays comes to 0.700."
    )
    assert devices.steady_sentence(result) == (
        "On each task alone, whose traffic is steady, the search gains +0.010 on a placement that stays, and +0.180 on "
        "all tasks in turn: 0.910 and 0.900, EPLB's algorithm 0.750."
    )


def test_policies_table(result):
    table = devices.policies_table(result)
    assert [row[0] for row in table.rows[:4]] == [
        "static",
        "EPLB anew",
        "search, tolerance 1%",
        "search, tolerance 2%",
    ]
    assert table.rows[3][1:] == ("0.880", "0.900", "30.00%", "60", "0.910")
    assert table.rows[-1] == ("bound, had it been known", "1.000", "-", "-", "-", "1.000")
    families = devices.trade_off_families(result)
    assert list(families) == ["static", "EPLB anew", "search, tolerance"]
    assert devices.outcome_of(result.drifting, Policy("eplb", last=4)).balance[0] == 0.85
