import copy
import io
import pickle

import numpy as np
import pytest
import torch
from every_gate import FEATURES, OUTPUTS, VOCABULARY, batch
from hypothesis import given, settings, strategies as st
from torch import nn

from moe_search.gates.comet import COMET
from moe_search.gates.dselect_k import DSelectK
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.softmax import Softmax
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.exact.enumeration import Enumeration
from moe_search.training.lowering.lowering import lower
from moe_search.training.search.permutation_search import PermutationSearch
from moe_search.training.sinkhorn import SinkhornPermutation


class Counting(nn.Module):
    """An expert that remembers the batches it was called on."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(FEATURES, OUTPUTS).double()
        self.batches = []

    def forward(self, inputs):
        self.batches.append(inputs.detach().clone())
        return self.linear(inputs)


def make_gates(n=4, m=8, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gates = [
            TopK(FEATURES, n, min(2, m), m),
            COMET(FEATURES, n, min(2, m), m, gamma=0.5, entropy=0.1),
            HashRouting(n, m, vocabulary=VOCABULARY),
            DSelectK(None, n, 1, m, entropy=0.1),
        ]
    for t, gate in enumerate(gates):
        gate.expert_map.scramble(torch.Generator().manual_seed(seed + t))
    return [gate.double() for gate in gates]


def make_multi(n=4, m=8, seed=0, stacked=True, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = StackedExperts(n, FEATURES, OUTPUTS, 5).double() if stacked else [Counting(e) for e in range(n)]
    return MultiGateMixtureOfExperts(experts, make_gates(n, m, seed), **options)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 2), st.integers(1, 9), st.booleans(), st.integers(0, 10**6))
def test_equals_a_layer_for_each_task(n, capacity, size, stacked, seed):
    multi = make_multi(n, n * capacity, seed, stacked)
    inputs, ids = batch(size, seed)
    mixtures = multi(inputs, ids)
    assert mixtures.shape == (size, 4, OUTPUTS)
    for t, gate in enumerate(make_gates(n, n * capacity, seed)):
        alone = MixtureOfExperts(multi.experts, gate)
        assert torch.allclose(mixtures[:, t], alone(inputs, ids), rtol=0, atol=1e-12)
        assert torch.equal(multi.tasks[t](inputs, ids), alone(inputs, ids))


@pytest.mark.parametrize("stacked", [True, False])
def test_gradients_equal_those_of_a_layer_for_each_task(stacked):
    multi = make_multi(stacked=stacked)
    separate = copy.deepcopy(multi)
    inputs, ids = batch()
    (multi(inputs, ids).square().sum() + multi.regularization()).backward()
    layers = [MixtureOfExperts(separate.experts, task.gate) for task in separate.tasks]
    sum(layer(inputs, ids).square().sum() + layer.regularization() for layer in layers).backward()
    assert len(list(multi.parameters())) == len(list(separate.parameters())) > 0
    for (name, ours), theirs in zip(multi.named_parameters(), separate.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-12), name


def test_an_expert_runs_once_on_the_samples_of_any_task():
    multi = make_multi(stacked=False)
    inputs, ids = batch(20)
    multi(inputs, ids)
    weights = [task.gate.expert_map(task.gate(inputs, ids).weights) for task in multi.tasks]
    for e, expert in enumerate(multi.experts):
        wanted = torch.stack([w[:, e] != 0 for w in weights]).any(0)
        assert len(expert.batches) == int(wanted.any())
        assert all(torch.equal(expert.batches[0], inputs[wanted]) for _ in expert.batches)


@pytest.mark.parametrize("dispatch", ["auto", "dense", "sorted", "grouped"])
def test_every_dispatch_gives_the_same_mixtures_and_gradients(dispatch):
    def make(multi):
        torch.manual_seed(0)
        experts = StackedExperts(4, 8, 8, 16)
        gates = [TopK(8, 4, 2), COMET(8, 4, 2), TopK(8, 4, 1, 8)]
        return multi(experts, gates)

    multi = make(lambda experts, gates: MultiGateMixtureOfExperts(experts, gates, dispatch=dispatch))
    layers = make(lambda experts, gates: [MixtureOfExperts(experts, gate, "sorted") for gate in gates])
    inputs = torch.randn(30, 8)
    mixtures = multi(inputs)
    expected = torch.stack([layer(inputs) for layer in layers], 1)
    torch.testing.assert_close(mixtures, expected)
    mixtures.square().sum().backward()
    expected.square().sum().backward()
    for ours, theirs in zip(multi.experts.parameters(), layers[0].experts.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    assert {task.dispatch for task in multi.tasks} == {dispatch}


def test_dispatch_decides_which_experts_run():
    inputs, ids = batch(20)
    for dispatch, runs in (("dense", [20] * 4), ("sorted", None)):
        multi = make_multi(stacked=False, dispatch=dispatch)
        multi(inputs, ids)
        weights = [task.gate.expert_map(task.gate(inputs, ids).weights) for task in multi.tasks]
        wanted = torch.stack([w != 0 for w in weights]).any(0).sum(0).tolist()
        assert [sum(map(len, expert.batches)) for expert in multi.experts] == (runs or wanted)


def test_wrong_dispatch():
    with pytest.raises(ValueError, match="dispatch must be one of auto, dense, sorted, grouped, got 'fast'"):
        make_multi(dispatch="fast")
    with pytest.raises(ValueError, match='dispatch="grouped" needs StackedExperts, got modules of their own'):
        make_multi(stacked=False, dispatch="grouped")
    multi = MultiGateMixtureOfExperts(StackedExperts(3, 5, 2), [TopK(5, 3, 1)], dispatch="grouped")
    with pytest.raises(ValueError, match="grouped"):
        multi(torch.randn(4, 5))
    multi.dispatch = "fast"  # it may be set to anything
    with pytest.raises(ValueError, match="dispatch must be one of"):
        multi(torch.randn(4, 5))
    multi.dispatch = "dense"
    assert [task.dispatch for task in multi.tasks] == ["dense"]
    multi(torch.randn(4, 5))


def test_an_expert_that_no_task_needs_is_not_called():
    experts = [Counting(e) for e in range(3)]
    gates = [HashRouting(3, table=[0, 0]), HashRouting(3, table=[0, 2])]
    MultiGateMixtureOfExperts(experts, gates)(torch.randn(2, FEATURES).double(), torch.tensor([0, 1]))
    assert [len(expert.batches) for expert in experts] == [1, 0, 1]


def test_what_another_tasks_expert_answers_does_not_spoil_a_task():
    class Infinite(Counting):
        def forward(self, inputs):
            return super().forward(inputs) + torch.inf

    gates = [HashRouting(2, table=[0, 0]), HashRouting(2, table=[0, 1])]
    multi = MultiGateMixtureOfExperts([Counting(0), Infinite(1)], gates)
    mixtures = multi(torch.randn(2, FEATURES).double(), torch.tensor([0, 1]))
    assert mixtures.isfinite().all(2).tolist() == [[True, True], [True, False]]


class TestRegularization:
    def test_is_the_sum_of_the_gates(self):
        multi = make_multi()
        inputs, ids = batch()
        multi(inputs, ids)
        expected = sum(gate.penalty(gate(inputs, ids)).item() for gate in make_gates())
        assert expected > 0
        assert multi.regularization().shape == ()
        assert multi.regularization().item() == pytest.approx(expected, abs=1e-12)

    def test_is_zero_in_eval_mode_and_before_any_forward(self):
        multi = make_multi()
        assert multi.regularization().item() == 0
        multi.eval()
        multi(*batch())
        assert [task.routing for task in multi.tasks] == [None] * 4
        multi.train()
        multi(*batch())
        multi.eval()
        assert multi.regularization().item() == 0


def test_experts_are_in_the_state_dict_once_and_their_parameters_counted_once():
    multi = make_multi()
    assert {name.split(".")[0] for name in multi.state_dict()} == {"experts", "tasks"}
    assert not any("tasks" in name and "experts." in name for name in multi.state_dict())
    names = [name for name, _ in multi.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(multi.parameters()))
    assert sum(name.startswith("experts.") for name in names) == 4


@pytest.mark.parametrize("shared_map", [False, True])
def test_state_dict_round_trip(shared_map):
    def make(seed):
        torch.manual_seed(seed)
        gates = [TopK(FEATURES, 3, 2, 6), Softmax(FEATURES, 3, 6)]
        gates[0].expert_map.scramble(torch.Generator().manual_seed(seed))
        return MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS), gates, shared_map=shared_map).double()

    multi, other = make(1), make(2)
    file = io.BytesIO()
    torch.save(multi.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(multi(batch()[0]), other(batch()[0]))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda multi: pickle.loads(pickle.dumps(multi))])
@pytest.mark.parametrize("shared_map", [False, True])
def test_a_copy_is_equal_and_independent(copier, shared_map):
    gates = [TopK(FEATURES, 3, 2, 6).double(), Softmax(FEATURES, 3, 6).double()]
    multi = MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS).double(), gates, shared_map=shared_map)
    inputs, _ = batch()
    expected = multi(inputs)
    copied = copier(multi)
    assert torch.equal(copied(inputs), expected)
    assert all(task.experts is copied.experts for task in copied.tasks)
    assert (copied.tasks[0].gate.expert_map is copied.tasks[1].gate.expert_map) == shared_map
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(multi(inputs), expected)
    assert bool((copied(inputs) == 0).all())


class TestSharedMap:
    def test_is_one_map_for_all_tasks(self):
        gates = [TopK(FEATURES, 3, 2, 6).double(), Softmax(FEATURES, 3, 6).double()]
        multi = MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS).double(), gates, shared_map=True)
        inputs, _ = batch()
        multi.tasks[1].gate.expert_map.assign([[2, 0, 1, 1, 0, 2]])
        assert multi.tasks[0].gate.expert_map.experts.tolist() == [[2, 0, 1, 1, 0, 2]]
        assert sum("expert_map" in name for name in multi.state_dict()) == 1
        mixtures = multi(inputs)
        for t, gate in enumerate(gates):
            assert torch.allclose(mixtures[:, t], MixtureOfExperts(multi.experts, gate)(inputs), rtol=0, atol=1e-12)

    def test_cannot_be_searched_for_one_task(self):
        gates = [TopK(FEATURES, 3, 2), Softmax(FEATURES, 3)]
        multi = MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS), gates, shared_map=True)
        with pytest.raises(ValueError, match="the map of task 1 is shared by all 2 tasks"):
            multi.task(1)

    @pytest.mark.parametrize("other", [TopK(FEATURES, 3, 1, 6), COMET(FEATURES, 3, 2), COMET(FEATURES, 3, 1, 6)])
    def test_needs_maps_of_the_same_sizes(self, other):
        first = COMET(FEATURES, 3, 2, 6, shared_map=True)
        with pytest.raises(ValueError, match=r"gates must have maps of the same sizes .* in gate 0 and .* in gate 1"):
            MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS), [first, other], shared_map=True)

    @pytest.mark.parametrize("place", [0, 1])
    def test_needs_maps_that_are_the_gates_own(self, place):
        experts = StackedExperts(3, FEATURES, OUTPUTS)
        gates = [TopK(FEATURES, 3, 2), Softmax(FEATURES, 3)]
        MultiGateMixtureOfExperts(experts, gates, shared_map=True)
        for other in (gates[1], SinkhornPermutation(TopK(FEATURES, 3, 2), steps=3)):
            fresh = [TopK(FEATURES, 3, 1), TopK(FEATURES, 3, 2)]
            asked = fresh[:]
            asked.insert(place, other)
            fault = f"gates must have maps of their own to share one, got in gate {place} a {type(other).__name__} with"
            with pytest.raises(ValueError, match=fault):
                MultiGateMixtureOfExperts(experts, asked, shared_map=True)
            assert fresh[0].expert_map is not fresh[1].expert_map
            assert "expert_map" in dict(fresh[1].named_children())
            assert MultiGateMixtureOfExperts(experts, asked)(torch.randn(2, FEATURES)).shape == (2, 3, OUTPUTS)


class TwoHeads(nn.Module):
    """A linear head for each task behind a layer of two tasks."""

    def __init__(self, multi):
        super().__init__()
        self.multi = multi
        self.heads = nn.ModuleList(nn.Linear(OUTPUTS, 1) for _ in range(2)).double()

    def forward(self, inputs, ids=None):
        mixtures = self.multi(inputs, ids)
        return torch.cat([head(mixtures[:, t]) for t, head in enumerate(self.heads)], 1)


@pytest.fixture
def two_tasks():
    """A model whose maps are best for its data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        experts = [nn.Linear(FEATURES, OUTPUTS).double() for _ in range(4)]
        gates = [TopK(FEATURES, 4, 2).double(), TopK(FEATURES, 4, 1).double()]
        model = TwoHeads(MultiGateMixtureOfExperts(experts, gates))
        inputs = torch.randn(200, FEATURES, dtype=torch.float64)
    with torch.no_grad():
        targets = model(inputs)
    return model, inputs, targets


