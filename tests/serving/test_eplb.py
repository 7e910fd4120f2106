"""EPLB's function and vLLM's policy, on what these are called with."""

import abc
import inspect
import sys
import types

import numpy as np
import pytest
import torch

import moe_search as ms
from moe_search.serving import expert_map, rebalance_experts
from moe_search.serving.vllm_policy import policy_of, register

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
        (([[1.0, -1.0]], 2, 1, 1, 1), "load must not be negative"),
        (([[1.0, float("nan")]], 2, 1, 1, 1), "load must be finite"),
        ((LOADS, 18, 4, 4, 9), "num_devices must be a multiple of num_nodes, 4, got 9"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        rebalance_experts(*arguments)


def test_the_policy_migrates_little_and_keeps_what_is_idle():
    rng = np.random.default_rng(0)
    loads = rng.lognormal(size=(4, 32))
    old = expert_map(torch.tensor(loads), 40, 0, 1, 8)
    drifted = loads * rng.lognormal(sigma=0.15, size=loads.shape)
    drifted[2] = 0.0
    new = expert_map(torch.tensor(drifted), 40, 0, 1, 8, old)
    assert new[2].tolist() == old[2].tolist()
    assert 0 < (new != old).sum() < 40
    active = [0, 1, 3]
    bounds = ms.ExpertPlacement(drifted[active], ms.Cluster(8, 5)).load_bounds
    assert (largest(drifted[active], new[active], 8) <= 1.021 * bounds).all()
    assert expert_map(torch.zeros(4, 32), 40, 0, 1, 8, old).tolist() == old.tolist()
    assert expert_map(torch.zeros(4, 32), 40, 0, 1, 8).shape == (4, 40)


def test_old_maps_with_holes_or_of_another_width_are_taken():
    loads = torch.tensor(LOADS)
    holes = torch.tensor(EPLB_MAP)
    holes[:, -1] = -1
    for old in (holes, torch.tensor(EPLB_MAP)[:, :8]):
        experts = expert_map(loads, 16, 4, 2, 8, old)
        assert experts.shape == (2, 16)
        assert (np.sort(np.unique(experts[0])) == np.arange(12)).all()


def vllm_stand_in():
    """Return what the plug-in sees of vLLM: the names, and the signature of the abstract class (vLLM 0.33)."""

    class AbstractEplbPolicy(abc.ABC):
        @classmethod
        @abc.abstractmethod
        def rebalance_experts(
            cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None
        ):
            raise NotImplementedError

    policy = types.ModuleType("vllm.distributed.eplb.policy")
    policy.AbstractEplbPolicy = AbstractEplbPolicy
    policy.EPLB_POLICIES = {"default": AbstractEplbPolicy}
    return policy


def test_the_plug_in_takes_the_place_of_the_default_policy_where_it_is_named(monkeypatch):
    policy = vllm_stand_in()
    for name in ("vllm", "vllm.distributed", "vllm.distributed.eplb"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["vllm.distributed.eplb"].policy = policy
    for named, replaced in ((None, False), ("other", False), ("other,moe_search", True)):
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
        if named is not None:
            monkeypatch.setenv("VLLM_PLUGINS", named)
        register()
        assert (policy.EPLB_POLICIES["default"] is not policy.AbstractEplbPolicy) == replaced
    chosen = policy.EPLB_POLICIES["default"]
    assert issubclass(chosen, policy.AbstractEplbPolicy)
    names = list(inspect.signature(policy.AbstractEplbPolicy.rebalance_experts).parameters)
    assert list(inspect.signature(chosen.rebalance_experts).parameters) == names
    experts = chosen.rebalance_experts(torch.tensor(LOADS), 16, 4, 2, 8)
    assert (experts.dtype, experts.device.type, experts.shape) == (torch.int64, "cpu", (2, 16))
    assert not inspect.isabstract(policy_of(policy.AbstractEplbPolicy))
