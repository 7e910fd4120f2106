"""A trace played through: hand-computed balance, and what policies do."""

import numpy as np
import pytest

import moe_search as ms
from moe_search.serving import Policy, PolicyOutcome, Simulation, simulate
from moe_search.serving.greedy_eplb import eplb

pytestmark = pytest.mark.slow  # compiles kernels

RNG = np.random.default_rng(0)
TRACE = np.exp(RNG.normal(size=(2, 24)) + RNG.normal(scale=0.2, size=(10, 2, 24)).cumsum(axis=0))
CLUSTER = ms.Cluster(4, 8)


def test_balance_is_that_of_the_next_window_and_migrations_are_new_pairs():
    # Two devices of two slots: 3 + 1 and 2 + 2, until the second expert has nothing to do.
    windows = np.array([[[3, 1, 2, 2]]] * 2 + [[[3, 1, 0, 0]]] + [[[4, 0, 4, 0]]] * 2, dtype=float)
    played = simulate(windows, ms.Cluster(2, 2), [Policy("static"), Policy(tolerance=0.0)])
    static, warm = played.outcomes
    # Judged from the third window on, where one device bears all at first, and then both the same.
    assert static.balance.tolist() == [0.5, 1.0, 1.0]
    assert static.migrations.tolist() == [0, 0, 0]
    assert played.best.tolist() == pytest.approx([2 / 3, 1.0, 1.0])
    assert warm.migrations[0] == 0
    assert warm.balance[0] == static.balance[0]
    assert warm.planned[1] == pytest.approx(2 / 3)
    assert warm.migrations[1] == 2
    assert (played.num_layers, played.num_slots) == (1, 4)


def test_what_is_known_of_policies_holds():
    policies = [
        Policy("static"),
        Policy("eplb"),
        Policy("search"),
        *(Policy(tolerance=tolerance) for tolerance in (0.0, 0.05, 10.0)),
        *(Policy(budget=budget) for budget in (0.0, 0.05)),
        Policy("eplb", last=None, decay=0.5),
    ]
    played = simulate(TRACE, CLUSTER, policies)
    again = simulate(TRACE, CLUSTER, policies)
    static, anew, search, tight, middle, loose, none, few, average = played.outcomes
    for outcome, same in zip(played.outcomes, again.outcomes, strict=True):
        assert len(outcome.balance) == 8
        assert outcome.balance.tolist() == same.balance.tolist()
        assert (outcome.balance <= played.best + 1e-12).all()
    for kept in (static, loose, none):
        assert kept.migrations.sum() == 0
        assert kept.balance.tolist() == static.balance.tolist()
    assert 0 < middle.migrations.sum() < tight.migrations.sum() < anew.migrations.sum()
    assert few.migrations.max() <= 0.05 * 64
    assert min(search.planned.mean(), tight.planned.mean()) > middle.planned.mean() > static.planned.mean()
    # EPLB is run with what was seen.
    problem = ms.ExpertPlacement(TRACE[-1], CLUSTER)
    for outcome, seen in ((anew, TRACE[-2]), (average, sum(TRACE[k] * 0.5 ** (8 - k) for k in range(9)))):
        largest = problem.largest_loads(eplb(seen, 32, 0, 1, 4))
        assert outcome.balance[-1] == pytest.approx((TRACE[-1].sum(axis=1) / 4 / largest).mean())


def test_windows_and_layers_without_load_are_left_out_and_idle_ones_keep_their_experts():
    policies = [Policy("static"), Policy("eplb"), Policy(tolerance=0.02)]
    played = simulate(TRACE, CLUSTER, policies)
    padded = np.zeros((13, 4, 24))
    padded[np.ix_([0, 1, 2, 4, 5, 6, 7, 8, 10, 12], [1, 3])] = TRACE
    for outcome, same in zip(played.outcomes, simulate(padded, CLUSTER, policies).outcomes, strict=True):
        assert outcome.balance.tolist() == same.balance.tolist()
        assert outcome.migrations.tolist() == same.migrations.tolist()
    quiet = TRACE.copy()
    quiet[4:, 1] = 0
    warm = simulate(quiet, CLUSTER, policies).outcomes[2]
    alone = simulate(TRACE[:, :1], CLUSTER, policies).outcomes[2]
    # From the sixth window on only the first layer is planned with and judged.
    assert warm.balance[4:].tolist() == pytest.approx(alone.balance[4:].tolist(), abs=0.05)
    assert np.isfinite(warm.balance).all()


