import pickle
import time
from contextlib import nullcontext

import joblib
import numpy as np
import pytest
from every_solver import ONE_OF_EACH_KIND
from instances import INSTANCES, sparse_from_one
from numba import typeof

from moe_search import solvers
from moe_search.problems import random_quadratic
from moe_search.problems.kernel_cache import compile_time
from moe_search.solvers import (
    AnyOf,
    Enumeration,
    LocalSearch,
    MaxIterations,
    MaxRuntime,
    MultiStart,
    NoImprovement,
    SimulatedAnnealing,
    TabuSearch,
    TargetValue,
)
from moe_search.solvers.engine.run import Slice
from moe_search.solvers.heuristic.multi_start import spawned_seeds

PROBLEM = random_quadratic(14, seed=1)
STOP = MaxIterations(300)


@pytest.mark.parametrize("solver", [TabuSearch(), SimulatedAnnealing(), LocalSearch("both")])
def test_it_is_the_best_of_its_runs_whatever_the_number_of_threads(solver):
    alone = [solver.solve(PROBLEM, STOP, seed) for seed in spawned_seeds(7, 5)]
    best = min(alone, key=lambda result: result.value)
    for n_jobs in (1, 2, 5, -1):
        result = MultiStart(solver, 5, n_jobs).solve(PROBLEM, STOP, seed=7)
        assert result.permutation.tolist() == best.permutation.tolist()
        assert [point[1:] for point in result.trajectory] == [point[1:] for point in best.trajectory]
        assert result.iterations == sum(run.iterations for run in alone)
        assert result.statistics["swaps evaluated"] == sum(run.statistics["swaps evaluated"] for run in alone)
        assert result.seed == 7


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_runs_that_share_go_on_from_the_best_in_rounds(n_jobs):
    portfolio = TabuSearch(), SimulatedAnnealing()
    result = MultiStart(portfolio, 3, n_jobs, share_every=100).solve(PROBLEM, MaxIterations(250), seed=7)
    initial, trajectory = None, []
    for number, iterations in enumerate((100, 100, 50)):
        seeds = [spawned_seeds(seed, number + 1)[-1] for seed in spawned_seeds(7, 3)]
        runs = [
            portfolio[i % 2].solve(PROBLEM, MaxIterations(iterations), seed, initial) for i, seed in enumerate(seeds)
        ]
        best = min(runs, key=lambda run: run.value)
        initial = best.permutation
        trajectory += [(point.value, point.iteration + 100 * number) for point in best.trajectory]
    assert result.permutation.tolist() == initial.tolist()
    assert result.iterations == 3 * 250
    assert [point[1:] for point in result.trajectory][-1] == min(trajectory)
    assert not np.diff([point.value for point in result.trajectory]).max(initial=-1) >= 0


def test_a_criterion_knows_nothing_of_rounds():
    result = MultiStart(LocalSearch(), 1, share_every=500).solve(PROBLEM, NoImprovement(4000), seed=1)
    # An improvement counts from the end of its round.
    assert result.iterations == 500 * -(-result.trajectory[-1].iteration // 500) + 4000
    proved = MultiStart(Enumeration(), 2, share_every=10**9).solve(random_quadratic(5, seed=0), MaxRuntime(60.0))
    assert proved.status == "optimal"


def test_compiling_is_off_the_clock_of_all():
    compiled = []

    class Compiling(LocalSearch):
        def search(self, run):
            if not compiled:
                compiled.append(self)
                with compile_time():
                    time.sleep(0.5)
            return super().search(run)

    result = MultiStart(Compiling(), 3, 1).solve(PROBLEM, MaxRuntime(0.3))
    assert result.compile_seconds >= 0.5
    # The runs after the one that compiled had their share.
    assert result.runtime < 0.5 <= result.compile_seconds


def test_seconds_before_its_search_are_part_of_the_limit():
    solver = MultiStart(LocalSearch(), 2, 1)
    run = solver.begin_run(PROBLEM, MaxRuntime(0.1), 0, None, None)
    time.sleep(0.2)
    result = solver.search(run)
    # As those in which `solve` computes a bound; only the first run begins.
    assert result.runtime >= 0.2
    assert result.iterations == 0


def same_as_threads(solver):
    expected = solver.solve(PROBLEM, STOP, seed=3)

    def check():
        shown = []
        result = solver.solve(PROBLEM, STOP, seed=3, on_improvement=shown.append)
        assert result.permutation.tolist() == expected.permutation.tolist()
        assert (result.value, result.iterations) == (expected.value, expected.iterations)
        assert [incumbent.value for incumbent in shown] == [result.value]

    return check


# Worker processes leave pipes to the garbage collector when they end.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_processes_of_loky_find_the_same():
    check = same_as_threads(MultiStart(TabuSearch(), 3, 2))
    with joblib.parallel_config(backend="loky"):
        check()
        shared = MultiStart(TabuSearch(), 2, 2, share_every=20).solve(random_quadratic(30, seed=0), MaxIterations(60))
    # Every round goes on where the one before it ended.
    assert shared.trajectory[-1].iteration > 20
    assert np.diff([point.seconds for point in shared.trajectory]).min() >= 0
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)


@pytest.mark.filterwarnings("ignore")
def test_a_dask_cluster_finds_the_same():
    distributed = pytest.importorskip("distributed", reason="pip install 'moe-search[cluster]' for Dask")
    check = same_as_threads(MultiStart(TabuSearch(), 3, 2))
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        check()


class Counted(LocalSearch):
    """A local search that counts its runs."""

    runs = 0

    def search(self, run):
        type(self).runs += 1
        return super().search(run)


