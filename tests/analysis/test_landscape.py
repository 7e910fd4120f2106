"""Statistics of landscapes, against definitions in plain Python on instances that can be enumerated."""

import itertools
import math

import numpy as np
import pytest
from instances import INSTANCES, naive_value
from naive import permutations, swapped

import moe_search as ms
from moe_search.analysis import (
    autocorrelation,
    correlation_length,
    distance,
    enumerate_local_optima,
    fitness_distance,
    random_walk,
    sample_local_optima,
)

NAMES = ("linear", "quadratic", "quadratic general float", "pairwise", "mixture squared", "callable")


def neighbors(p, block):
    pairs = itertools.combinations(range(len(p)), 2)
    return [swapped(p, a, b) for a, b in pairs if a // block == b // block]


@pytest.mark.parametrize("name", NAMES)
def test_the_local_optima_are_those_of_the_definition(name):
    problem = INSTANCES[name](3)
    every = permutations(problem.size, problem.block_size)
    values = {tuple(p): naive_value(problem, p) for p in every}
    least = {
        tuple(problem.experts(p)): values[tuple(p)]
        for p in every
        if all(values[tuple(p)] <= values[tuple(q)] * (1 + 1e-11) for q in neighbors(p, problem.block_size))
    }
    optima = enumerate_local_optima(problem)
    assert {tuple(problem.experts(p)) for p in optima.permutations} == set(least)
    assert len(optima) == len(least) == optima.found.sum()
    assert optima.values.tolist() == pytest.approx(sorted(least.values()))
    assert optima.values[0] == pytest.approx(min(values.values()))


def test_the_local_optima_of_many_small_blocks():
    # 2 ** 10 permutations of 20 slots: no number of so many digits to the base 20 has 64 bits.
    problem = ms.random_pairwise(2, seed=0, num_selectors=10)
    optima = enumerate_local_optima(problem)
    values = {tuple(p): problem.value(p) for p in permutations(20, 2)}
    least = [p for p in values if all(values[p] <= values[tuple(q)] for q in neighbors(p, 2))]
    assert {tuple(p) for p in optima.permutations.tolist()} == set(least)


@pytest.mark.slow
def test_descents_end_at_local_optima_and_most_at_large_basins():
    problem = ms.random_quadratic(7, seed=2)
    every = enumerate_local_optima(problem)
    sampled = sample_local_optima(problem, 400)
    assert sampled.found.sum() == 400
    assert {tuple(p) for p in sampled.permutations} <= {tuple(p) for p in every.permutations}
    assert sampled.values.tolist() == sorted(sampled.values.tolist())
    assert sampled.values[0] == every.values[0]
    again = sample_local_optima(problem, 20, seed=5, solver=ms.LocalSearch("swap", "best"))
    assert again.found.sum() == 20
    assert len(sample_local_optima(problem, 1, seed=5)) == 1
    # A sequence spawns a seed for each, the same ones again.
    seed = np.random.SeedSequence(5)
    two, three = sample_local_optima(problem, 20, seed), sample_local_optima(problem, 21, seed)
    assert two.found.sum() + 1 == three.found.sum() == 21
    assert {tuple(p) for p in two.permutations} <= {tuple(p) for p in three.permutations}


def test_distances_count_slots_with_another_expert():
    two_slots_each = ms.LinearAssignment(np.zeros((4, 2)))
    assert distance(two_slots_each, [0, 1, 2, 3], [1, 0, 3, 2]) == 0
    assert distance(two_slots_each, [0, 1, 2, 3], [2, 1, 0, 3]) == 2


def test_fitness_and_distance_by_hand():
    # The cost is the number of slots with another expert than their own: fitness is distance.
    problem = ms.LinearAssignment(1 - np.eye(4, dtype=int))
    every = permutations(4, 4)
    found = fitness_distance(problem, every)
    assert found.distances.tolist() == found.values.tolist() == [problem.value(p) for p in every]
    assert found.correlation == pytest.approx(1.0)
    # Of two best ones the nearer counts.
    both = fitness_distance(problem, every, [[0, 1, 2, 3], [1, 0, 3, 2]])
    far = [sum(a != b for a, b in zip(p, [1, 0, 3, 2], strict=True)) for p in every]
    assert both.distances.tolist() == [min(a, b) for a, b in zip(found.values, far, strict=True)]
    assert both.correlation == pytest.approx(np.corrcoef(both.values, both.distances)[0, 1])
    assert math.isnan(fitness_distance(problem, [[0, 1, 2, 3]] * 3).correlation)


def test_autocorrelation_by_the_definition():
    values = np.random.default_rng(0).integers(0, 9, 40).tolist()
    mean = sum(values) / 40
    variance = sum((v - mean) ** 2 for v in values)
    by_hand = [
        sum((values[t] - mean) * (values[t + lag] - mean) for t in range(40 - lag)) / variance for lag in range(6)
    ]
    assert autocorrelation(values, 5).tolist() == pytest.approx(by_hand)
    assert correlation_length(values) == pytest.approx(-1 / math.log(abs(by_hand[1])))


@pytest.mark.parametrize("name", ["quadratic", "pairwise"])
def test_a_long_walk_has_the_autocorrelation_of_the_landscape(name):
    problem = INSTANCES[name](4)
    every = permutations(problem.size, problem.block_size)
    values = {tuple(p): naive_value(problem, p) for p in every}
    steps = [(values[tuple(p)] - values[tuple(q)]) ** 2 for p in every for q in neighbors(p, problem.block_size)]
    exact = 1 - np.mean(steps) / (2 * np.var(list(values.values())))
    walk = random_walk(problem, 20_000, seed=1)
    assert autocorrelation(walk, 1)[1] == pytest.approx(exact, abs=0.03)
    # One step changes two slots of one block.
    assert random_walk(problem, 50, seed=1).tolist() == walk[:1].tolist() + random_walk(problem, 50, 1)[1:].tolist()
    assert set(walk) <= set(map(float, values.values()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: enumerate_local_optima(ms.random_quadratic(10, seed=0)),
            "at most 362,880 permutations, got 3,628,800",
        ),
        (lambda: autocorrelation([1.0, 2.0], 2), r"values must be more than 2, one for each step .* shape \(2,\)"),
        (lambda: autocorrelation([1.0, math.nan, 2.0], 1), r"values must be finite, got nan at index \(1,\)"),
        (lambda: autocorrelation([1.0, 1.0, 1.0], 1), "values must differ, got equal ones"),
        (lambda: fitness_distance(ms.random_linear(3, seed=0), [0, 1, 2]), "at least two permutations in rows"),
        (lambda: random_walk(ms.random_pairwise(1, seed=0, num_selectors=2), 5), "blocks of at least two slots"),
        (
            lambda: sample_local_optima(ms.random_linear(3, seed=0), 2, seed=-1),
            "seed, unless it is a SeedSequence, must be an integer >= 0, got -1",
        ),
        (lambda: random_walk(ms.random_linear(3, seed=0), 0), "steps must be an integer >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
