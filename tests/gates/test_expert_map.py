import copy

import naive_gates
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from moe_search.gates.expert_map import ExpertMap

sizes = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.booleans())
modest = settings(deadline=None, max_examples=60)


def make(size):
    n, capacity, selectors, shared = size
    return ExpertMap(n, n * capacity, selectors, shared)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_fresh_map():
    expert_map = ExpertMap(2, 6, 2)
    assert expert_map.capacity == 3
    assert expert_map.experts.tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert expert_map.permutation().tolist() == list(range(12))
    assert ExpertMap(2, 6, 2, shared=True).experts.shape == (1, 6)
    assert ExpertMap(3).experts.tolist() == [[0, 1, 2]]


def test_permutation_by_hand():
    expert_map = ExpertMap(2, 4, 2)
    expert_map.assign([[1, 0, 1, 0], [0, 1, 1, 0]])
    # Row 0: slots 1, 3 hold seats 0, 1; slots 0, 2 hold seats 2, 3. Row 1 the same from 4 on.
    assert expert_map.permutation().tolist() == [2, 0, 3, 1, 4, 6, 7, 5]
    expert_map.assign_permutation([0, 1, 2, 3, 7, 5, 6, 4])
    assert expert_map.experts.tolist() == [[0, 0, 1, 1], [1, 0, 1, 0]]


@modest
@given(sizes, st.integers(0, 10**6))
def test_a_scrambled_map_is_valid_and_goes_through_its_permutation(size, seed):
    expert_map = make(size)
    expert_map.scramble(seeded(seed))
    experts, p = expert_map.experts.clone(), expert_map.permutation()
    rows, m = experts.shape
    assert p.dtype == np.int64
    assert sorted(p) == list(range(rows * m))
    for t in range(rows):
        assert torch.equal(experts[t].bincount(), torch.full((size[0],), size[1]))
        for s in range(m):
            seat = p[t * m + s] - t * m
            assert 0 <= seat < m
            assert seat // size[1] == experts[t, s]
    fresh = make(size)
    fresh.assign_permutation(p)
    assert torch.equal(fresh.experts, experts)
    assert np.array_equal(fresh.permutation(), p)


