import copy
import re

import pytest
import torch
from hypothesis import given, settings, strategies as st
from naive_balance import lowered_biases

import moe_search as ms
from moe_search.training.loss_free_balancing import LossFreeBalancing


def make(seed=0, n=3, m=6, k=2):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = ms.TopK(5, n, k, m).double()
        gate.expert_map.scramble(torch.Generator().manual_seed(seed))
        return ms.MixtureOfExperts(ms.StackedExperts(n, 5, 2).double(), gate)


def batches(seed, count, size=12):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 5, generator=generator, dtype=torch.float64) for _ in range(count)]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    expert_limit=st.sampled_from([1.0, 1.1, 1.5]),
    slot_limit=st.sampled_from([None, 0.5, 0.8]),
    memory=st.sampled_from([0.0, 0.5, 0.95]),
)
def test_biases_are_those_of_the_formula(seed, expert_limit, slot_limit, memory):
    moe = make(seed)
    limits = {"expert_limit": expert_limit, "slot_limit": slot_limit}
    balancing = LossFreeBalancing(moe, rate=0.05, memory=memory, **limits)
    loads = None
    for inputs in batches(seed, 3):
        moe(inputs)
        gate = moe.gate
        expected, loads = lowered_biases(
            gate.linear.weight.tolist(), gate.linear.bias.tolist(), gate.expert_map.experts[0].tolist(),
            inputs.tolist(), gate.k, 3, loads, 0.05, memory, **limits,
        )  # fmt: skip
        balancing.step()
        assert gate.linear.bias.tolist() == pytest.approx(expected)
        assert balancing.slot_loads.tolist() == pytest.approx(loads)
        gate.expert_map.scramble(torch.Generator().manual_seed(seed + 1))  # a search may come in between


def test_by_hand():
    moe = ms.MixtureOfExperts(ms.StackedExperts(2, 1, 1), ms.TopK(1, 2, 1, 4))
    with torch.no_grad():
        moe.gate.linear.weight.zero_()
        moe.gate.linear.bias.copy_(torch.tensor([0.0, 3.2, 2.0, 1.0]))
    moe.gate.expert_map.assign_permutation([0, 1, 2, 3])  # slots 0 and 1 under expert 0
    balancing = LossFreeBalancing(moe, rate=0.5, slot_limit=1.0, memory=0.5)
    seen = []
    for _ in range(5):
        moe(torch.ones(4, 1))
        balancing.step()
        seen.append([round(bias, 5) for bias in moe.gate.linear.bias.tolist()])
    # Slot 1 has all samples twice, then slot 2: the averages are (2, 0), (2, 0), (1, 1), (0.5, 1.5), and (1.25, 0.75).
    assert seen == [
        [-0.5, 2.2, 2.0, 1.0],
        [-1.0, 1.2, 2.0, 1.0],
        [-1.0, 1.2, 2.0, 1.0],
        [-1.0, 1.2, 1.0, 0.5],
        [-1.5, 0.2, 1.0, 0.5],
    ]


def test_crowded_samples_spread():
    moe = make(3, n=4, m=16, k=1)
    with torch.no_grad():
        moe.gate.linear.bias[moe.gate.expert_map.experts[0] == 0] += 5.0
    inputs = torch.cat(batches(0, 50))
    balancing = LossFreeBalancing(moe, memory=0.5)
    for _ in range(400):
        moe(inputs)
        balancing.step()
    loads = moe.gate.expert_map((moe.gate(inputs).weights > 0).double()).sum(0)
    assert loads.max() / loads.mean() < 1.2


