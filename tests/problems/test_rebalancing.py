"""What migrations are, and what they cost."""

import numpy as np
import pytest

import moe_search as ms

PLACEMENT = ms.ExpertPlacement([8, 6, 1, 2], ms.Cluster(3, 2, 1))
OLD = [0, 1, 2, 0, 3, 2]


def test_values_worked_out_by_hand():
    # The largest load was 4 + 6; now 4 + .5, 4 + .5 and 6 + 2, for expert 2 on device 0 and expert 1 on device 2.
    new = [0, 2, 2, 0, 3, 1]
    assert PLACEMENT.value(OLD) == 10.0
    assert PLACEMENT.load_bounds == pytest.approx([17 / 3])
    assert ms.Rebalancing(PLACEMENT, OLD, budget=2).value(new) == 8.0
    assert ms.Rebalancing(PLACEMENT, OLD, transfer_cost=0.5).value(new) == 9.0
    assert ms.Rebalancing(PLACEMENT, OLD, tolerance=0.5).value(new) == 2.0
    # Above 1.1 * 17 / 3 a layer pays its six slots for each thousandth.
    above = ms.Rebalancing(PLACEMENT, OLD, tolerance=0.1).value(new)
    assert above == pytest.approx(2 + 6 * 1000 * (8 / (1.1 * 17 / 3) - 1), rel=1e-6)
    with pytest.raises(ValueError, match="solution must have at most 1 migrations, got 2"):
        ms.Rebalancing(PLACEMENT, OLD, budget=1).value(new)


def test_transfers_come_from_the_own_node_and_what_stays_keeps_its_slot():
    placement = ms.ExpertPlacement([1, 1, 1, 1], ms.Cluster(4, 2, 2))
    old = [0, 1, 2, 3, 0, 1, 2, 3]
    problem = ms.Rebalancing(placement, old, budget=8)
    moved = problem.check_solution([0, 1, 2, 3, 0, 1, 1, 2])
    assert moved.transfers == (ms.Transfer(layer=0, expert=1, source=2, target=3),)
    assert moved.physical_to_logical.tolist() == [[0, 1, 2, 3, 0, 1, 2, 1]]
    assert moved.migrations == 1
    far = problem.check_solution([0, 1, 3, 0, 0, 1, 2, 3])
    assert far.transfers == (ms.Transfer(0, 0, 0, 1),)


def test_old_maps_that_are_no_placements_are_mended():
    # One slot is empty and a device holds an expert twice: experts 2 and 3, which are nowhere, come there.
    problem = ms.Rebalancing(ms.ExpertPlacement([8, 6, 1, 2], ms.Cluster(2, 3)), [0, 0, 1, 1, -1, 0], budget=2)
    assert sorted(problem.start[0].tolist()) == [0, 0, 1, 1, 2, 3]
    assert problem.migrations(problem.start).tolist() == [2]
    moved = problem.placed(problem.start)
    assert {(each.expert, each.source) for each in moved.transfers} == {(2, -1), (3, -1)}
    with pytest.raises(ValueError, match=r"budget must be at least 2, the migrations found to mend the .* got 1"):
        ms.Rebalancing(problem.placement, [0, 0, 1, 1, -1, 0], budget=1)


def test_maps_that_know_no_groups_are_mended_to_keep_them_on_nodes():
    rng = np.random.default_rng(0)
    free = ms.ExpertPlacement(rng.random((5, 8)) + 0.1, ms.Cluster(4, 3, 2))
    previous, empty = free.random_solution(rng), np.full((5, 12), -1)
    most = []
    for first_copy_only in (False, True):
        grouped = ms.ExpertPlacement(free.load, free.cluster, 4, first_copy_only)
        for old in (previous, empty):
            problem = ms.Rebalancing(grouped, old, tolerance=0.1)
            grouped.check_map(problem.start)
            most.append(problem.migrations(problem.start).max())
    # What may be anywhere stays where it is.
    assert most[2] < most[0] <= 9
    assert most[1] == most[3] == 12


@pytest.mark.parametrize(
    ("previous", "options", "message"),
    [
        ([0, 1, 2], {"budget": 1}, r"previous must have shape \(1, 6\), layers and slots, got shape \(3,\)"),
        ([[0, 1, 2], [3]], {"budget": 1}, "previous must be an array, got lists of unequal lengths"),
        ([0, 1, 2, 3, 4, 0], {"budget": 1}, r"previous must hold experts 0 .. 3 of this model, .* got 0 .. 4"),
        (OLD, {"budget": 0}, "budget must be an integer >= 1, got 0"),
        (OLD, {"tolerance": -0.1}, "tolerance must be a finite number >= 0, got -0.1"),
        (OLD, {"transfer_cost": 0.0}, "transfer_cost must be a finite number > 0, got 0"),
        (OLD, {}, "one of budget, tolerance and transfer_cost must be given, got none"),
        (OLD, {"tolerance": 0.1, "budget": 3}, "tolerance must be given without budget and transfer_cost"),
    ],
)
def test_bad_arguments_are_refused(previous, options, message):
    with pytest.raises(ValueError, match=message):
        ms.Rebalancing(PLACEMENT, previous, **options)