@modest
@given(sizes, st.randoms(use_true_random=False))
def test_any_permutation_comes_back_up_to_the_seats_of_an_expert(size, random):
    expert_map = make(size)
    rows, m = expert_map.experts.shape
    p = np.concatenate([t * m + np.array(random.sample(range(m), m)) for t in range(rows)])
    expert_map.assign_permutation(p)
    again = expert_map.permutation()
    assert np.array_equal(p // size[1], again // size[1])
    for start in range(0, rows * m, size[1]):
        slots = np.flatnonzero((again >= start) & (again < start + size[1]))
        assert list(again[slots]) == sorted(again[slots])


@modest
@given(sizes, st.integers(0, 10**6))
def test_forward_is_the_sum_over_selectors_and_slots(size, seed):
    expert_map = make(size)
    expert_map.scramble(seeded(seed))
    weights = torch.rand(3, size[2], size[0] * size[1], generator=seeded(seed), dtype=torch.float64)
    expected = [naive_gates.expert_weights(w.tolist(), expert_map.experts.tolist(), size[0]) for w in weights]
    assert torch.allclose(expert_map(weights), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_forward_is_differentiable(shared):
    expert_map = ExpertMap(2, 4, 3, shared)
    expert_map.scramble(seeded(3))
    weights = torch.rand(2, 3, 4, dtype=torch.float64, generator=seeded(1)).requires_grad_()
    assert torch.autograd.gradcheck(expert_map, (weights,))


def test_the_map_may_change_between_forward_and_backward():
    expert_map = ExpertMap(2, 4)
    weights = torch.rand(1, 1, 4, generator=seeded(1)).requires_grad_()
    first = expert_map(weights)[0, 0]
    expert_map.assign([[1, 1, 0, 0]])
    first.backward()
    assert weights.grad.tolist() == [[[1.0, 1.0, 0.0, 0.0]]]


def test_scramble_is_uniform_over_maps_and_follows_its_seed():
    expert_map = ExpertMap(2, 4)
    generator = seeded(0)
    seen = {}
    for _ in range(1200):
        expert_map.scramble(generator)
        key = tuple(expert_map.experts[0].tolist())
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 6  # 4! / (2! 2!)
    assert min(seen.values()) > 150
    assert max(seen.values()) < 250
    first, again = ExpertMap(7, 7, 2), ExpertMap(7, 7, 2)
    first.scramble(seeded(9))
    again.scramble(seeded(9))
    assert torch.equal(first.experts, again.experts)
    assert not torch.equal(first.experts[0], first.experts[1])


def test_assign_copies_into_the_buffer():
    expert_map = ExpertMap(3)
    buffer, given = expert_map.experts, torch.tensor([[2, 0, 1]], dtype=torch.int32)
    expert_map.assign(given)
    given[0, 0] = 1
    assert expert_map.experts is buffer
    assert buffer.dtype == torch.int64
    assert buffer.tolist() == [[2, 0, 1]]
    expert_map.assign(np.array([[1, 2, 0]], dtype=np.uint8))
    assert buffer.tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("experts", "error", "fault"),
    [
        ([0, 0, 1, 1], ValueError, r"must have shape \(2, 4\) for 2 experts and 2 rows of 4 slots, got shape \(4,\)"),
        ([[0, 0, 1, 1]], ValueError, r"must have shape \(2, 4\) .*, got shape \(1, 4\)"),
        ([[0, 0, 1, 1], [0, 1, 1, 1]], ValueError, r"hold every expert 2 times .*, got expert 0 1 times in row 1"),
        ([[0, 0, 1, 2], [0, 0, 1, 1]], ValueError, r"the experts 0 \.\. 1, got 0 \.\. 2"),
        ([[0, 0, 1, -1], [0, 0, 1, 1]], ValueError, r"the experts 0 \.\. 1, got -1 \.\. 1"),
        ([[0.0, 0.0, 1.0, 1.0]] * 2, TypeError, "must hold integers, got dtype float64"),
        (torch.zeros(2, 4), TypeError, "must hold integers, got dtype torch.float32"),
        (torch.zeros(2, 4, dtype=torch.bool), TypeError, "must hold integers, got dtype torch.bool"),
    ],
)
def test_assign_refuses(experts, error, fault):
    expert_map = ExpertMap(2, 4, 2)
    expert_map.scramble(seeded(2))
    before = expert_map.experts.clone()
    with pytest.raises(error, match=f"experts must .*{fault}|experts {fault}"):
        expert_map.assign(experts)
    assert torch.equal(expert_map.experts, before)


@pytest.mark.parametrize(
    ("permutation", "error", "fault"),
    [
        ([0, 1, 2, 3], ValueError, r"must have shape \(8,\) for 2 experts and 2 rows of 4 slots, got shape \(4,\)"),
        ([0, 1, 2, 3, 4, 5, 6, 6], ValueError, r"every seat of 0 \.\. 7 once"),
        ([0, 1, 2, 3, 4, 5, 6, 8], ValueError, r"every seat of 0 \.\. 7 once"),
        ([0, 1, 2, 7, 4, 5, 6, 3], ValueError, "every slot in its row of 4 seats, got seat 7 for 3"),
        (np.arange(8.0), TypeError, "must hold integers, got dtype float64"),
    ],
)
def test_assign_permutation_refuses(permutation, error, fault):
    expert_map = ExpertMap(2, 4, 2)
    before = expert_map.experts.clone()
    with pytest.raises(error, match=f"permutation must .*{fault}|permutation {fault}"):
        expert_map.assign_permutation(permutation)
    assert torch.equal(expert_map.experts, before)


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"num_experts": 0}, ValueError, "num_experts must be an integer >= 1, got 0"),
        ({"num_experts": 2.5}, TypeError, "num_experts must be an integer, got 2.5"),
        (
            {"num_experts": 3, "num_slots": 4},
            ValueError,
            "num_slots must be a multiple of num_experts, got 4 slots for 3",
        ),
        ({"num_experts": 3, "num_slots": 0}, ValueError, "num_slots must be an integer >= 1, got 0"),
        ({"num_experts": 3, "num_selectors": 0}, ValueError, "num_selectors must be an integer >= 1, got 0"),
    ],
)
def test_wrong_sizes(arguments, error, fault):
    with pytest.raises(error, match=fault):
        ExpertMap(**arguments)


