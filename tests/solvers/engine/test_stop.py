import math

import numpy as np
import pytest

from moe_search.problems import random_linear
from moe_search.solvers import AnyOf, MaxIterations, MaxRuntime, NoImprovement, StoppingCriterion, TargetValue
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.stop import Allowance, Progress, Stopper


def test_each_criterion_stops_where_it_says():
    assert not MaxRuntime(1.0).stops(Progress(seconds=0.9))
    assert MaxRuntime(1.0).stops(Progress(seconds=1.0))
    assert not MaxIterations(10).stops(Progress(iterations=9))
    assert MaxIterations(10).stops(Progress(iterations=10))
    assert not NoImprovement(5).stops(Progress(iterations=9, improved_at=5))
    assert NoImprovement(5).stops(Progress(iterations=10, improved_at=5))
    assert not TargetValue(3).stops(Progress(value=3.5))
    assert TargetValue(3).stops(Progress(value=3))


def test_numbers_of_numpy_are_numbers():
    assert MaxIterations(np.int64(10)).allowance(Progress(iterations=4)).iterations == 6
    assert NoImprovement(np.int32(5)).stops(Progress(iterations=5))
    assert MaxRuntime(np.float32(0.5)).stops(Progress(seconds=0.5))
    assert TargetValue(np.array([7, 3]).min()).stops(Progress(value=3.0))


@pytest.mark.parametrize(
    ("of_numpy", "plain"),
    [
        (MaxIterations(np.int8(100)), MaxIterations(100)),
        (NoImprovement(np.uint8(100)), NoImprovement(100)),
        (MaxRuntime(np.float16(0.5)), MaxRuntime(0.5)),
        (TargetValue(np.float16(3.0)), TargetValue(3.0)),
    ],
)
def test_numbers_of_numpy_do_not_wrap_around(of_numpy, plain):
    far = Progress(seconds=1e9, iterations=10**9, improved_at=10**8)
    assert of_numpy == plain
    assert repr(of_numpy) == repr(plain)
    assert of_numpy.allowance(far) == plain.allowance(far)


def test_any_of_takes_the_least():
    stop = AnyOf(MaxRuntime(2.0), MaxIterations(10), TargetValue(-1.0))
    assert stop.start().allowance(Progress(seconds=0.5, iterations=4)) == Allowance(1.5, 6, -1.0)
    assert stop.allowance(Progress()) == Allowance(2.0, 10, -1.0)


def test_a_recipe_with_memory_starts_afresh():
    class Countdown(Stopper):
        def __init__(self):
            self.calls = 0

        def allowance(self, progress):
            self.calls += 1
            return Allowance(seconds=0.0 if self.calls > 2 else math.inf)

    class Recipe(StoppingCriterion):
        def start(self):
            return Countdown()

        def allowance(self, progress):
            return Allowance()

    stop = AnyOf(Recipe())
    for _ in range(2):
        stopper = stop.start()
        assert [stopper.stops(Progress()) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MaxRuntime(-1.0), ValueError, "seconds must be a number >= 0, got -1"),
        (lambda: MaxRuntime(math.nan), ValueError, "got nan"),
        (lambda: MaxRuntime("1"), TypeError, "seconds must be a number, got '1'"),
        (lambda: MaxIterations(-1), ValueError, "iterations must be an integer >= 0, got -1"),
        (lambda: MaxIterations(1.5), TypeError, "iterations must be an integer, got 1.5"),
        (lambda: NoImprovement(True), TypeError, "iterations must be an integer, got True"),
        (lambda: TargetValue(math.nan), ValueError, "value must be a number, got nan"),
        (lambda: AnyOf(), ValueError, "at least one"),
        (lambda: AnyOf(1.0), TypeError, "stop must be a stopping criterion"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_limit_of_iterations_does_not_cut_slices_that_count_in_smaller_units(monkeypatch):
    monkeypatch.setattr("moe_search.solvers.engine.run.SLICE_SECONDS", math.inf)
    budgets = []
    done = 0

    def advance(budget, target):
        nonlocal done
        budgets.append(budget)
        iterations = max(budget // 100, 1)
        done += iterations
        return Slice(100 * iterations, done, (), False)

    run = Run("test", random_linear(3, seed=0), MaxIterations(5000), 0, None)
    run.take_initial()
    run.loop(advance, 100)
    assert run.iterations == 5000
    assert len(budgets) < 10
