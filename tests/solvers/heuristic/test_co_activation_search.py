"""The search for few devices a token, against brute force."""

import numpy as np
import pytest
from naive_placement import few_units, placements

import moe_search as ms


def tiny(rng):
    """Return a tiny problem of one layer, and its naive value of a placement."""
    slots = [(2, 2), (3, 3), (2, 2, 2), (1, 2, 3), (2, 2, 1, 1)][rng.integers(5)]
    experts, nodes = sum(slots), 2 if len(slots) % 2 == 0 and rng.random() < 0.5 else 1
    chosen = int(rng.integers(2, min(4, experts) + 1))
    tokens = np.array([rng.choice(experts, chosen, replace=False) for _ in range(rng.integers(3, 15))])
    load = rng.integers(1, 9, experts) if rng.random() < 0.5 else np.bincount(tokens.ravel(), minlength=experts)
    tolerance, unit = float(rng.choice([0.05, 0.3])), "node" if nodes == 2 else "device"
    given = {"tokens": tokens}
    sets = [(set(token), 1) for token in tokens.tolist()]
    if rng.random() < 0.4:
        pairs = np.zeros((experts, experts), dtype=np.int64)
        for token in tokens:
            pairs[np.ix_(token, token)] += 1
        given = {"pairs": pairs}
        sets = [({e, f}, int(pairs[e, f])) for e in range(experts) for f in range(e)]
    problem = ms.CoActivation(ms.Cluster(len(slots), slots, nodes), **given, load=load, tolerance=tolerance, unit=unit)
    near = len(slots) // nodes if unit == "node" else 1
    limit = (1 + tolerance + 2e-9) * problem.placement.load_bounds[0]

    def naive(held):
        return few_units(held, sets, load.tolist(), limit, near) - ("pairs" in given)

    return problem, naive, list(placements(experts, slots))


@pytest.mark.parametrize("seed", range(2))
def test_optimal_on_100_tiny_problems_and_no_bound_is_above(seed):
    rng = np.random.default_rng(seed)
    for _ in range(100):
        problem, naive, every = tiny(rng)
        held = every[rng.integers(len(every))]
        assert problem.value([e for each in held for e in each]) == pytest.approx(naive(held))
        optimum = min(map(naive, every))
        result = ms.solve(problem, stop=ms.AnyOf(ms.MaxIterations(2000), ms.TargetValue(optimum + 1e-9)))
        assert problem.value_range()[0] == result.bound <= optimum + 1e-9
        assert result.value == pytest.approx(optimum, abs=1e-9), problem
        assert result.value == pytest.approx(result.trajectory[-1].value, abs=1e-9)
        assert max(map(naive, every)) <= problem.value_range()[1]


def test_what_is_reported_is_what_is_found_in_slices_too():
    rng = np.random.default_rng(2)
    tokens = np.argsort(rng.random((3, 200, 24)) + 0.8 * (np.arange(24) % 6 == rng.integers(0, 6, (3, 200, 1))), axis=2)
    problem, shown = ms.CoActivation(ms.Cluster(6, 4), tokens[..., -4:], tolerance=0.2), []
    result = ms.solve(problem, stop=ms.MaxIterations(150), seed=3, on_improvement=shown.append)
    again = ms.CoActivationSearch().solve(problem, ms.MaxIterations(150), seed=3)
    assert result.solution.physical_to_logical.tolist() == again.solution.physical_to_logical.tolist()
    assert [each.value for each in shown] == pytest.approx([problem.value(each.solution) for each in shown])
    values = [value for _, value in result.history]
    assert values == sorted(values, reverse=True)
    # The groups of four experts that tokens like to choose together are found, and no device is above the limit.
    assert result.value <= problem.value(np.tile(np.arange(24).reshape(4, 6).T.ravel(), (3, 1))) + 1e-9
    assert (result.solution.balancedness > 1 / 1.2001).all()
    warm = ms.solve(problem, stop=ms.MaxIterations(3), initial=result.solution)
    assert warm.value <= result.value
    assert ms.Result.from_json(result.to_json()).value == result.value
    with pytest.raises(ValueError, match="cannot take this ExpertPlacement: it solves CoActivation only"):
        ms.CoActivationSearch().solve(problem.placement, ms.MaxIterations(1))
