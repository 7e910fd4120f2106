import itertools

import numpy as np
import pytest
from instances import INSTANCES, naive_value
from naive import inserted, swapped

from moe_search.problems import QuadraticAssignment, random_linear, random_mixture, random_quadratic
from moe_search.solvers import IteratedLocalSearch, MaxIterations, MaxRuntime
from moe_search.solvers.engine.compiled_search import REFRESH_AFTER
from moe_search.solvers.engine.random_state import random_below, random_state


def naive_descent(problem, p, look, best):
    """Swap descent with don't-look bits in plain Python, in the order in which the search looks at slots."""
    n = len(p)
    count = 0
    values = []
    slot = 0
    while any(look):
        while not look[slot]:
            slot = (slot + 1) % n
        moved = True
        while moved:
            moved = False
            here = problem.value(p)
            candidates = []
            for other in range(n):
                if other == slot:
                    continue
                count += 1
                q = swapped(p, slot, other)
                if best:
                    candidates.append((problem.value(q), other, q))
                elif problem.value(q) < here:
                    p, here, moved = q, problem.value(q), True
                    look[other] = True
                    values.append((here, count))
            if best:
                least = min(candidates)
                if least[0] < here:
                    p, moved = least[2], True
                    look[least[1]] = True
                    values.append((least[0], count))
        look[slot] = False
    return p, slot, count, values


def naive_iterated(problem, p, seed, rounds, strength, acceptance, best):
    """The whole search: descend, keep or go back, perturb; yields every local optimum and the one gone on from."""
    rng = random_state(seed)
    n = len(p)
    look = [True] * n
    home = None
    for _ in range(rounds):
        p, _, _, _ = naive_descent(problem, p, look, best)
        value = problem.value(p)
        if home is None or value < home[0] or (acceptance == "better_or_equal" and value == home[0]):
            home = (value, p)
        yield value, home[0]
        p = home[1]
        center = int(random_below(rng, n))
        for _ in range(strength):
            other = int(random_below(rng, n - 1))
            other += other >= center
            p = swapped(p, center, other)
            look[center] = look[other] = True


@pytest.mark.parametrize("improvement", ["first", "best"])
@pytest.mark.parametrize("seed", range(4))
def test_a_descent_makes_the_moves_of_the_naive_one(improvement, seed):
    problem = random_quadratic(9, seed=seed)
    initial = problem.random_solution(np.random.default_rng(seed)).tolist()
    _, _, count, values = naive_descent(problem, initial, [True] * 9, improvement == "best")
    result = IteratedLocalSearch(improvement=improvement).solve(problem, MaxIterations(count), initial=initial)
    assert [(point.value, point.iteration) for point in result.trajectory[1:]] == values


@pytest.mark.parametrize("improvement", ["first", "best"])
@pytest.mark.parametrize("acceptance", ["better", "better_or_equal"])
@pytest.mark.parametrize("strength", [1, 3])
def test_it_walks_as_the_naive_search(improvement, acceptance, strength):
    problem = random_quadratic(9, seed=2, density=0.5)
    initial = list(range(9))
    walk = list(naive_iterated(problem, initial, 5, 40, strength, acceptance, improvement == "best"))
    best = list(itertools.accumulate((value for value, _ in walk), min))
    solver = IteratedLocalSearch("swap", improvement, strength, acceptance)
    for rounds in (1, 5, 40):
        # The walk says how good the search is after so many local optima, the search how many it has seen.
        result = next(
            found
            for work in range(0, 100_000, 40)
            if (found := solver.solve(problem, MaxIterations(work), 5, initial)).statistics["perturbations"] >= rounds
        )
        assert result.value in (best[rounds - 1], *best[rounds : rounds + 2])


