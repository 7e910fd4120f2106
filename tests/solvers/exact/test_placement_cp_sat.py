"""Proved placements, against brute force."""

import numpy as np
import pytest
from naive_placement import largest_load, placements

import moe_search as ms


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
    with pytest.raises(ValueError, match="the model of a layer would have 65,536 terms, 50,000 at most"):
        ms.solve(large, ms.PlacementCpSat())
    small = ms.ExpertPlacement(load[:, :12], ms.Cluster(4, 4))
    result = ms.solve(small, ms.PlacementCpSat(), ms.MaxRuntime(0.0))
    assert result.value == ms.solve(small, ms.LongestProcessingTime()).value
