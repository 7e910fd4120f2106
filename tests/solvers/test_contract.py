"""What every solver must do, on every problem class it takes."""

import dataclasses
import functools
import itertools
import re
import time

import numpy as np
import pytest
from ctrl_c import ctrl_c_after
from every_solver import PAIRS, PROBLEMS, SOLVERS, TAKEN, marks
from instances import naive_value
from naive import permutations
from numba.core import event

from moe_search import problems, solvers
from moe_search.solvers import AnyOf, MaxIterations, MaxRuntime, NoImprovement, TargetValue


@functools.cache
def best_permutation(name):
    problem = PROBLEMS[name]
    return min(permutations(problem.size, problem.block_size), key=lambda p: naive_value(problem, p))


@functools.cache
def optimum(name):
    return naive_value(PROBLEMS[name], best_permutation(name))


def for_solvers(names, instance="linear"):
    return pytest.mark.parametrize(
        "solver", [pytest.param(name, marks=marks(SOLVERS[name], instance)) for name in names]
    )


every_solver = for_solvers(SOLVERS)
every_pair = pytest.mark.parametrize(
    ("solver", "name"),
    [pytest.param(solver, name, marks=marks(SOLVERS[solver], name)) for solver, name in TAKEN],
    ids=[" on ".join(pair) for pair in TAKEN],
)


@functools.cache
def run_of(solver, name):
    """Return the result of one run that several tests look at, and the incumbents that it has shown."""
    shown = []
    return SOLVERS[solver].solve(PROBLEMS[name], MaxIterations(700), seed=5, on_improvement=shown.append), shown


def test_what_is_not_taken_is_refused_with_a_reason_and_linear_problems_are_taken_by_all():
    assert {solver for solver, name in TAKEN if name == "linear"} == set(SOLVERS) - {"frank-wolfe"}
    for solver, name in sorted(set(PAIRS) - set(TAKEN)):
        reason = SOLVERS[solver].refuses(PROBLEMS[name])
        with pytest.raises(ValueError, match=f"cannot take this {type(PROBLEMS[name]).__name__}: {re.escape(reason)}"):
            SOLVERS[solver].solve(PROBLEMS[name], MaxRuntime(1.0))


@every_pair
def test_finds_the_optimum_of_brute_force(solver, name):
    solver, problem = SOLVERS[solver], PROBLEMS[name]
    best = None
    for seed in range(20):
        stop = MaxRuntime(30.0) if solver.exact else AnyOf(MaxIterations(3000), TargetValue(optimum(name)))
        result = solver.solve(problem, stop, seed=seed)
        assert result.value == pytest.approx(naive_value(problem, result.permutation), rel=1e-9)
        best = result.value if best is None else min(best, result.value)
        if solver.exact:
            assert result.status == "optimal"
            assert result.gap == pytest.approx(0.0, abs=1e-8)
        if best <= optimum(name) + 1e-9:
            break
    if problem.integral:
        assert best == optimum(name)
        assert isinstance(best, int)
    else:
        assert best == pytest.approx(optimum(name), rel=1e-9)


@every_pair
def test_the_bound_holds_and_history_falls_to_the_value(solver, name):
    result, _ = run_of(solver, name)
    assert result.bound is None or result.bound <= optimum(name) + 1e-9 * abs(optimum(name))
    values = [value for _, value in result.history]
    seconds = [second for second, _ in result.history]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] == result.value
    assert seconds == sorted(seconds)
    assert 0 <= seconds[0] <= seconds[-1] <= result.runtime


