"""EPLB's function, on what it is called with."""

import numpy as np
import pytest
import torch

from moe_search.serving import rebalance_experts

pytestmark = pytest.mark.slow  # compiles kernels

LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
EPLB_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def largest(loads, experts, devices):
    """Return the largest load of a device of every layer."""
    found = []
    for load, row in zip(loads, np.asarray(experts), strict=True):
        copies = np.bincount(row, minlength=len(load))
        found.append((np.array(load)[row] / copies[row]).reshape(devices, -1).sum(axis=1).max())
    return np.array(found)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64])
def test_the_example_of_eplb_gives_its_triple_and_no_worse_balance(kind):
    experts, slots, counts = rebalance_experts(torch.tensor(LOADS, dtype=kind), 16, 4, 2, 8)
    assert {each.dtype for each in (experts, slots, counts)} == {torch.int64}
    assert (experts.shape, slots.shape[:2], counts.shape) == ((2, 16), (2, 12), (2, 12))
    for layer in range(2):
        for e in range(12):
            places = slots[layer, e][slots[layer, e] >= 0].tolist()
            assert places == (experts[layer] == e).nonzero().flatten().tolist()
            assert len(places) == counts[layer, e] > 0
        # Groups of three experts stay on a node of eight slots, and no device holds an expert twice.
        assert len({(int(e) // 3, slot // 8) for slot, e in enumerate(experts[layer])}) == 4
        assert all(len(set(pair.tolist())) == 2 for pair in experts[layer].reshape(8, 2))
    if kind is not torch.bfloat16:
        assert (largest(LOADS, experts, 8) <= largest(LOADS, EPLB_MAP, 8)).all()


def test_groups_that_cannot_stay_on_nodes_are_none_and_idle_layers_count_all_experts_alike():
    loads = np.zeros((2, 8))
    loads[1] = np.arange(8)
    for groups in (0, 1, 3):
        experts, _, counts = rebalance_experts(loads, 16, groups, 2, 4)
        assert counts[0].tolist() == [2] * 8
        assert largest(loads[1:], experts[1:], 4) == pytest.approx([7.0], abs=0.5)
    windows = rebalance_experts(np.stack([loads, loads]), 16, 0, 2, 4)[0]
    assert windows.tolist() == experts.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LOADS, 15, 4, 2, 8), "num_replicas must be a multiple of num_gpus, 8, got 15"),
        ((LOADS, 8, 4, 2, 8), "the devices must have a slot for each of 12 experts, got 8 slots"),
        (([[1.0, -1.0]], 2, 1, 1, 1), "weight must not be negative"),
        (([[1.0, float("nan")]], 2, 1, 1, 1), "weight must be finite"),
        ((LOADS, 18, 4, 4, 9), "num_gpus must be a multiple of num_nodes, 4, got 9"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        rebalance_experts(*arguments)
