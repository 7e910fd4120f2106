"""The policy for vLLM, beside the class of vLLM itself where ``MOE_SEARCH_VLLM`` names the folder of an unpacked wheel.

Of the wheel only ``vllm/distributed/eplb/policy`` is read. Without it a stand-in is, written by us from its behaviour.
"""

import abc
import importlib
import inspect
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import moe_search as ms
from moe_search.serving import expert_map
from moe_search.serving.greedy_eplb import eplb
from moe_search.serving.vllm_policy import register

pytestmark = pytest.mark.slow  # compiles kernels

WHEEL = os.environ.get("MOE_SEARCH_VLLM")


def stand_in():
    """Return what the plug-in sees of vLLM 0.33: names, the signature of a policy, and EPLB as the default one."""

    class AbstractEplbPolicy(abc.ABC):
        @classmethod
        @abc.abstractmethod
        def rebalance_experts(
            cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None
        ):
            raise NotImplementedError

    class DefaultEplbPolicy(AbstractEplbPolicy):
        @classmethod
        def rebalance_experts(
            cls, weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices=None
        ):
            return torch.from_numpy(eplb(weight.numpy(), num_replicas, num_groups, num_nodes, num_ranks))

    policy = types.ModuleType("vllm.distributed.eplb.policy")
    policy.AbstractEplbPolicy = AbstractEplbPolicy
    policy.EPLB_POLICIES = {"default": DefaultEplbPolicy}
    return policy


@pytest.fixture(
    params=["stand-in", pytest.param("wheel", marks=pytest.mark.skipif(not WHEEL, reason="MOE_SEARCH_VLLM"))]
)
def policy(request, monkeypatch):
    """The module of vLLM's policies; the packages above it, which import all of vLLM, are empty."""
    folders = {
        name: Path(WHEEL or "").joinpath(*name.split("."))
        for name in ("vllm", "vllm.distributed", "vllm.distributed.eplb")
    }
    for name, folder in folders.items():
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, module)
    name = "vllm.distributed.eplb.policy"
    if request.param == "wheel":
        options = types.ModuleType("vllm.config.parallel")
        options.EPLBPolicyOption = Literal["default"]
        monkeypatch.setitem(sys.modules, "vllm.config", types.ModuleType("vllm.config"))
        monkeypatch.setitem(sys.modules, "vllm.config.parallel", options)
        for part in (name, f"{name}.abstract", f"{name}.default"):
            monkeypatch.delitem(sys.modules, part, raising=False)
        found = importlib.import_module(name)
    else:
        found = stand_in()
        monkeypatch.setitem(sys.modules, name, found)
    # What follows the test is not to find it.
    for part in [each for each in sys.modules if each.startswith(name)]:
        monkeypatch.setitem(sys.modules, part, sys.modules[part])
    sys.modules["vllm.distributed.eplb"].policy = found
    return found


@pytest.fixture
def chosen(policy, monkeypatch):
    """The policy that vLLM finds after it has loaded its plug-ins."""
    monkeypatch.setenv("VLLM_PLUGINS", "other,moe_search")
    register()
    return policy.EPLB_POLICIES["default"]