@pytest.mark.parametrize("t", [0, 1])
def test_the_lowering_of_a_task_is_the_true_loss(two_tasks, t):
    model, inputs, targets = two_tasks
    loss = nn.MSELoss()
    lowering = lower(model, model.multi.task(t), inputs[:60], targets[:60], loss)
    assert not lowering.linearized
    generator = np.random.default_rng(0)
    for _ in range(5):
        permutation = generator.permutation(4)
        model.multi.task(t).gate.expert_map.assign_permutation(permutation)
        with torch.no_grad():
            expected = loss(model(inputs[:60]), targets[:60]).item()
        assert lowering.problem.value(permutation) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("t", [0, 1])
def test_a_search_repairs_the_map_of_a_task_and_leaves_the_other(two_tasks, t):
    model, inputs, targets = two_tasks
    task, other = model.multi.task(t), model.multi.task(1 - t)
    before = task.gate.expert_map.experts.clone()
    task.gate.expert_map.assign([[2, 3, 1, 0]])
    search = PermutationSearch(
        model, task, loss=nn.MSELoss(), period=2, solver=Enumeration() if t == 0 else None, stop=MaxRuntime(5.0)
    )
    search.step(inputs[:100], targets[:100])
    record = search.step(inputs[100:], targets[100:])
    assert record.outcome == "committed"
    assert torch.equal(task.gate.expert_map.experts, before)
    assert other.gate.expert_map.experts.tolist() == [[0, 1, 2, 3]]


