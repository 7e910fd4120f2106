"""Every solver does, move by move, what it did before its code was folded.

The numbers in same_results.json were taken at commit aebaea0; those of branch and bound on small problems later, when
it no longer began with a tabu search, and those of it and of tabu search on the larger ones when the tree was split
earlier and stamps were kept by expert. Integers and permutations must be equal, floats to a relative 1e-12: another
BLAS adds them up in another order. If a change of the numbers is meant, take new ones by ``PYTHONPATH=tests/helpers
python tests/solvers/test_same_results.py`` and say so in CHANGELOG.md.
"""

import json
from pathlib import Path

import pytest
from every_solver import PROBLEMS, SOLVERS, marks

from moe_search import problems, solve
from moe_search.solvers import MaxIterations

PATH = Path(__file__).with_name("same_results.json")
# Name of a solver and a problem -> for the seeds 0, 1, ... what `recorded` returns.
RECORDS = json.loads(PATH.read_text(encoding="utf-8"))
FIELDS = ("permutation", "value", "bound", "status", "iterations", "moves", "restarts", "statistics", "trajectory")

# They are larger than the contract's instances, and run the same compiled kernels.
LARGER = {
    "quadratic of 30": (problems.random_quadratic(30, seed=3), 20_000),
    "quadratic of 10": (problems.random_quadratic(10, seed=4), 3000),
    "pairwise of 2 x 8": (problems.random_pairwise(8, 4, seed=2, num_selectors=2), 5000),
    "mixture of 16": (problems.random_mixture(16, 8, num_samples=64, seed=1, k=2, loss="cross_entropy"), 5000),
}


def recorded(pair, seed):
    solver, name = pair.split(" on ")
    problem, iterations = LARGER[name] if name in LARGER else (PROBLEMS[name], 700)
    if solver == "default":
        result = solve(problem, None, MaxIterations(iterations), seed)
    else:
        result = SOLVERS[solver].solve(problem, MaxIterations(iterations), seed)
    numbers = {name: getattr(result, name) for name in FIELDS}
    numbers["permutation"] = result.permutation.tolist()
    numbers["trajectory"] = [[point.value, point.iteration] for point in result.trajectory]
    return list(numbers.values())


def assert_same(name, value, before):
    if isinstance(before, float):
        assert value == pytest.approx(before, rel=1e-12, abs=0.0), name
    elif isinstance(before, list):
        assert len(value) == len(before), name
        for each, each_before in zip(value, before, strict=True):
            assert_same(name, each, each_before)
    else:
        assert value == before, name


def parameter(pair):
    solver, name = pair.split(" on ")
    return pytest.param(pair, marks=marks(SOLVERS.get(solver, SOLVERS["tabu"]), name))


@pytest.mark.parametrize("pair", [parameter(pair) for pair in RECORDS])
def test_results_are_what_they_were(pair):
    for seed, before in enumerate(RECORDS[pair]):
        for name, value, value_before in zip(FIELDS, recorded(pair, seed), before, strict=True):
            assert_same(f"{name}, seed {seed}", value, value_before)


if __name__ == "__main__":
    lines = (
        f"{json.dumps(pair)}:{json.dumps([recorded(pair, seed) for seed in range(len(each))], separators=(',', ':'))}"
        for pair, each in RECORDS.items()
    )
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
