"""Proved placements, against brute force."""

import numpy as np
import pytest
from naive_placement import devices_of, largest_load, migrations, placements

import moe_search as ms
from moe_search.solvers.bounds.replica_counts import possible_counts


@pytest.mark.parametrize(("slots", "groups"), [((2, 2, 2), None), ((3, 1, 2), None), ((2, 1, 2, 1), (2, 2))])
def test_proves_the_optimum_of_brute_force(slots, groups):
    rng = np.random.default_rng(0)
    for _ in range(3):
        load = rng.integers(1, 60, (2, 4))
        problem = ms.ExpertPlacement(
            load, ms.Cluster(len(slots), slots, groups[1] if groups else 1), groups[0] if groups else None
        )
        every = list(placements(4, slots, groups))
        optimum = sum(min(largest_load(held, row) for held in every) for row in load.tolist())
        result = ms.solve(problem, ms.PlacementCpSat(), ms.MaxRuntime(60.0))
        assert (result.value, result.bound) == pytest.approx((optimum, optimum), rel=1e-8)
        assert result.status == "optimal"


def test_what_is_too_large_is_refused_and_no_time_gives_the_construction():
    load = np.random.default_rng(0).lognormal(size=(1, 64))
    large = ms.ExpertPlacement(load, ms.Cluster(32, 3))
    twice = ms.ExpertPlacement(np.repeat(load, 2, axis=0), ms.Cluster(32, 3))
    moving = ms.Rebalancing(twice, twice.random_solution(np.random.default_rng(0)), budget=9)
    with pytest.raises(ValueError, match="its model would have 131,072 terms, 50,000 at most"):
        ms.solve(moving, ms.PlacementCpSat())
    with pytest.raises(ValueError, match="the model of a layer would have 65,536 terms, 50,000 at most"):
        ms.solve(large, ms.PlacementCpSat())
    small = ms.ExpertPlacement(load[:, :12], ms.Cluster(4, 4))
    result = ms.solve(small, ms.PlacementCpSat(), ms.MaxRuntime(0.0))
    assert result.value == ms.solve(small, ms.LongestProcessingTime()).value


def test_two_slots_a_device_are_proved_by_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(20):
        devices = int(rng.integers(2, 5))
        experts = int(rng.integers(2, min(2 * devices, 5) + 1))
        load = rng.integers(0, 60, experts) ** int(rng.integers(1, 3))
        load[0] += 1
        optimum = min(largest_load(held, load.tolist()) for held in placements(experts, (2,) * devices))
        result = ms.solve(ms.ExpertPlacement(load, ms.Cluster(devices, 2)), ms.PlacementCpSat(), ms.MaxRuntime(60.0))
        assert (result.value, result.bound) == pytest.approx((optimum, optimum), rel=1e-8), load
        assert result.status == "optimal"


def test_many_devices_of_two_slots_are_bounded_and_solved():
    load = np.arange(1.0, 65.0) ** -0.5
    problem = ms.ExpertPlacement(load, ms.Cluster(40, 2))
    search = ms.solve(problem, stop=ms.MaxIterations(2000))
    result = ms.solve(problem, ms.PlacementCpSat(), ms.MaxRuntime(60.0))
    assert result.value <= search.value
    assert result.bound > problem.load_bounds[0] * 1.01
    assert result.gap < 1e-3
    assert result.value == pytest.approx(problem.largest_loads(result.solution.physical_to_logical)[0])


def test_numbers_of_replicas_are_possible_exactly_where_a_placement_is():
    rng = np.random.default_rng(2)
    for _ in range(60):
        devices, experts = 3, int(rng.integers(3, 6))
        load = rng.random(experts) + 0.05
        every = [largest_load(held, load.tolist()) for held in placements(experts, (2,) * devices)]
        counts = possible_counts(load, devices, min(every))
        assert counts is not None
        assert counts.least_slots <= 2 * devices + 1e-6
        below = possible_counts(load, devices, 0.5 * min(every))
        assert below is None or below.least_slots > experts


@pytest.mark.parametrize("option", ["budget", "tolerance", "transfer_cost"])
@pytest.mark.parametrize(("slots", "groups"), [((2, 2, 2), None), ((2, 1, 2, 1), (2, 2))])
def test_proves_the_optimal_rebalancing_of_two_layers(slots, groups, option):
    rng = np.random.default_rng(3)
    every = list(placements(4, slots, groups))
    for _ in range(3):
        load = rng.integers(1, 60, (2, 4))
        cluster = ms.Cluster(len(slots), slots, groups[1] if groups else 1)
        problem = ms.ExpertPlacement(load, cluster, groups[0] if groups else None)
        old = [every[k] for k in rng.integers(0, len(every), 2)]
        given = {"budget": int(rng.integers(1, 5)), "tolerance": 0.05, "transfer_cost": 0.05 * load.sum()}[option]
        moved = [[migrations(held, before) for held in every] for before in old]
        largest = [[largest_load(held, row) for held in every] for row in load.tolist()]
        if option == "budget":
            best = [min(x for x, m in zip(largest[1], moved[1], strict=True) if m <= left) for left in range(given + 1)]
            optimum = min(x + best[given - m] for x, m in zip(largest[0], moved[0], strict=True) if m <= given)
        elif option == "tolerance":
            limits = problem.load_bounds * (1 + given + 2e-9)
            optimum = sum(
                min(m + sum(slots) * 1000 * max(0.0, x / limit - 1) for x, m in zip(*layer, strict=True))
                for *layer, limit in zip(largest, moved, limits, strict=True)
            )
        else:
            layers = zip(largest, moved, strict=True)
            optimum = sum(min(x + given * m for x, m in zip(*layer, strict=True)) for layer in layers)
        previous = [[e for each in held for e in each] for held in old]
        rebalancing = ms.Rebalancing(problem, previous, **{option: given})
        result = ms.solve(rebalancing, ms.PlacementCpSat(), ms.MaxRuntime(60.0))
        assert (result.value, result.bound) == pytest.approx((optimum, optimum), rel=1e-6)
        assert result.status == "optimal"
        after = [devices_of(row, slots) for row in result.solution.physical_to_logical.tolist()]
        assert result.solution.migrations == sum(map(migrations, after, old))
        early = ms.solve(rebalancing, ms.PlacementCpSat(), ms.MaxRuntime(0.0))
        assert early.bound <= optimum * (1 + 1e-9) <= early.value * (1 + 1e-6)
