import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.hash_routing import HashRouting

INPUTS = torch.zeros(3, 2)


def slots_of(gate, inputs, ids=None):
    weights = gate(inputs, ids).weights[:, 0]
    assert bool(((weights == 0) | (weights == 1)).all())
    assert weights.sum(1).tolist() == [1.0] * len(inputs)
    return weights.argmax(1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 50), st.integers(0, 10**6))
def test_ids_are_shared_out_equally(n, capacity, vocabulary, seed):
    m = n * capacity
    gate = HashRouting(n, m, vocabulary=vocabulary, seed=seed)
    counts = slots_of(gate, torch.zeros(vocabulary, 1), torch.arange(vocabulary)).bincount(minlength=m)
    assert counts.max() - counts.min() <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(0, 10**6))
def test_codes_go_to_one_slot(n, capacity, features, seed):
    gate = HashRouting(n, n * capacity, in_features=features, seed=seed)
    counts = gate.table.bincount(minlength=n * capacity)
    assert counts.max() - counts.min() <= 1
    slots_of(gate, torch.randn(9, features, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("arguments", [{"vocabulary": 1000}, {"in_features": 2}])
def test_the_seed_decides_and_the_global_generator_does_not(arguments):
    state = torch.get_rng_state()
    first, again, other = (HashRouting(8, seed=seed, **arguments) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.table, again.table)
    assert not torch.equal(first.table, other.table)


def test_table_and_projections_are_in_the_state_dict_and_not_trained():
    gate = HashRouting(4, in_features=3)
    assert set(gate.state_dict()) == {"table", "projections", "expert_map.experts"}
    assert set(HashRouting(4, vocabulary=9).state_dict()) == {"table", "expert_map.experts"}
    assert not list(gate.parameters())


def test_code_by_hand():
    gate = HashRouting(2, in_features=2)
    with torch.no_grad():
        gate.projections.zero_()
        gate.projections[0] = torch.tensor([1.0, 0.0])
        gate.projections[2] = torch.tensor([0.0, -1.0])
        gate.table.zero_()
        gate.table[5] = 1
    # Bits 0 and 2 are set for a positive first and a negative second feature: code 1 + 4.
    inputs = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [0.0, -1.0]])
    assert slots_of(gate, inputs).tolist() == [1, 0, 0, 0]


def test_scale_and_offset_of_a_sample_do_not_change_its_slot():
    gate = HashRouting(8, in_features=6).double()
    inputs = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(slots_of(gate, inputs), slots_of(gate, 3 * inputs + 7))


def test_slots_of_random_features_are_used_about_equally():
    inputs = torch.rand(4000, 20, generator=torch.Generator().manual_seed(1))  # none negative, as pixels
    counts = slots_of(HashRouting(5, in_features=20), inputs).bincount(minlength=5)
    assert counts.min() > 400
    assert counts.max() < 1600


def test_a_gate_by_id_takes_any_number_of_features():
    gate = HashRouting(4, vocabulary=10)
    ids = torch.tensor([1, 9, 1])
    assert torch.equal(slots_of(gate, torch.zeros(3, 2), ids), gate.table[ids])
    assert torch.equal(slots_of(gate, torch.zeros(3, 0), ids.to(torch.int32)), gate.table[ids])


@pytest.mark.parametrize(
    ("ids", "error", "fault"),
    [
        (None, ValueError, "ids must be given to a gate with a vocabulary of 10, got None"),
        ([0, 1, 2], TypeError, "ids must be a tensor, got list"),
        (torch.zeros(3), ValueError, "ids must hold integers, got dtype torch.float32"),
        (torch.zeros(4, dtype=torch.int64), ValueError, r"ids must have shape \(3,\), .*, got shape \(4,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), ValueError, r"ids must have shape \(3,\), .*, got shape \(3, 1\)"),
        (torch.tensor([0, 10, 2]), ValueError, r"ids must lie in 0 \.\. 9, the vocabulary, got 0 \.\. 10"),
        (torch.tensor([0, -1, 2]), ValueError, r"ids must lie in 0 \.\. 9, the vocabulary, got -1 \.\. 2"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), ValueError, "ids must be on the device .* cpu, got meta"),
    ],
)
def test_wrong_ids(ids, error, fault):
    with pytest.raises(error, match=fault):
        HashRouting(2, vocabulary=10)(INPUTS, ids)


@pytest.mark.parametrize("arguments", [{}, {"vocabulary": 5, "in_features": 2}])
def test_one_of_vocabulary_and_features(arguments):
    with pytest.raises(ValueError, match="exactly one of vocabulary and in_features must be given"):
        HashRouting(2, **arguments)


def test_wrong_vocabulary():
    with pytest.raises(ValueError, match="vocabulary must be an integer >= 1, got 0"):
        HashRouting(2, vocabulary=0)


@pytest.mark.parametrize("table", [[3, 0, 0, 1], np.array([3, 0, 0, 1], dtype=np.int32), torch.tensor([3, 0, 0, 1])])
def test_a_table_of_ones_own(table):
    gate = HashRouting(2, 4, table=table)
    assert gate.vocabulary == 4
    assert slots_of(gate, INPUTS, torch.tensor([0, 2, 3])).tolist() == [3, 0, 1]
    # Slots 0 and 1 are of expert 0, slots 2 and 3 of expert 1.
    assert gate.expert_map(gate(INPUTS, torch.tensor([0, 2, 3])).weights).tolist() == [[0, 1], [1, 0], [1, 0]]
    assert gate.state_dict()["table"].dtype == torch.int64


def test_a_table_is_copied():
    table = torch.tensor([1, 0])
    gate = HashRouting(2, table=table)
    table.zero_()
    assert gate.table.tolist() == [1, 0]


def test_a_slot_for_every_id_makes_the_expert_map_the_table():
    gate = HashRouting(3, 6, table=range(6))
    gate.expert_map.assign([[2, 0, 1, 1, 0, 2]])
    ids = torch.tensor([5, 0, 1, 2, 4, 3])
    assert gate.expert_map(gate(torch.zeros(6, 1), ids).weights).argmax(1).tolist() == [2, 2, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"table": [0.0, 1.0]}, TypeError, "table must hold integers, got dtype float64"),
        ({"table": [0, 4]}, ValueError, r"table must hold slots in 0 \.\. 3, got 0 \.\. 4"),
        ({"table": [-1, 2]}, ValueError, r"table must hold slots in 0 \.\. 3, got -1 \.\. 2"),
        ({"table": [[0, 1]]}, ValueError, r"table must have shape \[vocabulary\], got shape \(1, 2\)"),
        ({"table": np.zeros(0, dtype=int)}, ValueError, r"table must have shape \[vocabulary\], got shape \(0,\)"),
        ({"table": [0, 1], "vocabulary": 3}, ValueError, "got 2 entries for vocabulary=3 and in_features=None"),
        ({"table": [0, 1], "in_features": 3}, ValueError, "got 2 entries for vocabulary=None and in_features=3"),
    ],
)
def test_wrong_tables(arguments, error, fault):
    with pytest.raises(error, match=fault):
        HashRouting(2, 4, **arguments)


@pytest.mark.parametrize("wrong", [-1, 10])
def test_wrong_ids_are_refused_in_a_compiled_graph_too(wrong):
    torch.compiler.reset()
    compiled = torch.compile(HashRouting(2, vocabulary=10), fullgraph=True, backend="eager")
    assert compiled(INPUTS, torch.tensor([0, 1, 9])).weights.shape == (3, 1, 2)
    with pytest.raises((IndexError, RuntimeError)):
        compiled(INPUTS, torch.tensor([0, 1, wrong]))
