"""What every problem class must do: its kernels agree with differences of naive values."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from instances import INSTANCES, naive_value
from naive import inserted, swapped

from moe_search.problems.kernels import compiled, kernel_for
from moe_search.problems.moves import commit_swap, slide, swap_delta

every_class = pytest.mark.parametrize("build", INSTANCES.values(), ids=INSTANCES.keys())
seeds = st.integers(0, 2**32 - 1)


@compiled
def compiled_swap_delta(state, a, b):
    return swap_delta(state, a, b)


@compiled
def compiled_commit_swap(state, a, b):
    commit_swap(state, a, b)


def assert_same(problem, a, b):
    if problem.integral:
        assert a == b
    else:
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9)


def arrays(state):
    """The numbers in the fields of a state, those of a state inside it among them; without scratch space."""
    fields = state._asdict() if isinstance(state, tuple) else vars(state)
    for name, value in fields.items():
        if hasattr(value, "_fields"):
            yield from arrays(value)
        elif name != "trial" and not callable(value):
            yield name, value


def draw(build, seed):
    rng = np.random.default_rng(seed)
    problem = build(seed)
    start = problem.block_size * int(rng.integers(problem.size // problem.block_size))
    a, b = (start + rng.integers(0, problem.block_size, 2)).tolist()
    return rng, problem, problem.random_solution(rng), a, b


@every_class
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_value_is_the_naive_value(build, seed):
    _, problem, p, _, _ = draw(build, seed)
    assert_same(problem, problem.value(p), naive_value(problem, p))
    assert isinstance(problem.value(p), int if problem.integral else float)


@every_class
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_swap_delta_is_the_difference_of_naive_values(build, seed):
    _, problem, p, a, b = draw(build, seed)
    state = problem.state(p)
    delta = kernel_for(state, compiled_swap_delta)(state, a, b)
    assert_same(problem, delta, naive_value(problem, swapped(p, a, b)) - naive_value(problem, p))


@every_class
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_insertion_delta_is_the_difference_of_naive_values(build, seed):
    _, problem, p, a, b = draw(build, seed)
    state = problem.state(p)
    delta = kernel_for(state, slide)(state, a, b)
    kernel_for(state, slide)(state, b, a)
    assert state.permutation.tolist() == p.tolist()
    assert_same(problem, delta, naive_value(problem, inserted(p, a, b)) - naive_value(problem, p))


@every_class
@settings(max_examples=8, deadline=None)
@given(seed=seeds, moves=st.lists(st.tuples(st.booleans(), st.integers(0, 99), st.integers(0, 99)), max_size=12))
def test_state_after_any_moves_equals_a_state_built_afresh(build, seed, moves):
    rng, problem, p, _, _ = draw(build, seed)
    state = problem.state(p)
    expected = p.tolist()
    for insertion, x, y in moves:
        start = problem.block_size * int(rng.integers(problem.size // problem.block_size))
        a, b = start + x % problem.block_size, start + y % problem.block_size
        if insertion:
            kernel_for(state, slide)(state, a, b)
            expected = inserted(expected, a, b)
        else:
            kernel_for(state, compiled_commit_swap)(state, a, b)
            expected = swapped(expected, a, b)
    assert state.permutation.tolist() == expected
    afresh = problem.state(expected)
    for (name, kept), (_, built) in zip(arrays(state), arrays(afresh), strict=True):
        np.testing.assert_allclose(kept, built, rtol=1e-9, atol=1e-9, err_msg=name)


@every_class
def test_plain_python_kernels_agree_with_the_compiled_ones(build):
    rng, problem, p, _, _ = draw(build, 5)
    compiled, plain = problem.state(p), problem.state(p)
    for _ in range(10):
        a, b = rng.integers(0, problem.block_size, 2).tolist()
        delta = kernel_for(compiled, compiled_swap_delta)(compiled, a, b)
        assert_same(problem, swap_delta(plain, a, b), delta)
        commit_swap(plain, a, b)
        kernel_for(compiled, compiled_commit_swap)(compiled, a, b)
    for (_, kept), (_, built) in zip(arrays(plain), arrays(compiled), strict=True):
        np.testing.assert_allclose(kept, built, rtol=1e-12, atol=1e-12)


def value_of_pairs(costs, p):
    """The value of a permutation by the definition of pair costs."""
    slots = range(costs.shape[0])
    e = [seat % costs.block_size // costs.capacity for seat in p]
    if costs.pairwise is not None:
        return naive_value(costs.pairwise, p)
    total = 0 if costs.linear is None else sum(costs.linear[s, e[s]].item() for s in slots)
    if costs.factors is not None:
        flow, distance = (factor.tolist() for factor in costs.factors)
        total += sum(flow[s][t] * distance[e[s]][e[t]] for s in slots for t in slots)
    return total


@every_class
def test_pair_costs_add_up_to_the_value_within_limits_and_the_range_holds_it(build):
    rng, problem, _, _, _ = draw(build, 2)
    costs, values = problem.pair_costs(), problem.value_range()
    for _ in range(10):
        p = problem.random_solution(rng).tolist()
        value = naive_value(problem, p)
        if costs is not None:
            assert costs.shape == (problem.size, problem.num_experts)
            assert_same(problem, value_of_pairs(costs, p), value)
        if values is not None:
            assert values[0] - 1e-9 * abs(values[0]) <= value <= values[1] + 1e-9 * abs(values[1])


@every_class
def test_random_solution_stays_inside_blocks(build):
    rng, problem, _, _, _ = draw(build, 1)
    for _ in range(20):
        problem.check_solution(problem.random_solution(rng))


@every_class
def test_data_cannot_be_changed_from_outside(build):
    problem = build(3)
    for array in (each for each in vars(problem).values() if isinstance(each, np.ndarray)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


@every_class
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda p: p[:-1], ValueError, "must have shape"),
        (lambda p: p.astype(float), TypeError, "must hold integers"),
        (lambda p: np.where(p == 0, p.size, p), ValueError, "must hold the seats 0 .."),
        (lambda p: np.where(p == 0, 1, p), ValueError, "every seat once, got seat 1 2 times"),
        (lambda p: p - 1, ValueError, "must hold the seats 0 .."),
    ],
)
def test_what_is_no_permutation_is_refused(build, spoil, error, message):
    problem = build(3)
    with pytest.raises(error, match=message):
        problem.value(spoil(np.arange(problem.size)))


def test_a_slot_that_leaves_its_block_is_refused():
    problem = INSTANCES["pairwise"](0)
    with pytest.raises(ValueError, match="keep every slot in its block of 4 seats, got seat 4 for slot 0"):
        problem.value([4, 1, 2, 3, 0, 5, 6, 7])


def test_an_unknown_state_has_no_kernels():
    with pytest.raises(TypeError, match="no swap_delta kernel is registered for tuple"):
        swap_delta((), 0, 0)
    with pytest.raises(TypeError, match="no commit_swap kernel is registered for tuple"):
        commit_swap((), 0, 0)


@every_class
def test_repr_tells_sizes_and_no_data(build):
    problem = build(3)
    shown = repr(problem)
    assert shown.startswith(f"{type(problem).__name__}(")
    assert f"size={problem.size}, " in shown
    assert len(shown) < 160
    assert "array" not in shown


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("quadratic", "QuadraticAssignment(size=6, integral, symmetric)"),
        ("quadratic general float", "QuadraticAssignment(size=5, float, linear term)"),
        ("pairwise", "PairwiseAssignment(size=8, block_size=4, num_experts=2, integral)"),
        ("mixture bce", "MixtureAssignment(size=5, float, bce, num_samples=9, num_outputs=3)"),
        ("callable", "CallableProblem(size=6, block_size=3, float, order_value)"),
    ],
)
def test_repr_names_what_tells_problems_apart(name, shown):
    assert repr(INSTANCES[name](1)) == shown
