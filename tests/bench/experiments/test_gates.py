import numpy as np
import pytest
import torch

from moe_search.bench.experiments.gates import ClusterGate, TaskGate, make_task_gate
from moe_search.bench.experiments.pretraining import clusters_of, warm_up
from moe_search.gates import COMET, HashRouting, TopK


def blobs(count=4, each=40):
    generator = torch.Generator().manual_seed(0)
    parts = torch.arange(count).repeat_interleave(each)
    return torch.eye(count)[parts] + 0.1 * torch.randn(len(parts), count, generator=generator), parts


def test_the_nearest_centre_is_the_slot():
    gate = ClusterGate(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]]), num_experts=2)
    weights = gate(torch.tensor([[1.0, 1.0], [9.0, 2.0], [4.0, 9.0]])).weights
    assert weights.shape == (3, 1, 4)
    assert weights[:, 0].argmax(1).tolist() == [0, 1, 2]
    assert weights.sum(2).tolist() == [[1.0], [1.0], [1.0]]
    assert list(gate.state_dict()) == ["centres", "expert_map.experts"]
    with pytest.raises(ValueError, match=r"inputs must have shape \[\.\.\., 2\]"):
        gate(torch.zeros(1, 3))


def test_clusters_are_those_of_the_data():
    inputs, parts = blobs()
    found, centres = clusters_of(inputs, 4, seed=0, restarts=5)
    pairs = set(zip(parts.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 4
    assert torch.equal(torch.cdist(inputs, centres).argmin(1), found)
    assert torch.equal(found, clusters_of(inputs, 4, seed=0, restarts=5)[0])


@pytest.mark.parametrize(("gate", "k"), [(TopK, 2), (COMET, 2), (COMET, 1)])
def test_a_warm_gate_sends_part_j_to_slot_j(gate, k):
    inputs, parts = blobs()
    torch.manual_seed(0)
    made = gate(4, 4, k, num_slots=8)
    warm_up(made, inputs, parts + 2, steps=300, learning_rate=0.01, batch_size=32, seed=0)
    first = made.eval()(inputs).weights.sum(1).argmax(1)
    assert (first == parts + 2).double().mean() > 0.9


def test_a_gate_with_nothing_to_learn_stays():
    gate = ClusterGate(torch.eye(2), num_experts=2)
    before = {name: value.clone() for name, value in gate.state_dict().items()}
    warm_up(gate, torch.zeros(3, 2), torch.zeros(3).long(), steps=3, learning_rate=0.1, batch_size=2, seed=0)
    assert all(np.array_equal(before[name], value) for name, value in gate.state_dict().items())


def test_a_gate_of_tasks_looks_at_nothing_else():
    gate = TaskGate(TopK(5, 4, 2))
    ids = torch.tensor([0, 3, 0])
    weights = gate(torch.randn(3, 7), ids).weights
    assert torch.equal(weights[0], weights[2])
    assert torch.equal(weights, gate(torch.zeros(3, 2), ids).weights)
    assert gate.expert_map is gate.gate.expert_map
    assert [name for name in gate.state_dict() if "experts" in name] == ["gate.expert_map.experts"]
    with pytest.raises(ValueError, match="ids must be given to a gate of tasks, got None"):
        gate(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="gate must take features, one for each task, got a HashRouting"):
        TaskGate(HashRouting(4, vocabulary=5))


def test_unknown_task_gate():
    with pytest.raises(ValueError, match=r"gate must be one of Softmax, Hash, Top-k, .* got 'magic'"):
        make_task_gate("magic", 4, 2, 4)
