"""What a division of neurons is worth, and what is none."""

import pickle

import numpy as np
import pytest
from naive_partition import divisions, lost_mass, most_massive, squared_error

import moe_search as ms


def made(seed, rows=5, neurons=6, num_experts=3, active=1, shared=0, error=False):
    rng = np.random.default_rng(seed)
    activations, weights = rng.standard_normal((rows, neurons)), rng.standard_normal((4, neurons))
    mass = (activations * np.linalg.norm(weights, axis=0)) ** 2
    given = {"activations": activations, "output_weights": weights} if error else {}
    return ms.NeuronPartition(mass, num_experts, active, shared, **given)


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_values_and_bound_of_all_divisions(seed, shared):
    lost, error = (made(seed, shared=shared, active=2, error=each) for each in (False, True))
    mass = lost.mass.tolist()
    assert lost.shared_neurons.tolist() == most_massive(mass, shared)
    least = np.inf
    for experts in divisions(6, 3, lost.shared_neurons):
        value = lost.value(experts)
        assert value == pytest.approx(lost_mass(mass, experts, 3, 2))
        assert error.value(experts) == pytest.approx(
            squared_error(mass, error.activations.tolist(), error.output_weights.tolist(), experts, 3, 2)
        )
        least = min(least, value)
    assert 0 < lost.value_range()[0] <= least + 1e-12
    assert error.value_range()[0] == 0


def test_orthogonal_outputs_lose_their_mass_alone():
    rng = np.random.default_rng(0)
    activations, lengths = rng.standard_normal((7, 8)), rng.random(8)
    mass = (activations * lengths) ** 2
    lost = ms.NeuronPartition(mass, 4, 2)
    error = ms.NeuronPartition(mass, 4, 2, 0, activations, np.diag(lengths))
    for _ in range(5):
        experts = lost.random_solution(rng)
        assert error.value(experts) == pytest.approx(lost.value(experts))


def test_random_divisions_and_pickles():
    problem = made(0, neurons=8, shared=2, error=True)
    experts = problem.random_solution(np.random.default_rng(0))
    assert sorted(experts.tolist()) == [-1, -1, 0, 0, 1, 1, 2, 2]
    again = pickle.loads(pickle.dumps(problem))
    assert again.value(experts) == problem.value(experts)
    assert repr(again) == "NeuronPartition(8 neurons to 3 experts, 1 active, 2 shared, error of 5 rows)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0, -2.0]], 2, 1), "mass must not be negative, got -2"),
        (([[0.0, 0.0]], 2, 1), "mass must be above 0 for some row and neuron, got zeros only"),
        (([[1e308, 1e308]], 2, 1), r"the sum of mass may exceed 1e\+36, which single precision holds with room"),
        (([[1.0, 2.0]], 2, 1, 0, [[1e308, 1.0]], [[1e308, 1.0]]), r"the squared size of all outputs may exceed 1e\+36"),
        (([[1.0, 2.0]], 2, 2), "active must be below num_experts, 2, got 2"),
        (([[1.0, 2.0, 3.0]], 2, 1), "num_experts must divide the neurons that are not shared, 3 - 0, got 2"),
        (([[1.0, 2.0]], 2, 1, 2), "num_experts must divide the neurons that are not shared, 2 - 2, got 2"),
        (([[1.0, 2.0]], 2, 1, 0, [[1.0, 2.0]]), "activations and output_weights must be given together, got one"),
        (([[1.0, 2.0]], 2, 1, 0, [[1.0]], [[1.0, 1.0]]), r"activations must have the shape of mass, \(1, 2\), got"),
        (
            ([[1.0, 2.0]], 2, 1, 0, [[1.0, 2.0]], [[1.0]]),
            r"output_weights must have shape \(outputs, 2\), got",
        ),
    ],
)
def test_bad_problems_are_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        ms.NeuronPartition(*arguments)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([0, 1, 2], r"solution must have shape \(6,\), the expert of every neuron, got \(3,\)"),
        ([0, 1, 2, 0, 1, 3], "solution must hold experts 0 .. 2, or -1 for shared, got 0 .. 3"),
        ([0, 1, 2, 0, 1, -1], "solution must have -1 at the 0 neurons of the greatest mass"),
        ([0, 0, 0, 1, 1, 2], r"solution must give every expert 2 neurons, got \[3, 2, 1\]"),
    ],
)
def test_what_is_no_division_is_told(experts, message):
    with pytest.raises(ValueError, match=message):
        made(0).value(experts)
    with pytest.raises(TypeError, match="initial must hold integers, got dtype float64"):
        made(0).check_solution([0.5] * 6, "initial")
