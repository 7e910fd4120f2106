import itertools

import numpy as np
import pytest
from naive_subset import Instance

import moe_search as ms
from moe_search.solvers import MaxIterations, MaxRuntime, SubsetEnumeration, SubsetSearch

KINDS = (
    {"n": 9, "keep": 4, "rows": 40, "share": "kept", "skewed": True},
    {"n": 9, "keep": 4, "rows": 40, "share": "chosen"},
    {"n": 8, "keep": 4, "rows": 40, "share": "chosen", "num_groups": 2, "open_groups": 1, "group_depth": 2},
)


def subsets(problem):
    """Every solution."""
    size = problem.num_experts // problem.num_groups
    of_group = list(itertools.combinations(range(size), problem.keep_of_group))
    for parts in itertools.product(of_group, repeat=problem.num_groups):
        yield [g * size + e for g, part in enumerate(parts) for e in part]


@pytest.mark.parametrize("kind", KINDS)
def test_enumeration_finds_the_best_of_all_and_exchanges_leave_none_better(kind):
    for seed in range(3):
        instance = Instance(seed, **kind)
        problem = instance.problem
        best = min(subsets(problem), key=instance.error)
        exact = SubsetEnumeration().solve(problem, MaxRuntime(60.0))
        assert (exact.solution.tolist(), exact.status) == (best, "optimal")
        assert exact.iterations == problem.num_subsets
        assert exact.value == exact.bound == problem.value(best)
        found = SubsetSearch().solve(problem, MaxRuntime(60.0))
        kept = set(found.solution.tolist())
        for gone, taken in itertools.product(kept, set(range(problem.num_experts)) - kept):
            other = sorted(kept - {gone} | {taken})
            if np.ptp(np.bincount(np.array(other) * problem.num_groups // problem.num_experts)) == 0:
                assert problem.value(other) >= found.value - 1e-6


def test_without_exchanges_the_least_missed_expert_goes_each_time():
    instance = Instance(1, n=8, keep=3, rows=30, share="chosen")
    kept = list(range(8))
    while len(kept) > 3:
        kept.remove(min(kept, key=lambda e: instance.error([other for other in kept if other != e])))
    greedy = SubsetSearch(exchanges=False).solve(instance.problem, MaxRuntime(60.0))
    assert greedy.value <= instance.problem.value(kept) + 1e-6
    assert greedy.moves == 5
    better = SubsetSearch().solve(instance.problem, MaxRuntime(60.0), initial=kept)
    assert better.value <= instance.problem.value(kept)


def test_it_stops_and_goes_on_from_what_it_is_given():
    problem = Instance(2, n=12, keep=6, rows=50).problem
    shown = []
    short = SubsetSearch().solve(problem, MaxIterations(5), on_improvement=shown.append)
    assert short.iterations == 5
    assert shown[0].value == short.value == problem.value(short.solution)
    longer = SubsetSearch().solve(problem, MaxRuntime(60.0), initial=short.solution)
    assert longer.value < short.value
    assert ms.Result.from_json(longer.to_json()).solution.tolist() == longer.solution.tolist()
    again = SubsetSearch().solve(problem, MaxRuntime(60.0), initial=longer.solution)
    assert (again.value, again.moves) == (longer.value, 0)


def test_solve_enumerates_where_there_is_time():
    problem = Instance(3, n=8, keep=4).problem
    assert ms.solve(problem).status == "optimal"
    assert ms.solve(problem, stop=MaxRuntime(1e-9)).solver.startswith("SubsetSearch")
    large = Instance(3, n=30, keep=15).problem
    assert ms.solve(large, stop=MaxRuntime(5.0)).solver.startswith("SubsetSearch")
    with pytest.raises(ValueError, match=r"it has 1\.55e\+08 subsets, enumeration takes 1,000,000 at most"):
        SubsetEnumeration().solve(large, MaxRuntime(1.0))
    with pytest.raises(ValueError, match="it solves ExpertSubset only"):
        SubsetSearch().solve(ms.random_linear(4, seed=0), MaxRuntime(1.0))