def test_a_run_that_loads_its_state_goes_on_as_if_it_had_not_stopped(tmp_path):
    def run(moe, balancing, inputs):
        for batch in inputs:
            moe(batch)
            balancing.step()
        return moe.gate.linear.bias.tolist()

    moe = make()
    first = copy.deepcopy(moe)
    whole = run(first, LossFreeBalancing(first), batches(1, 6))
    second = copy.deepcopy(moe)
    balancing = LossFreeBalancing(second)
    assert balancing.state_dict() == {"num_experts": 3, "slot_loads": None}
    run(second, balancing, batches(1, 6)[:3])
    ms.save_state(balancing.state_dict(), tmp_path / "state.safetensors")
    again = LossFreeBalancing(second)
    again.load_state_dict(ms.load_state(tmp_path / "state.safetensors"))
    assert run(second, again, batches(1, 6)[3:]) == whole
    with pytest.raises(ValueError, match=re.escape("slot_loads must have shape (3,), got (6,)")):
        LossFreeBalancing(make(m=3)).load_state_dict(balancing.state_dict())
    with pytest.raises(ValueError, match="num_experts must be 2, got 3"):
        LossFreeBalancing(make(n=2)).load_state_dict(balancing.state_dict())
    with pytest.raises(ValueError, match="state must have the keys num_experts, slot_loads, got none"):
        again.load_state_dict({})
    with pytest.raises(TypeError, match="state must be a dict, as it was saved, got list"):
        again.load_state_dict([])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rate": -0.1}, ValueError, "rate must be a finite number >= 0, got -0.1"),
        ({"rate": "x"}, TypeError, "rate must be"),
        ({"expert_limit": 0.9}, ValueError, "expert_limit must be at least 1, the mean load, got 0.9"),
        ({"slot_limit": 0.0}, ValueError, "slot_limit must be"),
        ({"slot_limit": 0.49}, ValueError, "slot_limit must be at least 0.5, the mean load of a slot, got 0.49"),
        ({"memory": 1.0}, ValueError, "memory must be less than 1, got 1.0"),
        ({"process_group": 3}, TypeError, "process_group must be"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        LossFreeBalancing(make(), **options)


def test_other_layers_and_a_step_without_a_forward_are_refused():
    experts = ms.StackedExperts(4, 5, 2)
    with pytest.raises(TypeError, match="moe must be a MixtureOfExperts with a TopK gate, got a gate Softmax"):
        LossFreeBalancing(ms.MixtureOfExperts(experts, ms.Softmax(5, 4)))
    with pytest.raises(TypeError, match="moe must be a MixtureOfExperts with a TopK gate, got StackedExperts"):
        LossFreeBalancing(experts)
    moe = make()
    balancing = LossFreeBalancing(moe)
    with pytest.raises(ValueError, match="moe must have run in training mode before a step, got no routing"):
        balancing.step()
    moe(batches(0, 1)[0])
    balancing.step()
    moe.eval()(batches(0, 1)[0])
    with pytest.raises(ValueError, match="moe must have run in training mode before another step, got no routing"):
        balancing.step()
    moe.gate = ms.SinkhornPermutation(moe.gate, steps=1)
    with pytest.raises(TypeError, match="moe must be a MixtureOfExperts with a TopK gate, got a gate SinkhornPerm"):
        balancing.step()


def test_biases_of_half_precision_are_refused():
    moe = make()
    balancing = LossFreeBalancing(moe)
    moe.bfloat16()
    moe(batches(0, 1)[0].bfloat16())
    message = "the biases of the gate must be of float32 or float64, also under autocast, got torch.bfloat16"
    with pytest.raises(TypeError, match=message):
        balancing.step()
    with pytest.raises(TypeError, match=message):
        LossFreeBalancing(moe)


def test_a_batch_that_is_not_a_number_is_left_out():
    moe = make()
    balancing = LossFreeBalancing(moe)
    moe(batches(0, 1)[0])
    balancing.step()
    loads, biases = balancing.slot_loads, moe.gate.linear.bias.tolist()
    moe(torch.full((4, 5), torch.nan, dtype=torch.float64))
    balancing.step()
    assert torch.equal(balancing.slot_loads, loads)
    assert moe.gate.linear.bias.tolist() == biases