def balance(loads, experts, devices):
    problem = ms.ExpertPlacement(loads, ms.Cluster(devices, experts.shape[1] // devices))
    return problem.load.sum(axis=1) / devices / problem.largest_loads(np.asarray(experts))


def moved(experts, old, devices):
    """Return how many experts come to a device that did not hold them."""
    pairs = zip(
        np.asarray(experts).reshape(-1, devices, experts.shape[1] // devices).tolist(),
        np.asarray(old).reshape(-1, devices, experts.shape[1] // devices).tolist(),
        strict=True,
    )
    return sum(len(set(new) - set(was)) for layer, before in pairs for new, was in zip(layer, before, strict=True))


def test_the_plug_in_takes_the_place_of_the_default_policy_where_it_is_named(policy, monkeypatch):
    default = policy.EPLB_POLICIES["default"]
    for named in (None, "", "other"):
        monkeypatch.delenv("VLLM_PLUGINS", raising=False)
        if named is not None:
            monkeypatch.setenv("VLLM_PLUGINS", named)
        register()
        assert policy.EPLB_POLICIES["default"] is default
    monkeypatch.setenv("VLLM_PLUGINS", "other,moe_search")
    register()
    register()  # as vLLM may
    chosen = policy.EPLB_POLICIES["default"]
    assert list(policy.EPLB_POLICIES) == ["default"]
    assert issubclass(chosen, policy.AbstractEplbPolicy)
    assert not inspect.isabstract(chosen)
    signatures = [inspect.signature(each.rebalance_experts) for each in (chosen, policy.AbstractEplbPolicy)]
    assert list(signatures[0].parameters) == list(signatures[1].parameters)
    defaults = [{name: each.default for name, each in signature.parameters.items()} for signature in signatures]
    assert defaults[0] == defaults[1]


def test_its_answers_are_those_of_the_default_policy_but_better_balanced_and_nearer(policy, chosen):
    default = next(each for each in policy.AbstractEplbPolicy.__subclasses__() if each is not chosen)
    rng = np.random.default_rng(0)
    first = rng.lognormal(size=(3, 32))
    arguments = (40, 0, 1, 8)
    old = chosen.rebalance_experts(torch.tensor(first), *arguments)
    # The default one divides by the number of groups.
    theirs = default.rebalance_experts(torch.tensor(first), 40, 1, 1, 8)
    assert (old.dtype, old.device.type, old.shape) == (theirs.dtype, theirs.device.type, theirs.shape)
    assert (balance(first, old, 8) >= balance(first, theirs, 8) - 1e-9).all()
    assert theirs.tolist() == eplb(first.astype(np.float32), 40, 1, 1, 8).tolist()
    drifted = torch.tensor(first * rng.lognormal(sigma=0.1, size=first.shape))
    mine = chosen.rebalance_experts(drifted, *arguments, old)
    theirs = default.rebalance_experts(drifted, 40, 1, 1, 8, theirs)
    assert 0 < moved(mine, old, 8) < 0.2 * moved(theirs, old, 8)
    # Ranks find the same, each by itself.
    assert mine.tolist() == chosen.rebalance_experts(drifted.clone(), *arguments, old.clone()).tolist()


def test_loads_of_zero_keep_the_map(chosen):
    loads = torch.tensor(np.random.default_rng(1).lognormal(size=(2, 16)))
    old = chosen.rebalance_experts(loads, 20, 4, 2, 4)
    assert chosen.rebalance_experts(torch.zeros(2, 16), 20, 4, 2, 4, old).tolist() == old.tolist()
    assert chosen.rebalance_experts(torch.zeros(2, 16), 20, 4, 2, 4).shape == (2, 20)
    # As vLLM keeps them: integers, of which one layer has none.
    loads = (1000 * loads).int()
    loads[1] = 0
    assert chosen.rebalance_experts(loads, 20, 4, 2, 4, old.int())[1].tolist() == old[1].tolist()


@pytest.mark.parametrize("groups", [0, 1, 3, 4])
def test_old_maps_with_holes_or_of_another_width_are_taken(chosen, groups):
    loads = torch.tensor(np.random.default_rng(2).lognormal(size=(2, 16)))
    old = chosen.rebalance_experts(loads, 24, groups, 2, 4)
    holes = old.clone()
    holes[:, -3:] = -1
    for given in (holes, torch.full_like(old, -1), old[:, :20], old[:1], torch.full((2, 40), -1)):
        experts = chosen.rebalance_experts(loads, 24, groups, 2, 4, given)
        assert experts.shape == (2, 24)
        for row in experts.reshape(2, 4, 6).tolist():
            assert {e for held in row for e in held} == set(range(16))
            assert all(len(set(held)) == 6 for held in row)
    assert moved(chosen.rebalance_experts(loads, 24, groups, 2, 4, holes), old, 4) <= 6


def test_the_tolerance_is_that_of_the_environment(policy, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "moe_search")
    rng = np.random.default_rng(3)
    loads = rng.lognormal(size=(4, 32))
    old = expert_map(loads, 40, 0, 1, 8)
    drifted = torch.tensor(loads * rng.lognormal(sigma=0.2, size=loads.shape))
    migrations = []
    for tolerance in ("0.01", "0.2"):
        monkeypatch.setenv("MOE_SEARCH_TOLERANCE", tolerance)
        register()
        experts = policy.EPLB_POLICIES["default"].rebalance_experts(drifted, 40, 0, 1, 8, old)
        bounds = ms.ExpertPlacement(drifted.numpy(), ms.Cluster(8, 5)).load_bounds
        at_best = drifted.numpy().sum(axis=1) / 8 / bounds
        assert (balance(drifted.numpy(), experts, 8) >= at_best / (1.001 + float(tolerance))).all()
        migrations.append(moved(experts, old, 8))
    assert migrations[0] > migrations[1]
    with pytest.raises(ValueError, match="num_ranks must be a multiple of num_nodes, 3, got 8"):
        policy.EPLB_POLICIES["default"].rebalance_experts(drifted, 40, 0, 3, 8)
    for wrong, message in (("2%", "must be a number such as 0.02, got '2%'"), ("-1", "must be a finite number >= 0")):
        monkeypatch.setenv("MOE_SEARCH_TOLERANCE", wrong)
        with pytest.raises(ValueError, match=f"MOE_SEARCH_TOLERANCE {message}"):
            register()


def test_two_processes_find_the_same_map_whatever_their_threads_and_hashes():
    code = (
        "import numpy as np; from moe_search.serving import expert_map\n"
        "rng = np.random.default_rng(4); loads = rng.lognormal(size=(3, 32))\n"
        "old = expert_map(loads, 40, 4, 2, 8)\n"
        "print(expert_map(loads * rng.lognormal(sigma=0.2, size=loads.shape), 40, 4, 2, 8, old).tolist())"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": number, "NUMBA_NUM_THREADS": number, "OMP_NUM_THREADS": number},
        ).stdout
        for number in ("1", "2")
    ]
    assert told[0] == told[1] != ""
