"""What it is worth to have experts of a token together, and what is no co-activation."""

import numpy as np
import pytest

import moe_search as ms

CLUSTER = ms.Cluster(4, 1, 2)
TOKENS = [[0, 1], [0, 1], [2, 3], [0, 2]]


def test_values_worked_out_by_hand():
    # Loads 3, 2, 2, 1 of two devices; with experts 0 and 1 together these bear 5 and 3, where 4 is the mean.
    two = ms.Cluster(2, 2)
    together, balanced = [0, 1, 2, 3], [0, 3, 1, 2]
    for tolerance, value in ((0.25, 1.25), (0.2, 1.25 + 2 * 1000 * (5 / 4.8 - 1))):
        assert ms.CoActivation(two, TOKENS, tolerance=tolerance).value(together) == pytest.approx(value, rel=1e-5)
    problem = ms.CoActivation(two, TOKENS)
    assert problem.value(balanced) == 2.0
    assert problem.units(balanced).tolist() == [[2, 2, 2, 2]]
    assert problem.load.tolist() == [[3, 2, 2, 1]]
    # Of four pairs one is cut, or all are.
    pairs = np.diag([3, 2, 2, 1])
    for e, f in TOKENS:
        pairs[e, f] += 1
        pairs[f, e] += 1
    counted = ms.CoActivation(two, pairs=pairs, tolerance=0.25)
    assert (counted.value(together), counted.value(balanced)) == (0.25, 1.0)
    assert counted.load.tolist() == [[3, 2, 2, 1]]


def test_nodes_may_count_while_devices_are_balanced():
    problem = ms.CoActivation(CLUSTER, [TOKENS, TOKENS[::-1]], load=np.ones(8).reshape(2, 4), unit="node")
    assert problem.value([[0, 1, 2, 3], [0, 2, 1, 3]]) == (1.25 + 1.75) / 2
    assert problem.units([[0, 1, 2, 3], [0, 2, 1, 3]]).tolist() == [[1, 1, 1, 2], [1, 2, 2, 2]]
    assert ms.CoActivation(CLUSTER, TOKENS, load=[1, 1, 1, 1]).value([0, 1, 2, 3]) == 2.0


def test_bounds_worked_out_by_hand():
    # Three of four experts cannot be on one of two devices.
    assert ms.CoActivation(ms.Cluster(2, 2), [[0, 1, 2]]).layer_bounds.tolist() == [2.0]
    # The strongest pairs are 2, 2, 1 and 1, half of them 3 of 4: at best one token in four is on two devices.
    assert ms.CoActivation(ms.Cluster(2, 2), TOKENS).layer_bounds.tolist() == [1.25]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of tokens and pairs must be given, got none"),
        ({"tokens": TOKENS, "pairs": np.eye(4)}, "one of tokens and pairs must be given, got both"),
        ({"tokens": [0, 1]}, r"tokens must have shape \(tokens, chosen\) or .* got shape \(2,\)"),
        ({"tokens": [[0, 4]]}, "tokens must hold experts 0 .. 3, as the devices have a slot for each; got 0 .. 4"),
        ({"tokens": [[0, 1], [2, 2]]}, "a token must choose an expert once, got twice in layer 0, token 1"),
        ({"tokens": TOKENS, "load": [1, 2]}, r"load must be of 1 layers and 4 experts, .* got shape \(1, 2\)"),
        ({"tokens": TOKENS, "load": [1, 2, -1, 1]}, "load must not be negative"),
        ({"tokens": TOKENS, "load": [0, 0, 0, 0]}, "load must be above 0, .* for some expert of every layer"),
        ({"tokens": TOKENS, "tolerance": -1}, "tolerance must be a finite number >= 0, got -1"),
        ({"tokens": TOKENS, "unit": "rack"}, "unit must be one of device, node, got 'rack'"),
        ({"pairs": np.ones((3, 3))}, r"pairs must be of 4 experts, .* got shape \(3, 3\)"),
        ({"pairs": np.arange(16).reshape(4, 4)}, "pairs must be symmetric, they are not in layer 0"),
        ({"pairs": -np.ones((4, 4))}, "pairs must not be negative, got -1"),
        ({"pairs": np.eye(4)}, "pairs must be above 0 for two experts of every layer, got none in layer 0"),
        ({"pairs": np.full((4, 4), np.nan)}, "pairs must be finite, got nan"),
        ({"tokens": [[0, 1], [2]]}, "tokens must be an array, got lists of unequal lengths"),
        ({"pairs": [[0, 1], [2]]}, "pairs must be an array, got lists of unequal lengths"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ms.CoActivation(CLUSTER, **arguments)


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="tokens must hold integers, got dtype float64"):
        ms.CoActivation(CLUSTER, [[0.5, 1]])
    with pytest.raises(TypeError, match="cluster must be a Cluster, got int"):
        ms.CoActivation(4, TOKENS)
    with pytest.raises(ValueError, match="solution must hold every expert, expert 3 is missing in layer 0"):
        ms.CoActivation(CLUSTER, TOKENS).value([0, 1, 2, 2])