def test_the_advised_policy_moves_least_among_the_good_ones():
    steady = np.tile(TRACE[:1], (6, 1, 1))
    played = simulate(steady, CLUSTER)
    assert played.advised.policy == Policy("static")
    assert "Nothing to gain" in played.advice()[-1]
    told = {Policy("static"): (0.8, 0), Policy("eplb"): (0.9, 90), Policy(tolerance=0.05): (0.896, 3)}
    outcomes = [
        PolicyOutcome(policy, np.array([balance]), np.array([0.99]), np.array([moved]))
        for policy, (balance, moved) in {**told, Policy(tolerance=0.1): (0.88, 1)}.items()
    ]
    played = Simulation(tuple(outcomes), np.array([1.0]), 2, 50)
    assert played.advice() == (
        "Advised: tolerance 5%, balance 0.896 on the next window, 3.0% of slots moved.",
        "static, balance 0.800 on the next window, 0.0% of slots moved.",
        "EPLB anew, balance 0.900 on the next window, 90.0% of slots moved.",
    )
    assert [row[0] for row in played.table().rows if "*" in row[0]] == ["tolerance 5% *"]
    axis = played.plot()
    assert [line.get_label() for line in axis.lines] == ["static", "EPLB anew", "tolerance"]
    assert axis.lines[2].get_xydata().tolist() == [[0.03, 0.896], [0.01, 0.88]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loads": TRACE[0]}, r"loads must have shape \(windows, layers, experts\), got shape \(2, 24\)"),
        ({"loads": -TRACE}, r"loads must not be negative, got -.* at index \(0, 0, 0\)"),
        ({"loads": TRACE * np.nan}, "loads must be finite"),
        ({"loads": 0 * TRACE}, "loads must hold 3 windows with any load at least: .*; got 0"),
        ({"loads": TRACE[:2]}, "loads must hold 3 windows with any load at least: .*; got 2"),
        ({"loads": 1e-300 * TRACE}, "loads must hold 3 windows with any load at least: .*; got 0"),
        ({"policies": []}, "policies must hold one at least, got none"),
        ({"cluster": ms.Cluster(2, 8)}, "the devices must have a slot for each of 24 experts, got 16 slots"),
        ({"cluster": ms.Cluster(2, (14, 12))}, "devices must have equally many slots for EPLB, got 12-14"),
        ({"num_groups": 5}, "num_groups must divide the number of experts, 24"),
        ({"turns": 0}, "turns must be an integer >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"loads": TRACE, "cluster": CLUSTER} | change)
    with pytest.raises(TypeError, match=r"policies must be of Policy, such as Policy\('eplb'\), got 'eplb'"):
        simulate(TRACE, CLUSTER, ["eplb"])


def test_a_moving_average_may_fade_beyond_the_range_of_floats():
    # The second layer has load in the first window alone, 400 rebalances before the last.
    windows = np.ones((400, 2, 4))
    windows[1:, 1] = 0
    faded = simulate(windows, ms.Cluster(2, 2), [Policy(tolerance=0.1, last=None, decay=0.1)], turns=1).outcomes[0]
    assert faded.planned.tolist() == faded.balance.tolist() == [1.0] * 398


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"algorithm": "greedy"}, "algorithm must be one of static, eplb, search, got 'greedy'"),
        ({"algorithm": "eplb", "tolerance": 0.1}, "tolerance and budget must be given to the algorithm search only"),
        ({"tolerance": 0.1, "budget": 0.1}, "tolerance and budget exclude each other, got both"),
        ({"tolerance": -0.1}, "tolerance must be a finite number >= 0"),
        ({"last": 0}, "last must be an integer >= 1, got 0"),
        ({"decay": 1.5}, "decay must be a number from 0 to 1, got 1.5"),
    ],
)
def test_a_policy_that_is_none_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Policy(**given)
