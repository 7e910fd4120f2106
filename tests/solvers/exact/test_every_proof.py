"""Nothing that is called optimal, and no bound, is wrong: random small problems of every class against enumeration.

``MOE_SEARCH_PROOFS=500 pytest -s FILE`` makes 500 of each class; by default they are few.
"""

import os
from collections import Counter

import numpy as np
import pytest
from small_problems import SMALL_PROBLEMS

import moe_search as ms
from moe_search.solvers.bounds.lower_bounds import METHODS

NUMBER = int(os.environ.get("MOE_SEARCH_PROOFS", 4))
EXACT = (
    ms.BranchAndBound(),
    ms.CpSat(),
    ms.Enumeration(),
    ms.Hungarian(),
    ms.MinCostFlow(),
    ms.PlacementCpSat(),
    ms.SubsetEnumeration(),
    ms.Transport(),
)
# Parts of the largest value. Loads and migrations are rounded to one grid, of 2^-28 of the loads, where a thousandth of
# a load costs all slots; inner products of experts are kept in float32.
ROUNDING = {"rebalancing": 1e-5, "expert subset": 1e-6}


def wrong(problem, naive, values, result, tolerance):
    """Return what is wrong with a result."""
    optimum = min(values)
    found = []
    if abs(naive(result.solution) - result.value) > tolerance:
        found.append(f"its solution is worth {naive(result.solution)}")
    if result.value < optimum - tolerance:
        found.append("it is below the optimum")
    if result.bound is not None and result.bound > optimum + tolerance:
        found.append("its bound is above the optimum")
    if result.status == "optimal" and result.value > optimum + tolerance:
        found.append("it is called optimal")
    return [f"{result.solver} on {problem!r}, optimum {optimum}: {each}, {result!r}" for each in found]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SMALL_PROBLEMS)
def test_nothing_that_is_called_optimal_is_wrong(name):
    kind, proved, runs, faults = list(SMALL_PROBLEMS).index(name), Counter(), Counter(), []
    for number in range(NUMBER):
        rng = np.random.default_rng([kind, number])
        problem, naive, values = SMALL_PROBLEMS[name](rng)
        # Rounding errors are those of the terms of a sum, which cancel out.
        largest = max(*map(abs, values), problem.ordinary_value())
        tolerance = 0 if problem.integral else ROUNDING.get(name, 2e-9) * largest
        cut = ms.MaxIterations(int(rng.integers(1, 200)))
        solvers = [(solver, stop) for solver in EXACT for stop in (ms.MaxRuntime(20.0), cut)]
        for solver, stop in [*solvers, (None, cut)]:
            if solver is not None and solver.refuses(problem) is not None:
                continue
            result = ms.solve(problem, solver, stop, seed=number)
            faults += [f"{name} {number}: {each}" for each in wrong(problem, naive, values, result, tolerance)]
            label = "solve, cut" if solver is None else type(solver).__name__ + ", cut" * (stop is cut)
            runs[label] += 1
            proved[label] += result.status == "optimal"
        for method in ("auto", *METHODS):
            try:
                bound = ms.lower_bound(problem, method, seconds=float(rng.choice([0.0, 0.02])))
            except ValueError:
                continue  # The method does not take the problem.
            runs[method] += bound is not None
            if bound is not None and bound > min(values) + tolerance:
                faults.append(f"{name} {number}: {method} bound {bound} of {problem!r} above {min(values)}")
    shown = ", ".join(f"{each} {proved[each]} of {runs[each]}" for each in runs if each not in ("auto", *METHODS))
    bounds = ", ".join(f"{each} {runs[each]}" for each in ("auto", *METHODS) if runs[each])
    print(f"\n{name}: {NUMBER} problems, {len(faults)} faults. Proved: {shown}. Bounds: {bounds}.")
    assert not faults, "\n".join(faults[:20])