def test_no_run_begins_once_the_time_is_up(monkeypatch):
    monkeypatch.setattr(Counted, "runs", 0)
    result = MultiStart(Counted(), 10_000, 1).solve(PROBLEM, MaxRuntime(0.01))
    assert 1 <= Counted.runs < 10_000
    assert result.value == PROBLEM.value(result.permutation)


def test_the_first_run_begins_even_without_time(monkeypatch):
    monkeypatch.setattr(Counted, "runs", 0)
    assert MultiStart(Counted(), 3, 1).solve(PROBLEM, MaxRuntime(0.0)).restarts == 0
    assert Counted.runs == 1


def test_seeds_are_spawned_anew_at_every_call():
    sequence = np.random.SeedSequence(5, spawn_key=(2,))
    states = [[s.generate_state(1)[0] for s in spawned_seeds(sequence, 3)] for _ in range(2)]
    assert states[0] == states[1]
    assert len(set(states[0])) == 3


def test_a_seed_is_reported_only_if_it_gives_the_run_again():
    def run(seed):
        return LocalSearch().solve(PROBLEM, MaxIterations(300), seed)

    assert (run(5).seed, run(np.random.SeedSequence(5)).seed) == (5, 5)
    spawned = run(np.random.SeedSequence(5, spawn_key=(2,)))
    assert spawned.permutation.tolist() != run(5).permutation.tolist()
    assert spawned.seed is None


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTANCES)
def test_problems_can_be_sent_to_other_processes(name):
    problem = INSTANCES[name](3)
    with sparse_from_one() if "sparse" in name else nullcontext():
        again = pickle.loads(pickle.dumps(problem))
    permutation = problem.random_solution(np.random.default_rng(0))
    assert again.value(permutation) == problem.value(permutation)
    # The same types to Numba, read-only ones, so that the kernels need not be compiled again.
    ours, theirs = problem.state(permutation), again.state(permutation)
    assert not isinstance(ours, tuple) or typeof(ours) == typeof(theirs)
    if name not in ONE_OF_EACH_KIND:
        return
    # The same walk, hence the same arrays.
    stop = MaxIterations(100)
    results = [LocalSearch().solve(each, stop, seed=1, initial=permutation) for each in (problem, again)]
    assert results[0].value == results[1].value
    assert results[0].permutation.tolist() == results[1].permutation.tolist()


def test_results_can_be_sent_to_other_processes():
    result = LocalSearch().solve(PROBLEM, STOP, seed=1)
    again = pickle.loads(pickle.dumps(result))
    assert again.to_json() == result.to_json()


@pytest.mark.parametrize("name", solvers.__all__)
def test_solvers_can_be_sent_to_other_processes(name):
    kind = getattr(solvers, name)
    if isinstance(kind, type) and issubclass(kind, solvers.Solver) and kind is not solvers.Solver:
        solver = kind(TabuSearch()) if kind is MultiStart else kind()
        assert pickle.loads(pickle.dumps(solver)) == solver


def test_a_target_ends_every_run_and_a_proof_is_kept():
    small = random_quadratic(5, seed=0)
    exact = MultiStart(Enumeration(), 2).solve(small, MaxRuntime(60.0))
    assert (exact.status, exact.gap) == ("optimal", 0.0)
    reached = MultiStart(LocalSearch(), 2).solve(small, TargetValue(exact.value))
    assert reached.value == exact.value


class Stuck(LocalSearch):
    """A search that finds nothing, and goes on until it is stopped."""

    def search(self, run):
        run.take_initial()
        run.loop(lambda budget, target: Slice(min(budget, 100), run.iterations + min(budget, 100), (), False))
        return run.result(moves=0)


def test_under_a_limit_of_seconds_the_first_at_the_target_or_with_a_proof_ends_all():
    small = random_quadratic(5, seed=0)
    proved = MultiStart((Stuck(), Enumeration()), 2, 2).solve(small, MaxRuntime(60.0))
    assert proved.status == "optimal"
    at_target = MultiStart((Stuck(), LocalSearch()), 2, 2).solve(
        small, AnyOf(MaxRuntime(60.0), TargetValue(proved.value)), initial=range(5)
    )
    assert at_target.value == proved.value < small.value(range(5))
    assert max(proved.runtime, at_target.runtime) < 30.0
    # Without one, what a run does depends on nothing that the others do.
    counted = AnyOf(MaxIterations(70_000), TargetValue(proved.value))
    assert MultiStart((Stuck(), LocalSearch()), 2, 2).solve(small, counted, initial=range(5)).iterations > 70_000


def test_runs_that_wait_for_each_other_share_the_limit():
    result = MultiStart(LocalSearch(), 4, n_jobs=1).solve(PROBLEM, MaxRuntime(0.4))
    # Four limits of their own would take 1.6 seconds.
    assert 0.3 < result.runtime < 1.2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4,), TypeError, r"solver must be a Solver such as TabuSearch\(\), got int"),
        (((TabuSearch(), "tabu"),), TypeError, r"solver must be a Solver such as TabuSearch\(\), got str"),
        (((),), ValueError, "solver must be at least one Solver, got none"),
        ((TabuSearch(), 2, 1, 0), ValueError, "share_every must be an integer >= 1, got 0"),
        ((TabuSearch(), 0), ValueError, "runs must be an integer >= 1, got 0"),
        ((TabuSearch(), 2.0), TypeError, "runs must be an integer, got 2.0"),
        ((TabuSearch(), 2, 0), ValueError, "n_jobs must be positive, or negative to count .*, got 0"),
        ((TabuSearch(), 2, None), TypeError, "n_jobs must be an integer, got None"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        MultiStart(*arguments)


def test_it_refuses_what_the_solver_refuses():
    with pytest.raises(ValueError, match="MultiStart cannot take this QuadraticAssignment: it has 14! permutations"):
        MultiStart(Enumeration()).solve(PROBLEM, STOP)