@every_pair
def test_every_improvement_is_shown_and_recorded(solver, name):
    one_run = solver != "multi-start"
    result, shown = run_of(solver, name)
    iterations = [point.iteration for point in result.trajectory]
    assert iterations == sorted(iterations)
    assert 0 <= iterations[0] <= iterations[-1] <= result.iterations
    assert [(point.seconds, point.value) for point in result.trajectory] == list(result.history)
    values = [incumbent.value for incumbent in shown]
    assert all(a > b for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(result.value, rel=1e-9)
    for incumbent in shown:
        assert naive_value(PROBLEMS[name], incumbent.permutation) == pytest.approx(incumbent.value, rel=1e-9)
        assert not incumbent.permutation.flags.writeable
        assert not one_run or any(incumbent.iterations == point.iteration for point in result.trajectory)
    assert not one_run or shown[-1].permutation.tolist() == result.permutation.tolist()
    assert shown[-1].seconds <= result.runtime
    counted = result.statistics.get("swaps committed", 0) + result.statistics.get("insertions committed", 0)
    assert not result.statistics or counted == result.moves
    for kind in ("swaps", "insertions"):
        assert result.statistics.get(f"{kind} committed", 0) <= result.statistics.get(f"{kind} evaluated", 0)


@every_pair
def test_the_same_seed_gives_the_same_result_whether_it_is_shown_or_not(solver, name):
    first, _ = run_of(solver, name)
    second = SOLVERS[solver].solve(PROBLEMS[name], MaxIterations(700), seed=5)
    assert first.permutation.tolist() == second.permutation.tolist()
    assert (first.value, first.iterations, first.moves) == (second.value, second.iterations, second.moves)


@every_pair
def test_a_warm_call_compiles_nothing_and_makes_the_iterations_of_the_first(solver, name):
    first, _ = run_of(solver, name)
    # Targets of other types, far below all values: a kernel compiled for each would take its time on the clock.
    with event.install_recorder("numba:compile") as recorder:
        for target in (-(10**12), np.float32(-1e12)):
            stop = AnyOf(TargetValue(target), MaxIterations(700))
            again = SOLVERS[solver].solve(PROBLEMS[name], stop, seed=5)
            assert again.iterations == first.iterations or solver == "cp-sat"
    assert not recorder.buffer


def one_it_takes(solver):
    return next(problem for problem in PROBLEMS.values() if solver.refuses(problem) is None)


@every_solver
def test_an_exception_in_the_callback_reaches_the_caller(solver):
    solver = SOLVERS[solver]

    def fail(incumbent):
        raise RuntimeError(f"no room for {incumbent.value}")

    with pytest.raises(RuntimeError, match="no room for"):
        solver.solve(one_it_takes(solver), MaxRuntime(60.0), on_improvement=fail)


@every_solver
def test_ctrl_c_in_the_callback_returns_the_incumbent(solver):
    solver = SOLVERS[solver]

    def interrupt(incumbent):
        raise KeyboardInterrupt

    problem = one_it_takes(solver)
    result = solver.solve(problem, MaxRuntime(60.0), on_improvement=interrupt)
    assert result.runtime < 30.0
    assert result.value == problem.value(result.permutation)
    assert result.status == ("optimal" if solver.exact and result.gap == 0 else "interrupted")


@every_pair
def test_never_worse_than_the_initial_permutation(solver, name):
    solver, problem = SOLVERS[solver], PROBLEMS[name]
    result = solver.solve(problem, MaxIterations(1), seed=0, initial=best_permutation(name))
    assert result.value == pytest.approx(optimum(name), rel=1e-9)


@for_solvers(SOLVERS, "quadratic")
def test_no_time_returns_the_initial_permutation_or_better(solver):
    solver = SOLVERS[solver]
    at_once = solver.refuses(PROBLEMS["quadratic"]) is not None
    problem = PROBLEMS["linear" if at_once else "quadratic"]
    initial = problem.random_solution(np.random.default_rng(1))
    result = solver.solve(problem, MaxRuntime(0.0), initial=initial)
    if not at_once:
        assert result.permutation.tolist() == initial.tolist()
    assert result.value <= problem.value(initial)


@pytest.mark.parametrize("solver", [solvers.LocalSearch(), solvers.Hungarian()], ids=repr)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"problem": np.zeros((3, 3))}, TypeError, "problem must be a Problem .* got ndarray"),
        ({"stop": 1.0}, TypeError, r"stop must be a stopping criterion such as MaxRuntime\(1.0\), got float"),
        ({"seed": -1}, ValueError, "seed, unless it is a SeedSequence, must be an integer >= 0, got -1"),
        ({"seed": "x"}, TypeError, "seed, unless it is a SeedSequence, must be an integer, got 'x'"),
        ({"on_improvement": 3}, TypeError, "on_improvement must be a function of an Incumbent, got int"),
        ({"initial": [0, 0, 1, 2, 3, 4]}, ValueError, "initial must hold every seat once"),
        ({"initial": [0, 1]}, ValueError, r"initial must have shape \(6,\), got shape \(2,\)"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(solver, arguments, error, message):
    good = {"problem": PROBLEMS["linear"], "stop": MaxRuntime(60.0)}
    with pytest.raises(error, match=message):
        solver.solve(**(good | arguments))


# What `Solver.solve` refuses is hence refused by every solver.
def test_no_solver_checks_its_arguments_in_a_way_of_its_own():
    assert all(type(solver).solve is solvers.Solver.solve for solver in SOLVERS.values())
    public = (getattr(solvers, name) for name in solvers.__all__)
    classes = {each for each in public if isinstance(each, type) and issubclass(each, solvers.Solver)}
    assert {each for each in classes if each.solve is not solvers.Solver.solve} == set()
    # Those that place experts or divide neurons have tests of their own.
    placing = {
        solvers.CoActivationSearch,
        solvers.LongestProcessingTime,
        solvers.PlacementCpSat,
        solvers.PlacementSearch,
    }
    placing |= {solvers.PartitionSearch, solvers.SubsetEnumeration, solvers.SubsetSearch}
    assert classes == {type(solver) for solver in SOLVERS.values()} | {solvers.Solver} | placing


def of_numpy(given):
    """Return a parameter, and those of a tuple, as a sweep over numpy arrays gives them."""
    if isinstance(given, tuple):
        return tuple(map(of_numpy, given))
    return np.array(given)[()] if isinstance(given, bool | int | float | str) else given


@every_solver
def test_parameters_may_be_numbers_of_numpy(solver):
    solver = SOLVERS[solver]
    parameters = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
    made = type(solver)(**{name: of_numpy(given) for name, given in parameters.items()})
    assert made == solver
    assert repr(made) == repr(solver)
    assert not any(isinstance(getattr(made, name), np.generic) for name in parameters)


# A pass over all moves of the first takes long, one delta of the second does.
LARGE = {
    "quadratic": lambda: problems.random_quadratic(1500, seed=0),
    "mixture": lambda: problems.random_mixture(64, 16, num_samples=50_000, seed=0, k=2, loss="cross_entropy"),
}
# No other solver takes problems of this size.
TIMED = ["swap first", "swap best", "insertion first", "insertion best", "both first", "tabu"]
TIMED += ["iterated", "iterated insertion annealing", "annealing"]


@pytest.fixture(scope="module", params=LARGE)
def large(request):
    return LARGE[request.param]()


@for_solvers(TIMED, "large")
def test_a_time_limit_is_kept_on_large_problems(solver, large):
    name, solver = solver, SOLVERS[solver]
    if name == "tabu" and isinstance(large, problems.MixtureAssignment):
        with pytest.raises(ValueError, match="operations to update the deltas of all swaps"):
            solver.solve(large, MaxRuntime(0.2))
        return
    start = np.arange(large.size)
    solver.solve(large, MaxRuntime(0.01), initial=start)  # compiles
    # In processor time, which no other process takes: what a solver still does beyond the limit.
    overruns, runtimes, unseen = [], [], []
    for _ in range(3):
        before, used = time.perf_counter(), time.thread_time()
        result = solver.solve(large, MaxRuntime(0.2), initial=start)
        overruns.append(time.thread_time() - used - 0.2)
        runtimes.append(result.runtime)
        unseen.append(time.perf_counter() - before - result.runtime)
    assert min(overruns) <= 0.05
    assert min(unseen) <= 0.02
    # On the clock, whatever else runs.
    assert min(runtimes) <= 1.0
    assert result.runtime >= 0.2 or result.status == "optimal"
    assert result.value <= large.value(start)


@pytest.mark.parametrize("size", [14, 21])
def test_cp_sat_keeps_a_time_limit_while_it_builds_and_while_it_solves(size):
    problem = problems.random_quadratic(size, seed=0)
    solvers.CpSat().solve(problem, MaxRuntime(0.0))  # imports
    overruns = []
    for _ in range(3):
        used = time.process_time()
        result = solvers.CpSat().solve(problem, MaxRuntime(0.2))
        overruns.append(time.process_time() - used - 0.2)
    assert min(overruns) <= 0.05
    assert result.value == problem.value(result.permutation)


@for_solvers(
    [
        "swap first",
        "insertion best",
        "tabu",
        "iterated",
        "annealing",
        "multi-start",
        "enumeration",
        "cp-sat",
        "branch and bound",
    ],
    "quadratic",
)
def test_ctrl_c_returns_the_incumbent(solver):
    size, seconds = (10, 0.03) if solver == "enumeration" else (20, 0.5)
    solver, problem, initial = SOLVERS[solver], problems.random_quadratic(size, seed=0), np.arange(size)
    solver.solve(problem, MaxRuntime(0.05))  # compiles
    with ctrl_c_after(seconds):
        result = solver.solve(problem, MaxRuntime(60.0), initial=initial)
    assert result.status == "interrupted"
    assert result.runtime < 10.0
    assert result.value == problem.value(result.permutation) <= problem.value(initial)


@for_solvers(sorted(set(SOLVERS) - {"hungarian", "min-cost flow"}), "quadratic")  # these two cannot be stopped
def test_no_improvement_and_target_stop(solver):
    kind = "linear" if solver == "transport" else "quadratic"
    solver, problem, target = SOLVERS[solver], PROBLEMS[kind], TargetValue(optimum(kind))
    reached = solver.solve(problem, target if solver.exact else AnyOf(target, MaxIterations(100_000)))
    assert reached.iterations < 100_000
    still = solver.solve(problem, NoImprovement(300))
    assert still.iterations < 100_000