@pytest.mark.parametrize("name", ["linear", "quadratic general", "pairwise", "mixture squared"])
@pytest.mark.parametrize("neighborhood", ["swap", "insertion", "both"])
@pytest.mark.parametrize("improvement", ["first", "best"])
def test_without_bits_it_descends_to_local_optima(name, neighborhood, improvement):
    ends = []
    problem = INSTANCES[name](4)
    # The first local optimum is where the first perturbation starts.
    solver = IteratedLocalSearch(neighborhood, improvement, dont_look=False)
    for work in range(1, 4000):
        result = solver.solve(problem, MaxIterations(work), seed=3)
        if result.statistics["perturbations"]:
            break
        ends.append(result)
    p = ends[-1].permutation.tolist()
    start = problem.block_size
    for a in range(problem.size):
        for b in range(a // start * start, (a // start + 1) * start):
            if neighborhood != "insertion":
                assert naive_value(problem, swapped(p, a, b)) >= ends[-1].value - 1e-9
            if neighborhood != "swap":
                assert naive_value(problem, inserted(p, a, b)) >= ends[-1].value - 1e-9


@pytest.mark.parametrize("acceptance", ["better", "better_or_equal", "annealing", "restart"])
@pytest.mark.parametrize("neighborhood", ["swap", "both"])
def test_slices_do_not_change_the_search(acceptance, neighborhood, monkeypatch):
    problem = random_quadratic(12, seed=1)
    solver = IteratedLocalSearch(neighborhood, acceptance=acceptance, patience=20, temperature=0.2)
    whole = solver.solve(problem, MaxIterations(20_000), seed=2)
    for module, name, tiny in (("run", "MAX_BUDGET", 7), ("compiled_search", "LOG_LENGTH", 2)):
        monkeypatch.setattr(f"moe_search.solvers.engine.{module}.{name}", tiny)
    sliced = solver.solve(problem, MaxIterations(20_000), seed=2)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert (sliced.iterations, sliced.moves, sliced.restarts) == (20_000, whole.moves, whole.restarts)
    assert sliced.statistics == whole.statistics
    assert [v for _, v in sliced.history] == [v for _, v in whole.history]
    assert (whole.restarts > 0) == (acceptance == "restart")


def test_floats_are_built_afresh_before_rounding_errors_add_up():
    problem = random_mixture(4, num_samples=12, seed=1)
    result = IteratedLocalSearch().solve(problem, MaxIterations(600_000), seed=2)
    assert result.statistics["perturbations"] * problem.size > REFRESH_AFTER
    assert result.history[-1][1] == result.value == problem.value(result.permutation)


def test_a_hotter_search_accepts_more():
    problem = random_quadratic(15, seed=1)
    accepted = []
    for temperature in (0.0, 10.0):
        solver = IteratedLocalSearch(acceptance="annealing", temperature=temperature)
        counts = solver.solve(problem, MaxIterations(50_000), seed=2).statistics
        accepted.append(counts["local optima accepted"] / counts["perturbations"])
    assert accepted[0] < 0.9 < accepted[1]


@pytest.mark.parametrize("problem", [random_linear(1, seed=0), random_linear(2, seed=0), random_linear(4, 1, seed=0)])
def test_tiny_problems(problem):
    result = IteratedLocalSearch().solve(problem, MaxRuntime(0.05))
    assert result.value == problem.value(result.permutation)


def test_equal_costs_everywhere():
    problem = QuadraticAssignment(np.ones((5, 5)), np.ones((5, 5)))
    for acceptance in ("better", "annealing", "restart"):
        result = IteratedLocalSearch(acceptance=acceptance).solve(problem, MaxIterations(1000))
        assert (result.moves, result.value) == (0, 25.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"neighborhood": "swaps"}, ValueError, "neighborhood must be one of swap, insertion, both, got 'swaps'"),
        ({"improvement": "last"}, ValueError, "improvement must be one of first, best, got 'last'"),
        ({"acceptance": "worse"}, ValueError, "acceptance must be one of better, .*, got 'worse'"),
        ({"strength": 0}, ValueError, "strength must be an integer >= 1, got 0"),
        ({"strength": 10**7}, ValueError, "strength must be at most 1000000, got 10000000"),
        ({"patience": 2.0}, TypeError, "patience must be an integer, got 2.0"),
        ({"temperature": -1}, ValueError, "temperature must be a finite number >= 0, got -1"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, got 'hot'"),
        ({"dont_look": 1}, TypeError, "dont_look must be True or False, got 1"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        IteratedLocalSearch(**arguments)
