"""A plain Python function as a problem: what it raises, slow ones, what is refused."""

import re
import time

import pytest

import moe_search as ms
from moe_search.solvers import MaxIterations, MaxRuntime

SOLVERS = [
    ms.LocalSearch("both", "best"),
    ms.IteratedLocalSearch(),
    ms.SimulatedAnnealing(),
    ms.TabuSearch(),
    ms.Enumeration(),
]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: type(solver).__name__)


class Stops:
    """Distance of neighbours, until the call of a number raises."""

    def __init__(self, last, error):
        self.last, self.error, self.calls = last, error, 0

    def __call__(self, p):
        self.calls += 1
        if self.calls == self.last:
            raise self.error
        return abs(p[:-1] - p[1:]).sum()


@every_solver
def test_what_the_function_raises_reaches_the_caller_as_it_is(solver):
    function = Stops(40, LookupError("no such row"))
    with pytest.raises(LookupError, match="no such row"):
        solver.solve(ms.CallableProblem(function, 6), MaxIterations(1000))
    assert function.calls == 40


@every_solver
def test_ctrl_c_in_the_function_returns_the_incumbent(solver):
    # Annealing draws 200 swaps before it starts.
    problem = ms.CallableProblem(Stops(300, KeyboardInterrupt()), 6)
    result = solver.solve(problem, MaxIterations(100_000), initial=[0, 5, 1, 4, 2, 3])
    assert result.status == "interrupted"
    assert result.value == problem.value(result.permutation) < problem.value([0, 5, 1, 4, 2, 3])


@every_solver
def test_a_time_limit_is_kept_however_slow_the_function_is(solver):
    def slow(p):
        time.sleep(0.001)
        return p[0]

    before = time.perf_counter()
    assert solver.solve(ms.CallableProblem(slow, 9), MaxRuntime(0.1)).value >= 0.0
    assert time.perf_counter() - before < 1.5


def test_the_function_may_keep_and_change_what_it_is_given():
    kept = []

    def spoil(p):
        kept.append(p)
        value = float(p[0] - p[-1])
        p[:] = -1
        return value

    result = ms.solve(ms.CallableProblem(spoil, 5), ms.TabuSearch(), MaxIterations(50))
    assert result.value == -4.0
    assert len({id(p) for p in kept}) == len(kept)


def test_no_look_at_a_neighbor_calls_the_function_twice():
    function = Stops(None, None)
    result = ms.Enumeration().solve(ms.CallableProblem(function, 5), MaxRuntime(60.0))
    # One call for each permutation, and a few for values at the start and at the end.
    assert result.iterations == 120
    assert 120 <= function.calls <= 130


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, 5), TypeError, "value must be a function of a permutation, got int"),
        ((sum, 0), ValueError, "size must be an integer >= 1, got 0"),
        ((sum, 2.5), TypeError, "size must be an integer, got 2.5"),
        ((sum, 6, 4), ValueError, "block_size must divide the 6 slots, got 4"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ms.CallableProblem(*arguments)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(number):
    problem = ms.CallableProblem(lambda p: number if p[0] == 1 else 1.0, 4)
    with pytest.raises(ValueError, match=re.escape(f"value must return a finite number, got {number} for [1")):
        ms.solve(problem, ms.LocalSearch(), MaxIterations(100))


def test_solvers_that_need_more_than_values_refuse_it():
    problem = ms.CallableProblem(sum, 4)
    for solver in (ms.CpSat(), ms.BranchAndBound(), ms.Hungarian(), ms.Transport(), ms.MinCostFlow(), ms.FrankWolfe()):
        with pytest.raises(ValueError, match=f"{type(solver).__name__} cannot take this CallableProblem"):
            solver.solve(problem, MaxRuntime(1.0))
