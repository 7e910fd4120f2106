"""What a placement is, what it is worth, and what is none."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import moe_search as ms


def test_a_placement_worked_out_by_hand():
    # Expert 0 has two replicas of 4, expert 1 one of 6; the devices bear 4 + 6, 4 + 1 and 2.
    problem = ms.ExpertPlacement([8, 6, 1, 2], ms.Cluster(3, [2, 2, 1]))
    placement = problem.check_solution([0, 1, 2, 0, 3])
    assert problem.value([0, 1, 2, 0, 3]) == problem.value(placement) == 10.0
    assert placement.replica_count.tolist() == [[2, 1, 1, 1]]
    assert placement.logical_to_physical.tolist() == [[[0, 3], [1, -1], [2, -1], [4, -1]]]
    assert placement.balancedness.tolist() == [17 / 3 / 10]
    assert (placement.migrations, placement.transfers) == (0, ())
    assert not placement.physical_to_logical.flags.writeable


def test_windows_are_added_up_and_layers_run_one_after_the_other():
    windows = np.array([[[1, 0], [5, 1]], [[2, 3], [0, 1]]])
    problem = ms.ExpertPlacement(windows, ms.Cluster(2, 1))
    assert problem.load.tolist() == [[3.0, 3.0], [5.0, 2.0]]
    assert problem.value([[0, 1], [1, 0]]) == 8.0
    assert problem.load_bounds.tolist() == pytest.approx([3.0, 5.0])


def test_bounds_worked_out_by_hand():
    # The mean; two replicas of 10 at most; with one slot a device there is nothing to choose; the heaviest has a
    # neighbor.
    for load, slots, bound in (
        ([4, 4, 2, 2], [2, 2], 6.0),
        ([10, 1, 1], [2, 2], 6.0),
        ([9, 2, 1], [1, 1, 1], 9.0),
        ([6, 5, 4, 1, 1, 1], [2, 2, 2], 7.0),
    ):
        bounds = ms.ExpertPlacement(load, ms.Cluster(len(slots), slots)).load_bounds
        assert bounds == pytest.approx([bound], rel=1e-8), load


def test_an_optimum_is_called_optimal_and_ends_the_search():
    # The bound is found by bisection: it is nearer to the optimum than what counts as equal.
    rng = np.random.default_rng(0)
    loads = [[1, 0, 1, 1], *rng.integers(0, 3, (200, 4))]
    for load in loads:
        problem = ms.ExpertPlacement(np.maximum(load, [1, 0, 0, 0]), ms.Cluster(2, 2))
        optimum = min(map(problem.value, ([0, 1, 2, 3], [0, 2, 1, 3], [0, 3, 1, 2])))
        if problem.load_bounds[0] > 0.999 * optimum:
            assert ms.solve(problem, stop=ms.MaxIterations(100)).status == "optimal", load


def test_groups_stay_on_nodes():
    problem = ms.ExpertPlacement([8, 8, 1, 1], ms.Cluster(2, 2, num_nodes=2), num_groups=2)
    assert problem.value([0, 1, 2, 3]) == 16.0
    assert problem.load_bounds.tolist() == pytest.approx([16.0])
    with pytest.raises(ValueError, match=r"must hold all copies of all experts of a group on one node, .* in layer 0"):
        problem.value([0, 2, 1, 3])
    # Of ten pairs of groups, the least largest pair is that of equal sums.
    loads = np.repeat([1, 2, 3, 4], 2)
    four = ms.ExpertPlacement(loads, ms.Cluster(4, 2, num_nodes=2), num_groups=4)
    assert four.load_bounds == pytest.approx([5.0])
    assert four.homes.tolist() in ([[0, 1, 1, 0]], [[1, 0, 0, 1]])


def test_only_the_first_copies_stay_on_nodes():
    # The node of the heavy group keeps a copy of each of its experts; further ones relieve it.
    cluster = ms.Cluster(4, 2, num_nodes=2)
    problem = ms.ExpertPlacement([8, 6, 1, 1], cluster, num_groups=2, first_copy_only=True)
    assert problem.value([0, 1, 1, 0, 2, 3, 0, 1]) == pytest.approx(8 / 3 + 6 / 3)
    assert problem.homes_of(np.array([[0, 1, 1, 0, 2, 3, 0, 1]])).tolist() == [[0, 1]]
    assert problem.homes_of(np.array([[0, 2, 1, 3, 0, 2, 1, 3]])).tolist() in ([[0, 1]], [[1, 0]])
    with pytest.raises(ValueError, match="must hold a copy of every expert of a group on one node, equally many"):
        problem.value([0, 2, 0, 2, 1, 3, 1, 3])
    strict = ms.ExpertPlacement(problem.load, cluster, num_groups=2)
    assert problem.load_bounds == pytest.approx([4.0])
    assert strict.load_bounds == pytest.approx([7.0])
    # Without further copies there is no difference.
    full = [ms.ExpertPlacement([8, 6, 1, 1], ms.Cluster(2, 2, 2), 2, first) for first in (True, False)]
    assert full[0].load_bounds.tolist() == full[1].load_bounds.tolist()
    assert repr(full[0]).endswith("num_groups=2, first_copy_only=True)")


@pytest.mark.parametrize(("groups", "first_copy_only"), [(None, False), (4, False), (4, True)])
def test_random_solutions_are_placements(groups, first_copy_only):
    rng = np.random.default_rng(0)
    cluster = ms.Cluster(4, (3, 4, 3, 4), num_nodes=2)
    problem = ms.ExpertPlacement(rng.random((3, 8)) + 0.1, cluster, groups, first_copy_only)
    for _ in range(20):
        placement = problem.random_solution(rng)
        assert problem.value(placement) >= problem.load_bounds.sum() * (1 - 1e-12)


@pytest.mark.parametrize(
    ("load", "cluster", "groups", "message"),
    [
        ([1, -2, 3], (3, 1), None, r"load must not be negative, got -2 at index \(1,\)"),
        ([1.0, np.nan], (2, 1), None, r"load must be finite, got nan at index \(1,\)"),
        (
            [[1, 2], [0, 0]],
            (2, 1),
            None,
            "load must be above 0, .* for some expert of every layer, got 0 at most in layer 1",
        ),
        ([[1, 2], [3]], (2, 1), None, "load must be an array, got lists of unequal lengths"),
        ([1e308, 1e308], (2, 1), None, r"load must have a sum of at most 1e\+300, got inf"),
        # Doubled, or raised by a quarter, these leave the range of floats.
        ([1.7e308, 1e306, 1e306, 0.0], (4, 1), None, r"load must have a sum of at most 1e\+300, got 1.72e\+308"),
        ([3e-310, 1e-310, 0.0], (2, 2), None, "load must be above 0, 1e-290 or more, .* got 3e-310 at most in layer 0"),
        (3.0, (2, 1), None, r"load must have shape \(experts,\), .* got shape \(\)"),
        ([1, 2, 3], (2, 1), None, "the devices must have a slot for each of 3 experts, got 2 slots"),
        ([1, 2], (2, 3), None, "a device must have at most one slot for each of the 2 experts .* got 3 slots"),
        ([1, 2, 3, 4], (4, 1, 2), 3, "num_groups must divide the number of experts, 4, .* num_nodes, 2; got 3"),
        ([1, 2, 3], (3, 1), 2, "num_groups must divide the number of experts, 3, .* got 2"),
        ([1, 2, 3, 4], (4, 1, 2), 0, "num_groups must be an integer >= 1, got 0"),
        ([1, 2, 3, 4], (2, (3, 1), 2), 2, "every node must have a slot for each of the 2 experts .* one of 1 slots"),
    ],
)
def test_bad_problems_are_refused_in_a_sentence(load, cluster, groups, message):
    with pytest.raises(ValueError, match=message):
        ms.ExpertPlacement(load, ms.Cluster(*cluster), groups)


def test_first_copies_have_groups():
    with pytest.raises(ValueError, match="first_copy_only must be given with num_groups, got it without"):
        ms.ExpertPlacement([1, 2], ms.Cluster(2, 1), first_copy_only=True)


def test_a_cluster_in_another_process_is_of_the_same_types():
    cluster = ms.Cluster(2, (2, 3))
    for made in (cluster, pickle.loads(pickle.dumps(cluster))):
        # What was cached stays behind: arrays that can be written to are another type to kernels.
        assert made == cluster
        assert made.first_slots.tolist() == [0, 2, 5]
        assert not made.first_slots.flags.writeable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 2, 2), "num_devices must be a multiple of num_nodes, 2, got 3"),
        ((0, 2), "num_devices must be an integer >= 1, got 0"),
        ((2, (2, 0)), "slots_per_device must be an integer >= 1, got 0"),
        ((2, np.array(0)), "slots_per_device must be an integer >= 1, got 0"),
        ((2, (1, 2, 3)), "slots_per_device must hold a number for each of 2 devices, got 3"),
    ],
)
def test_bad_clusters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ms.Cluster(*arguments)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ([0, 1, 2], r"initial must have shape \(1, 4\), layers and slots, got shape \(3,\)"),
        ([0, 1, 2, 3], r"initial must hold experts 0 .. 2, got 0 .. 3"),
        ([0, 1, 0, 1], "initial must hold every expert, expert 2 is missing in layer 0"),
        ([0, 0, 1, 2], "initial must hold no expert twice on a device, one is in layer 0"),
    ],
)
def test_what_is_no_placement_is_told(experts, message):
    problem = ms.ExpertPlacement([1, 2, 3], ms.Cluster(2, 2))
    with pytest.raises(ValueError, match=message):
        problem.check_solution(experts, "initial")
    with pytest.raises(TypeError, match="initial must hold integers, got dtype float64"):
        problem.check_solution([0.5, 1, 0, 2], "initial")


def test_two_processes_find_the_same_map():
    code = (
        "import json, numpy as np, moe_search as ms;"
        "load = np.random.default_rng(5).lognormal(size=(4, 32));"
        "result = ms.solve(ms.ExpertPlacement(load, ms.Cluster(8, 5, 2), 4), stop=ms.MaxIterations(300));"
        "print(json.dumps(result.solution.physical_to_logical.tolist()))"
    )
    maps = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code],
                check=True,
                capture_output=True,
                text=True,
                env=os.environ | {"PYTHONHASHSEED": seed, "NUMBA_NUM_THREADS": threads},
            ).stdout
        )
        for seed, threads in (("1", "1"), ("2", "2"))
    ]
    assert maps[0] == maps[1]