@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4), (2, 3, 8), (2, 3, 3)])
def test_forward_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"slot_weights must have shape \[B, 3, 4\], got shape"):
        ExpertMap(2, 4, 3)(torch.zeros(shape))


def test_state_dict_round_trip_and_deepcopy():
    expert_map, other = ExpertMap(3, 6, 2), ExpertMap(3, 6, 2)
    expert_map.scramble(seeded(1))
    assert list(expert_map.state_dict()) == ["experts"]
    other.load_state_dict(expert_map.state_dict())
    assert torch.equal(other.experts, expert_map.experts)
    assert torch.equal(copy.deepcopy(expert_map).experts, expert_map.experts)


@pytest.mark.parametrize(
    ("experts", "fault"),
    [
        (torch.tensor([[0, 1, 2]]), r"must have shape \(1, 4\) for 2 experts and 1 row of 4 slots, got shape \(1, 3\)"),
        (torch.tensor([[0, 1, 2, 3]]), r"the experts 0 \.\. 1, got 0 \.\. 3"),
        (torch.tensor([[0, 1, 1, 1]]), r"every expert 2 times .*, got expert 0 1 times in row 0"),
        (torch.tensor([[0.0, 1.0, 0.5, 1.0]]), "must hold integers, got dtype torch.float32"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_wrong_map_in_a_state_dict_is_refused(experts, fault, strict):
    model = torch.nn.Sequential(ExpertMap(2, 4))
    with pytest.raises(RuntimeError, match=f"0.experts .*{fault}"):
        model.load_state_dict({"0.experts": experts}, strict=strict)
    assert model[0].experts.tolist() == [[0, 0, 1, 1]]


def test_a_missing_map_is_named():
    with pytest.raises(RuntimeError, match=r"Missing key.*experts"):
        ExpertMap(2).load_state_dict({})


def by_torch(model, averaged, _):
    averaged.update_parameters(model)


def by_hand(model, averaged, state):
    """As the average of all entries of a state dict is mostly written."""
    for name, value in model.state_dict().items():
        state[name] = 0.9 * state[name] + (1 - 0.9) * value
    averaged.load_state_dict(state)


def in_place(model, averaged, _):
    for name, value in averaged.state_dict().items():
        value.copy_(0.9 * value + (1 - 0.9) * model.state_dict()[name])


def by_data(model, averaged, _):
    """Which no version counts."""
    for one, other in zip(averaged.buffers(), model.buffers(), strict=True):
        one.data.copy_(0.9 * one.data + (1 - 0.9) * other.data)


EMA = {"multi_avg_fn": torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), "use_buffers": True}
AVERAGES = [(by_torch, {"use_buffers": True}), (by_torch, EMA), (by_hand, None), (in_place, None), (by_data, None)]


class TestWrittenToFromOutside:
    """Averages of models average their buffers too, and the mean of two maps is none."""

    @staticmethod
    def averaged(**options):
        model = torch.nn.Sequential(ExpertMap(3))
        model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))  # without any nothing is averaged
        averaged = torch.optim.swa_utils.AveragedModel(model, **options)
        for row in ([0, 1, 2], [2, 1, 0], [2, 0, 1]):
            model[0].assign([row])
            averaged.update_parameters(model)
        return averaged.eval()

    @pytest.mark.parametrize("seen", [False, True])
    def test_an_averaged_map_is_refused(self, seen):
        averaged = self.averaged(use_buffers=True)
        fault = r"must be changed by the map alone, .* experts must hold every expert 1 times .*use_buffers=False"
        if seen:
            averaged = copy.deepcopy(averaged)
            averaged.module[0].assign([[0, 1, 2]])
            averaged(torch.ones(2, 1, 3))
            averaged.module[0].experts.copy_(torch.tensor([[0, 0, 1]]))
        for _ in range(2):
            with pytest.raises(ValueError, match=fault):
                averaged(torch.ones(2, 1, 3))
        with pytest.raises(ValueError, match="experts must hold every expert 1 times"):
            averaged.module[0].permutation()
        with pytest.raises(RuntimeError, match="experts must hold every expert 1 times"):
            ExpertMap(3).load_state_dict(averaged.module[0].state_dict())
        averaged.module[0].assign([[2, 0, 1]])
        assert averaged(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist() == [[2.0, 3.0, 1.0]]

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize(("update", "options"), AVERAGES)
    def test_a_map_survives_its_averages_or_they_are_refused(self, update, options, training):
        """As long as the map stays, all is well; once it changes, the next load or forward says what to do."""
        model = torch.nn.Sequential(ExpertMap(3))
        model.register_parameter("scale", torch.nn.Parameter(torch.ones(1)))
        model[0].assign([[2, 0, 1]])
        averaged = copy.deepcopy(model) if options is None else torch.optim.swa_utils.AveragedModel(model, **options)
        averaged.train(training)
        weights, state = torch.tensor([[[1.0, 2.0, 3.0]]]), averaged.state_dict()
        for _ in range(3):
            update(model, averaged, state)
            assert averaged(weights).tolist() == [[2.0, 3.0, 1.0]]
        model[0].assign([[1, 2, 0]])
        refused = pytest.raises((ValueError, RuntimeError), match=r"the mean of two maps is none: .*use_buffers=False")
        if update is by_hand:
            with refused:
                update(model, averaged, state)
            return
        update(model, averaged, state)
        for broken in (averaged, copy.deepcopy(averaged)):
            with refused:
                broken(weights)
        with refused:
            copy.deepcopy(averaged).load_state_dict(averaged.state_dict())

    def test_without_buffers_the_map_is_that_of_the_model(self):
        averaged = self.averaged()
        assert averaged.module[0].experts.tolist() == [[2, 0, 1]]
        assert averaged(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist() == [[2.0, 3.0, 1.0]]

    def test_the_map_is_looked_at_once_for_each_writing(self, monkeypatch):
        looked = []
        check = ExpertMap._check
        monkeypatch.setattr(ExpertMap, "_check", lambda *args: (looked.append(1), check(*args))[1])
        expert_map = ExpertMap(3).eval()
        counts = []

        def forward():
            looked.clear()
            expert_map(torch.ones(2, 1, 3))
            counts.append(len(looked))

        forward()
        forward()
        expert_map.experts.copy_(torch.tensor([[1, 2, 0]]))
        forward()
        forward()
        expert_map.double()  # leaves integers as they are
        forward()
        expert_map.assign([[1, 0, 2]])
        forward()
        expert_map.train()
        forward()
        expert_map.experts.copy_(expert_map.experts.clone())  # as DistributedDataParallel does at every step
        forward()
        assert counts == [1, 0, 1, 0, 0, 1, 1, 0]

    def test_maps_go_through_vmap_and_inference_mode(self):
        maps = [ExpertMap(3).eval() for _ in range(2)]
        maps[1].assign([[1, 2, 0]])
        weights = torch.tensor([[[1.0, 2.0, 3.0]]])
        stacked = {"experts": torch.stack([each.experts for each in maps])}
        mapped = torch.func.vmap(lambda state: torch.func.functional_call(ExpertMap(3).eval(), state, (weights,)))(
            stacked
        )
        assert mapped.tolist() == [[[1.0, 2.0, 3.0]], [[3.0, 1.0, 2.0]]]
        with torch.inference_mode():
            assert ExpertMap(3).eval()(weights).tolist() == [[1.0, 2.0, 3.0]]
