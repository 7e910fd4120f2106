"""A solver and a problem of one's own, whose solutions are no permutations, on the engine of all."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import moe_search as ms
from moe_search.solvers.engine.run import Slice
from moe_search.solvers.heuristic.local_search import search_slice


class Sphere(ms.Problem):
    """The squared length of a vector of three numbers."""

    def __init__(self, low=0.0):
        self.low = low

    integral = False

    def value(self, solution):
        return np.square(solution).sum()

    def check_solution(self, solution, name="solution"):
        vector = np.array(solution, dtype=float)
        if vector.shape != (3,):
            raise ValueError(f"{name} must have shape (3,), got shape {vector.shape}")
        return vector

    def random_solution(self, rng):
        return rng.uniform(-1.0, 1.0, 3)

    def value_range(self):
        return self.low, 100.0


@dataclass(frozen=True)
class Halving(ms.Solver):
    """Halve the vector at every iteration."""

    takes: ClassVar[type] = Sphere
    start: int = 1  # no name that the base class needs

    def search(self, run):
        run.take_initial()

        def advance(budget, target):
            run.incumbent = run.incumbent / 2
            return Slice(1, run.iterations + 1, [(run.iterations + 1, run.problem.value(run.incumbent))], False)

        run.loop(advance)
        return run.result(moves=run.iterations)


def test_solutions_may_be_anything():
    shown = []
    result = ms.solve(Sphere(), Halving(), ms.MaxIterations(3), initial=[1, 2, 2], on_improvement=shown.append)
    assert result.solution.tolist() == [0.125, 0.25, 0.25]
    assert not result.solution.flags.writeable
    assert (result.value, result.bound, result.status) == (9 / 64, 0.0, "feasible")
    assert [incumbent.value for incumbent in shown] == [9.0, 9 / 4, 9 / 16, 9 / 64]
    # A problem that returns numbers of numpy has results of Python's, which JSON knows.
    assert type(result.value) is float
    assert ms.Result.from_json(result.to_json()).solution.tolist() == result.solution.tolist()


def test_a_bound_that_cannot_be_is_left_out():
    with pytest.warns(RuntimeWarning, match=r"bound 50.0 is left out, as a solution of value .* Sphere must be wrong"):
        result = ms.solve(Sphere(low=50.0), Halving(), ms.MaxIterations(3))
    assert (result.bound, result.gap, result.status) == (None, None, "feasible")


def test_other_solvers_say_that_they_take_permutations():
    for solver in (ms.TabuSearch(), ms.BranchAndBound(), ms.CpSat(), ms.Enumeration(), ms.MultiStart(ms.LocalSearch())):
        with pytest.raises(ValueError, match="cannot take this Sphere: it solves PermutationProblem only"):
            solver.solve(Sphere(), ms.MaxIterations(1))
    many = ms.MultiStart(Halving(), runs=2, n_jobs=1)
    assert many.refuses(Sphere()) is None
    assert many.solve(Sphere(), ms.MaxIterations(3), initial=[1, 2, 2]).value == 9 / 64
    with pytest.raises(TypeError, match="solver must be given: none is known for Sphere"):
        ms.solve(Sphere())
    with pytest.raises(ValueError, match="Halving cannot take this LinearAssignment: it solves Sphere only"):
        Halving().solve(ms.random_linear(3, seed=0), ms.MaxIterations(1))
    with pytest.raises(ValueError, match=r"initial must have shape \(3,\), got shape \(2,\)"):
        Halving().solve(Sphere(), ms.MaxIterations(1), initial=[1.0, 2.0])


class Mistaken(Sphere):
    """One's own problem that is wrong."""

    def __init__(self, wrong, integral):
        super().__init__()
        self.wrong, self.integral = wrong, integral

    def value(self, solution):
        return self.wrong


@pytest.mark.parametrize(
    ("wrong", "integral", "message"),
    [
        (np.nan, False, "must be a finite number, got nan of"),
        (np.inf, True, "must be a finite number, got inf of"),
        (0.5, True, r"must be an integer, got 0\.5 of"),
    ],
)
def test_values_that_are_none_end_a_run_in_a_sentence(wrong, integral, message):
    with pytest.raises(ValueError, match=message):
        Halving().solve(Mistaken(wrong, integral), ms.MaxIterations(3))


@dataclass(frozen=True)
class Counting(ms.Solver):
    """Counts with numbers of numpy, and offers nothing."""

    def search(self, run):
        return run.result(moves=np.int64(2), statistics={"looks": np.int64(3)})


def test_a_solver_that_offers_nothing_returns_its_start_and_counts_with_any_integers():
    problem = ms.random_quadratic(9, seed=0)
    result = ms.solve(problem, Counting(), initial=range(9))
    assert (result.permutation.tolist(), result.value) == (list(range(9)), problem.value(range(9)))
    again = ms.Result.from_json(result.to_json())
    assert (again.moves, again.statistics) == (2, {"looks": 3})


def test_what_is_no_array_is_not_written_as_json():
    result = Halving().solve(Sphere(), ms.MaxIterations(1))
    object.__setattr__(result, "solution", frozenset([1]))
    with pytest.raises(TypeError, match="solution must be an array to be written as JSON, got frozenset"):
        result.to_json()


def test_runs_side_by_side_show_their_incumbents_on_the_clock_of_their_trajectory():
    shown = []
    solver = ms.MultiStart(ms.Enumeration(), runs=3, n_jobs=1)
    result = ms.solve(ms.random_quadratic(5, seed=0), solver, ms.MaxRuntime(30.0), on_improvement=shown.append)
    assert shown[-1].value == result.value
    assert any(point.seconds == shown[-1].seconds for point in result.trajectory)


def test_a_target_of_integers_compiles_no_kernel_once_more():
    problem = ms.random_quadratic(5, seed=0)
    ms.LocalSearch().solve(problem, ms.MaxIterations(10))
    compiled = len(search_slice.signatures)
    ms.LocalSearch().solve(problem, ms.AnyOf(ms.TargetValue(3), ms.MaxIterations(10)))
    ms.solve(problem, ms.LocalSearch(), ms.MaxIterations(10))
    assert len(search_slice.signatures) == compiled
