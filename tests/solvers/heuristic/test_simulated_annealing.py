import math

import numpy as np
import pytest
from instances import INSTANCES
from naive import swapped
from qaplib_files import FOLDER, best_known, needs_qaplib

from moe_search.problems import QuadraticAssignment, random_linear, random_mixture, random_quadratic, read_qaplib
from moe_search.solvers import MaxIterations, MaxRuntime, SimulatedAnnealing
from moe_search.solvers.engine.random_state import random_state, random_unit
from moe_search.solvers.engine.run import Run
from moe_search.solvers.heuristic.simulated_annealing import mean_delta


def pairs_of(problem):
    block = problem.block_size
    return [(i, j) for i in range(problem.size) for j in range(i + 1, (i // block + 1) * block)]


def naive_annealing(problem, p, seed, scale, solver, iterations):
    """One cooling after the other in plain Python; returns the trajectory after the start."""
    rng = random_state(seed)
    pairs = pairs_of(problem)
    value = best = problem.value(p)
    found = []
    cooling = left = moves = 0
    for iteration in range(iterations):
        if left == 0:
            left = int(solver.sweeps * len(pairs) * math.exp(cooling * math.log(solver.growth)))
            start = solver.hot * (1.0 if cooling == 0 else solver.reheat)
            temperature, factor = start * scale, (solver.cold / start) ** (1.0 / left)
            cooling += 1
        left -= 1
        q = swapped(p, *pairs[iteration % len(pairs)])
        delta = problem.value(q) - value
        if delta <= 0 or random_unit(rng) < math.exp(-delta / temperature):
            p, value, moves = q, value + delta, moves + 1
            if value < best:
                best = value
                found.append((best, iteration + 1))
        temperature *= factor
    return found, moves, cooling


@pytest.mark.parametrize("name", ["linear", "quadratic", "quadratic general", "pairwise"])
@pytest.mark.parametrize("seed", range(3))
def test_it_walks_as_the_naive_search(name, seed):
    problem = INSTANCES[name](seed)
    solver = SimulatedAnnealing(hot=0.8, cold=0.05, sweeps=3)
    initial = problem.random_solution(np.random.default_rng(seed))
    run = Run("test", problem, MaxRuntime(1.0), seed, initial)
    scale = mean_delta(run, problem.state(initial))
    found, moves, coolings = naive_annealing(problem, initial.tolist(), seed, scale, solver, 500)
    result = solver.solve(problem, MaxIterations(500), seed, initial)
    assert [(point.value, point.iteration) for point in result.trajectory[1:]] == found
    assert (result.moves, result.statistics["coolings"]) == (moves, coolings)
    assert coolings > 1


def test_the_scale_is_the_mean_delta_of_random_swaps():
    problem = random_quadratic(12, seed=0)
    p = list(range(12))
    deltas = [abs(problem.value(swapped(p, a, b)) - problem.value(p)) for a, b in pairs_of(problem)]
    run = Run("test", problem, MaxRuntime(1.0), 0, np.arange(12))
    assert mean_delta(run, problem.state(p)) == pytest.approx(np.mean(deltas), rel=0.2)


def test_slices_do_not_change_the_search(monkeypatch):
    problem = random_quadratic(12, seed=1, integral=False)
    whole = SimulatedAnnealing(hot=1.0).solve(problem, MaxIterations(400_000), seed=2)
    assert whole.statistics["coolings"] > 2
    for module, name, tiny in (("run", "MAX_BUDGET", 777), ("compiled_search", "LOG_LENGTH", 2)):
        monkeypatch.setattr(f"moe_search.solvers.engine.{module}.{name}", tiny)
    sliced = SimulatedAnnealing(hot=1.0).solve(problem, MaxIterations(400_000), seed=2)
    assert sliced.permutation.tolist() == whole.permutation.tolist()
    assert (sliced.iterations, sliced.moves) == (400_000, whole.moves)


def test_floats_are_built_afresh_before_rounding_errors_add_up(monkeypatch):
    monkeypatch.setattr("moe_search.solvers.heuristic.simulated_annealing.REFRESH_AFTER", 1000)
    problem = random_mixture(4, num_samples=12, seed=1)
    result = SimulatedAnnealing(hot=5.0, cold=5.0).solve(problem, MaxIterations(50_000), seed=2)
    assert result.moves > 3000
    assert result.history[-1][1] == result.value == problem.value(result.permutation)


@pytest.mark.parametrize("problem", [random_linear(1, seed=0), random_linear(2, seed=0), random_linear(4, 1, seed=0)])
def test_tiny_problems(problem):
    result = SimulatedAnnealing().solve(problem, MaxIterations(1000))
    assert result.value == problem.value(result.permutation)


def test_equal_costs_everywhere():
    problem = QuadraticAssignment(np.ones((5, 5)), np.ones((5, 5)))
    assert SimulatedAnnealing().solve(problem, MaxIterations(5000)).value == 25.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"hot": 0}, ValueError, "hot must be a finite number > 0, got 0"),
        ({"cold": math.inf}, ValueError, "cold must be a finite number > 0, got inf"),
        ({"hot": 0.1, "cold": 0.2}, ValueError, "cold must be at most hot, got cold 0.2 and hot 0.1"),
        ({"sweeps": 0}, ValueError, "sweeps must be an integer >= 1, got 0"),
        ({"growth": 0.5}, ValueError, "growth must be a finite number >= 1, got 0.5"),
        ({"reheat": "more"}, TypeError, "reheat must be a number, got 'more'"),
    ],
)
def test_bad_parameters(arguments, error, message):
    with pytest.raises(error, match=message):
        SimulatedAnnealing(**arguments)


def test_more_sweeps_than_a_float_can_count():
    problem = QuadraticAssignment(np.ones((5, 5)), np.ones((5, 5)))
    assert SimulatedAnnealing(sweeps=10**310).solve(problem, MaxIterations(100)).value == 25.0


@pytest.mark.slow
@needs_qaplib
def test_published_optima():
    known = best_known()
    for name in ("nug30", "sko42", "wil50"):
        result = SimulatedAnnealing().solve(read_qaplib(FOLDER / f"{name}.dat"), MaxIterations(5_000_000), seed=1)
        assert result.value <= 1.01 * known[name], name