def test_no_such_task():
    multi = make_multi()
    assert multi.task(3) is multi.tasks[3]
    for t in (4, -1):
        with pytest.raises(IndexError, match=rf"t must be a task, 0 \.\. 3, got {t}"):
            multi.task(t)


def test_all_experts_on_all_samples():
    multi = make_multi()
    inputs, _ = batch()
    assert torch.equal(multi.expert_outputs(inputs), multi.experts(inputs))


def test_autocast():
    multi = make_multi().float()
    inputs, ids = batch()
    expected = multi(inputs.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixtures = multi(inputs.float(), ids)
    assert mixtures.dtype == torch.bfloat16
    assert (mixtures.float() - expected).abs().mean() < 0.05


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(training):
    multi = make_multi().train(training)
    inputs, ids = batch()
    torch.compiler.reset()
    compiled = torch.compile(multi, fullgraph=True, backend="eager")
    mixtures = compiled(inputs, ids)
    assert torch.allclose(mixtures, multi(inputs, ids), rtol=0, atol=1e-12)
    if training:
        (mixtures.sum() + multi.regularization()).backward()


@pytest.mark.parametrize(
    ("gates", "error", "fault"),
    [
        ([], ValueError, "gates must hold one gate for each task, got none"),
        (TopK(FEATURES, 3, 1), TypeError, "gates must be an iterable of gates, one for each task, got TopK"),
        (3, TypeError, "gates must be an iterable of gates, one for each task, got int"),
        ([nn.Linear(4, 3)], TypeError, "gate must be a Gate, got Linear"),
        ([TopK(FEATURES, 3, 1), TopK(FEATURES, 4, 1)], ValueError, "experts must be 4, as many as the gate's, got 3"),
        ([TopK(FEATURES, 3, 1)] * 2, ValueError, "gates must be different modules, .* got one of them twice"),
    ],
)
def test_wrong_gates(gates, error, fault):
    with pytest.raises(error, match=fault):
        MultiGateMixtureOfExperts(StackedExperts(3, FEATURES, OUTPUTS), gates)


def test_tokens_of_sequences_and_padding():
    multi = make_multi()
    inputs, ids = batch(12)
    expected = multi(inputs, ids)
    tokens, of_tokens = inputs.unflatten(0, (3, 4)), ids.unflatten(0, (3, 4))
    torch.testing.assert_close(multi(tokens, of_tokens), expected.unflatten(0, (3, 4)))
    mask = torch.arange(12).unflatten(0, (3, 4)) % 5 > 0
    outputs = multi(tokens.masked_fill(~mask.unsqueeze(2), torch.nan), of_tokens, mask)
    torch.testing.assert_close(outputs, expected.unflatten(0, (3, 4)).masked_fill(~mask[..., None, None], 0.0))


def test_wrong_inputs():
    multi = make_multi()
    with pytest.raises(ValueError, match=r"inputs must hold at least one row, got shape \(0, 4\)"):
        multi(torch.zeros(0, FEATURES).double(), torch.zeros(0).long())
    with pytest.raises(ValueError, match="ids must be given"):
        multi(batch()[0])
