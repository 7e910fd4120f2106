"""The search of placements, against brute force."""

import subprocess
import sys

import numpy as np
import pytest
from naive_placement import devices_of, largest_load, migrations, placements

import moe_search as ms
from moe_search.solvers.heuristic.longest_processing_time import falling

# The two lines that the authors of EPLB give as an example.
EPLB_LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
EPLB_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def tiny(rng):
    """Return a tiny layer, in some cases of groups on nodes, of which all copies stay or the first; its placements."""
    while True:
        devices, experts = int(rng.integers(2, 5)), int(rng.integers(2, 7))
        groups, first_copy_only = None, False
        if devices % 2 == 0 and experts % 2 == 0 and experts > 2 and rng.random() < 0.8:
            groups = (4 if experts % 4 == 0 and rng.random() < 0.5 else 2, 2)
            first_copy_only = bool(rng.random() < 0.5)
        near = experts // (groups[1] if groups else 1)
        slots = tuple(map(int, rng.integers(1, min(3, experts if first_copy_only else near) + 1, devices)))
        parts = (slots[: devices // 2], slots[devices // 2 :]) if groups else (slots,)
        if min(map(sum, parts)) >= near:
            break
    load = rng.integers(0, 50, experts) ** int(rng.integers(1, 3))
    load[0] += 1
    cluster = ms.Cluster(devices, slots, groups[1] if groups else 1)
    every = list(placements(experts, slots, groups, first_copy_only))
    return ms.ExpertPlacement(load, cluster, groups[0] if groups else None, first_copy_only), slots, every


def solved(problem, optimum, iterations=4000):
    close = optimum + 1e-9 * abs(optimum) + 1e-9
    result = ms.solve(problem, stop=ms.AnyOf(ms.MaxIterations(iterations), ms.TargetValue(close)))
    assert result.bound <= optimum * (1 + 1e-7) + 1e-9
    assert result.value >= optimum - 1e-9 * abs(optimum) - 1e-9
    return result.value <= close


@pytest.mark.parametrize("seed", range(4))
def test_optimal_on_250_tiny_layers_and_no_bound_is_above(seed):
    rng = np.random.default_rng(seed)
    for _ in range(250):
        problem, _, every = tiny(rng)
        load = problem.load[0].tolist()
        optimum = min(largest_load(held, load) for held in every)
        assert problem.load_bounds[0] <= optimum * (1 + 1e-12)
        assert solved(problem, optimum), (load, problem)


@pytest.mark.parametrize("seed", range(4))
def test_optimal_on_250_tiny_rebalancings(seed):
    rng = np.random.default_rng(10 + seed)
    failed = []
    for n in range(250):
        problem, slots, every = tiny(rng)
        load, bound = problem.load[0].tolist(), problem.load_bounds[0]
        old = every[rng.integers(len(every))]
        options = ("budget", "tolerance", "transfer_cost")[n % 3]
        given = (int(rng.integers(1, 4)), float(rng.choice([0.0, 0.02, 0.2])), 1 + 0.1 * sum(load) * rng.random())[
            n % 3
        ]

        def cost(held, load=load, bound=bound, old=old, slots=slots, options=options, given=given):
            largest, moved = largest_load(held, load), migrations(held, old)
            if options == "budget":
                return largest if moved <= given else np.inf
            if options == "transfer_cost":
                return largest + given * moved
            return moved + sum(slots) * 1000 * max(0.0, largest / ((1 + given + 2e-9) * bound) - 1)

        rebalancing = ms.Rebalancing(problem, [e for held in old for e in held], **{options: given})
        placed = rebalancing.random_solution(rng)
        assert rebalancing.value(placed) == pytest.approx(cost(devices_of(placed.physical_to_logical[0], slots)))
        if not solved(rebalancing, min(map(cost, every))):
            failed.append((load, problem, old, options, given))
    assert failed == []


def test_the_example_of_eplb_is_better_balanced_and_proved():
    problem = ms.ExpertPlacement(EPLB_LOADS, ms.Cluster(8, 2, 2), num_groups=4)
    result = ms.solve(problem, stop=ms.MaxIterations(4000))
    assert result.value <= problem.value(EPLB_MAP)
    assert ms.Result.from_json(result.to_json()).solution.physical_to_logical.tolist() == (
        result.solution.physical_to_logical.tolist()
    )
    exact = ms.solve(problem, ms.PlacementCpSat(), ms.MaxRuntime(60.0))
    assert exact.status == "optimal"
    assert result.value == pytest.approx(exact.value, rel=1e-9)


def test_experts_by_falling_load_are_in_order_and_equals_by_number():
    rng = np.random.default_rng(0)
    for load in (
        rng.integers(0, 9, (5, 70)).astype(float),
        rng.lognormal(size=(5, 64)),
        np.array([[-0.0, 0.0, 1e-320]]),
    ):
        assert (load[np.arange(len(load))[:, None], falling(load)] == -np.sort(-load, axis=1)).all()
    few = np.array([[2.0, 1.0, 2.0, 0.0, 1.0]])
    assert falling(few).tolist() == [[0, 2, 1, 4, 3]]


def test_cp_sat_proves_placements_whose_first_copies_stay_on_nodes():
    rng = np.random.default_rng(0)
    slots = (2, 1, 2, 1)
    for _ in range(3):
        load = rng.integers(1, 60, 4)
        problem = ms.ExpertPlacement(load, ms.Cluster(4, slots, 2), 2, first_copy_only=True)
        optimum = min(largest_load(held, load.tolist()) for held in placements(4, slots, (2, 2), True))
        result = ms.solve(problem, ms.PlacementCpSat(), ms.MaxRuntime(60.0))
        assert (result.value, result.status) == (pytest.approx(optimum, rel=1e-8), "optimal")


def test_a_budget_for_all_layers_goes_where_it_gains_most():
    # Two migrations even out the second layer; in the first they gain next to nothing.
    problem = ms.ExpertPlacement([[10, 9, 9, 10], [90, 80, 10, 20]], ms.Cluster(2, 2))
    result = ms.solve(ms.Rebalancing(problem, [[0, 1, 2, 3], [0, 1, 2, 3]], budget=2), stop=ms.MaxIterations(100))
    assert {each.layer for each in result.solution.transfers} == {1}
    assert result.value == 19 + 100
    assert result.status == "optimal"


FIRST_CALL = """
import builtins, time
import moe_search as ms

load = builtins.__import__


def slowly(name, *rest):
    if name == "scipy.optimize":
        time.sleep(1.0)
    return load(name, *rest)


builtins.__import__ = slowly
cluster = ms.Cluster(4, 2, num_nodes=2)
problem = ms.ExpertPlacement([1, 2, 3, 4], cluster, num_groups=2, first_copy_only=True)
result = ms.solve(problem, stop=ms.MaxRuntime(0.5))
print(result.status, result.compile_seconds > 1.0 > result.runtime)
"""


def test_imports_of_a_first_call_are_off_the_clock():
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False)
    assert done.stdout == "optimal True\n", done.stderr


def test_slices_and_callbacks_change_nothing():
    load = np.random.default_rng(1).lognormal(size=(3, 24))
    problem, shown = ms.ExpertPlacement(load, ms.Cluster(6, 5)), []
    result = ms.solve(problem, stop=ms.MaxIterations(500), on_improvement=shown.append)
    again = ms.PlacementSearch().solve(problem, ms.MaxIterations(500))
    assert result.solution.physical_to_logical.tolist() == again.solution.physical_to_logical.tolist()
    assert [each.value for each in shown] == pytest.approx([problem.value(each.solution) for each in shown])
    values = [value for _, value in result.history]
    assert values == sorted(values, reverse=True)
    start = ms.solve(problem, ms.LongestProcessingTime())
    assert result.value <= start.value
    warm = ms.solve(problem, stop=ms.MaxIterations(0), initial=result.solution)
    assert warm.value == pytest.approx(result.value)
    with pytest.raises(ValueError, match="cannot take this LinearAssignment: it solves ExpertPlacement and Reb"):
        ms.PlacementSearch().solve(ms.random_linear(3, seed=0), ms.MaxIterations(1))


def test_loads_count_beside_migrations_that_cost_far_more():
    rng = np.random.default_rng(2)
    load = rng.dirichlet(np.ones(12))
    placement = ms.ExpertPlacement(load, ms.Cluster(num_devices=4, slots_per_device=4))
    previous = placement.random_solution(rng).physical_to_logical.copy()
    # Where a slot is empty a migration is needed.
    previous[0, 5] = -1
    problem = ms.Rebalancing(placement, previous, transfer_cost=1e9)
    result = ms.solve(problem, stop=ms.MaxIterations(1000))
    assert (result.status, result.solution.migrations) == ("feasible", 1)
    filled = np.where(previous < 0, np.arange(12)[:, None], previous)
    valid = [row for row in filled if len(set(row[4:8])) == 4 and len(set(row)) == 12]
    loads = [placement.value(row) for row in valid]
    assert placement.value(result.solution) == pytest.approx(min(loads), rel=1e-9)
    assert min(loads) < max(loads)
    assert placement.value(result.solution) > placement.load_bounds[0] * (1 + 1e-9)
