"""The search of divisions of neurons, against all of them."""

import numpy as np
import pytest
from naive_partition import divisions, lost_mass, squared_error

import moe_search as ms
from moe_search.solvers.heuristic import partition_search


def made(seed, error, rows=12, neurons=8, num_experts=4, shared=0):
    rng = np.random.default_rng(seed)
    activations, weights = rng.standard_normal((rows, neurons)) ** 3, rng.standard_normal((5, neurons))
    mass = (activations * np.linalg.norm(weights, axis=0)) ** 2
    given = {"activations": activations, "output_weights": weights} if error else {}
    return ms.NeuronPartition(mass, num_experts, 2, shared, **given)


@pytest.mark.parametrize("seed", range(8))
def test_the_best_of_all_divisions(seed):
    shared = 2 * (seed % 2)
    for error in (False, True):
        problem = made(seed, error, neurons=6 + shared, num_experts=3, shared=shared)
        mass = problem.mass.tolist()
        if error:
            arrays = (mass, problem.activations.tolist(), problem.output_weights.tolist())
            least = min(squared_error(*arrays, each, 3, 2) for each in divisions(6 + shared, 3, problem.shared_neurons))
        else:
            least = min(lost_mass(mass, each, 3, 2) for each in divisions(6 + shared, 3, problem.shared_neurons))
        result = ms.solve(problem, stop=ms.AnyOf(ms.MaxIterations(5000), ms.TargetValue(least * (1 + 1e-9))))
        assert result.value == pytest.approx(least)
        assert result.bound <= least * (1 + 1e-9)


def test_changes_and_errors_that_are_kept_are_those_of_the_definition():
    problem = made(3, True, rows=40, neurons=24, num_experts=4)
    rng = np.random.default_rng(0)
    labels = problem.random_solution(rng)
    active = problem.active_experts(labels)
    swaps = partition_search.Swaps(problem, 0, partition_search.Counts())
    board = swaps.board(labels.copy(), active)
    for _ in range(60):
        i, j = rng.integers(0, 24, 2)
        if board.experts[i] == board.experts[j]:
            continue
        swapped = board.experts.copy()
        swapped[i], swapped[j] = swapped[j], swapped[i]
        before, after = (problem.value_of(each, active) * problem.whole for each in (board.experts, swapped))
        change = partition_search.swap_change(board, i, j)
        assert change == pytest.approx(after - before, rel=1e-3, abs=1e-3)
        if not partition_search.promises(swaps.board(board.experts, active), i, j):
            assert change > -1e-3
        partition_search.change_places(board, i, j)
        assert np.array_equal(board.experts, swapped)
    fresh = swaps.board(board.experts, active)
    assert np.allclose(board.projected, fresh.projected, rtol=1e-3, atol=1e-2)


def test_a_seed_gives_one_result_and_a_start_is_never_made_worse():
    problem, shown = made(5, True, rows=60, neurons=32), []
    result = ms.solve(problem, stop=ms.MaxIterations(150), seed=1, on_improvement=shown.append)
    again = ms.PartitionSearch().solve(problem, ms.MaxIterations(150), seed=1)
    assert np.array_equal(result.solution, again.solution)
    assert (result.iterations, result.restarts > 0, result.moves > 0) == (150, True, True)
    assert [each.value for each in shown] == pytest.approx([problem.value(each.solution) for each in shown])
    values = [value for _, value in result.history]
    assert values == sorted(values, reverse=True)
    warm = ms.PartitionSearch().solve(problem, ms.MaxIterations(30), seed=2, initial=result.solution)
    assert warm.value <= result.value
    assert np.array_equal(ms.Result.from_json(result.to_json()).solution, result.solution)
    one = ms.PartitionSearch(restarts=False).solve(problem, ms.MaxIterations(10**6))
    assert one.restarts == partition_search.STARTS - 1


def test_planted_groups_are_found():
    # Every row uses the neurons of two hidden groups of four.
    rng = np.random.default_rng(0)
    hidden = rng.permutation(np.arange(64) // 16)
    uses = rng.random((200, 4)).argsort(axis=1) < 2
    mass = rng.random((200, 64)) * uses[:, hidden]
    result = ms.PartitionSearch(restarts=False).solve(ms.NeuronPartition(mass, 4, 2), ms.MaxRuntime(60.0))
    assert (result.value, result.status) == (0.0, "optimal")
    assert len(set(zip(hidden.tolist(), result.solution.tolist(), strict=True))) == 4


def test_other_problems_are_refused():
    with pytest.raises(ValueError, match="cannot take this LinearAssignment: it solves NeuronPartition only"):
        ms.PartitionSearch().solve(ms.random_linear(3, seed=0), ms.MaxIterations(1))
