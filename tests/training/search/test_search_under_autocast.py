"""Models of half precision, or that enter autocast in their forward, as Accelerate and Transformers run them."""

import functools

import numpy as np
import pytest
import torch
from shared_map import make_shared
from specialists import Model, lowered, make, random_permutation
from torch import nn

from moe_search.gates.comet import COMET
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.solvers.engine.stop import MaxIterations
from moe_search.training.lowering.lowering import lower
from moe_search.training.search.permutation_search import PermutationSearch

ROUNDING = 2e-3
"""What a mean loss over a batch may be off by in bfloat16, whose numbers have a relative error of up to 2^-8."""

GATES = {"hash": LinearAssignment, "top-1": LinearAssignment}
GATES |= dict.fromkeys(("top-2", "comet", "comet-shared", "softmax"), MixtureAssignment)


def enter_autocast(model, enabled=True):
    """Let the forward of a model enter autocast, or leave it, and return float32."""
    forward = model.forward

    @functools.wraps(forward)
    def under_autocast(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return forward(*args, **kwargs).float()

    model.forward = under_autocast
    return model


def under_autocast(gate, head="linear", **options):
    setting = make(gate, head, dtype=torch.float32, **options)
    setting.scramble()
    enter_autocast(setting.model)
    return setting


def assert_true_under_any_map(setting, lowering, rel=ROUNDING):
    problem = lowering.problem
    assert lowering.batch_loss == pytest.approx(setting.true_loss(), rel=1e-6)
    # What is mixed from folded outputs is exact for the present map; one expert alone runs on other rows at once.
    now = 1e-6 if isinstance(problem, MixtureAssignment) else rel
    assert problem.value(lowering.initial) == pytest.approx(lowering.batch_loss, rel=now)
    # Losses are about 1, but for the map that the targets are of: there they are rounding.
    rng = np.random.default_rng(1)
    for _ in range(0 if lowering.linearized else 4):
        permutation = random_permutation(problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert problem.value(permutation) == pytest.approx(setting.true_loss(), rel=rel, abs=rel)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("head", ["none", "linear", "deep"])
@pytest.mark.parametrize("gate", GATES)
def test_a_problem_is_of_the_loss_under_autocast(gate, head, loss):
    setting = under_autocast(gate, head, loss=loss)
    lowering = lowered(setting)
    assert isinstance(lowering.problem, GATES[gate])
    assert lowering.linearized <= (head == "deep")
    assert_true_under_any_map(setting, lowering)


def test_samples_go_to_the_slots_that_the_gate_chose_under_autocast():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moe = MixtureOfExperts(StackedExperts(16, 64, 8), TopK(64, 16, k=1))
        model = enter_autocast(Model(moe, nn.Linear(8, 3)))
        inputs, targets = torch.randn(512, 64), torch.randn(512, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        chosen = moe.gate(inputs).weights[:, 0].argmax(1)
    with torch.no_grad():
        assert (chosen != moe.gate(inputs).weights[:, 0].argmax(1)).any()
    lowering = lower(model, moe, inputs, targets, nn.MSELoss())
    assert lowering.slot_loads.tolist() == torch.bincount(chosen, minlength=16).tolist()
    assert lowering.problem.value(lowering.initial) == pytest.approx(lowering.batch_loss, rel=1e-4)


def test_comet_with_one_leaf_from_its_start():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moe = MixtureOfExperts(StackedExperts(4, 8, 3), COMET(8, 4, k=1))
        inputs, targets = torch.randn(32, 8), torch.randint(3, (32,))
    lowering = lower(enter_autocast(moe), moe, inputs, targets, nn.CrossEntropyLoss())
    assert not lowering.linearized
    assert lowering.problem.value(lowering.initial) == pytest.approx(lowering.batch_loss, rel=1e-6)


def test_pairs_of_experts():
    setting = under_autocast("top-2", "deep")
    lowering = lowered(setting, nn.L1Loss())
    assert isinstance(lowering.problem, PairwiseAssignment)
    setting.loss = nn.L1Loss()
    assert_true_under_any_map(setting, lowering, rel=5 * ROUNDING)


@pytest.mark.parametrize("gates", [("top-2", "top-1"), ("top-1", "hash")])
def test_several_tasks_over_a_shared_map(gates):
    setting = make_shared(gates)
    setting.model.float()
    setting.inputs, setting.targets = setting.inputs.float(), setting.targets.float()
    enter_autocast(setting.model)
    setting.scramble()
    lowering = lowered(setting)
    assert not lowering.linearized
    assert_true_under_any_map(setting, lowering, rel=5 * ROUNDING)


def test_a_search_while_training_under_autocast():
    setting = under_autocast("top-2", samples=200)
    before = setting.true_loss()
    search = PermutationSearch(
        setting.model, setting.moe, loss=setting.loss, period=2, stop=MaxIterations(2_000), seed=1
    )
    for start in (0, 100):
        inputs, targets, _ = setting.batch(start, start + 100)
        record = search.step(inputs, targets)
    assert record.outcome == "committed"
    assert setting.true_loss() < 0.1 * before


@pytest.mark.parametrize("gate", ["top-1", "top-2"])
def test_a_model_that_leaves_autocast_is_searched_in_full_precision(gate):
    setting = make(gate, dtype=torch.float32)
    setting.scramble()
    enter_autocast(setting.model, enabled=False)
    expected = lowered(setting)
    with torch.autocast("cpu", torch.bfloat16):
        lowering = lowered(setting)
    assert lowering.batch_loss == expected.batch_loss
    rng = np.random.default_rng(0)
    for _ in range(4):
        permutation = random_permutation(lowering.problem, rng)
        assert lowering.problem.value(permutation) == pytest.approx(expected.problem.value(permutation), rel=1e-6)


@pytest.fixture
def accelerate():
    # Its settings are the process's: a Trainer of another test leaves them, and refuses them changed.
    accelerate = pytest.importorskip("accelerate")
    states = (accelerate.state.AcceleratorState, accelerate.state.PartialState, accelerate.state.GradientState)
    before = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    yield accelerate
    for state, shared in zip(states, before, strict=True):
        state._shared_state.clear()
        state._shared_state.update(shared)


@pytest.mark.parametrize("gate", ["top-1", "top-2"])
@pytest.mark.parametrize("prepared", ["model", "layer"])
def test_a_model_prepared_by_accelerate(accelerate, prepared, gate):
    setting = make(gate, "linear" if prepared == "model" else "none", dtype=torch.float32)
    setting.scramble()
    model = setting.model if prepared == "model" else setting.moe
    accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(model)
    # Autocast is in the forward, and what comes out is float32.
    assert model(setting.inputs).dtype == torch.float32
    assert not torch.equal(model(setting.inputs), type(model).forward(model, setting.inputs))
    lowering = lower(model, setting.moe, setting.inputs, setting.targets, setting.loss)
    assert not lowering.linearized
    if prepared == "layer":
        setting.model = Model(setting.moe, nn.Identity())
    assert_true_under_any_map(setting, lowering)


@pytest.mark.parametrize("kind", ["auto", "pairwise"])
@pytest.mark.parametrize("head", ["none", "linear"])
@pytest.mark.parametrize("loss", ["squared", "bce", "cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_half_precision(dtype, loss, head, kind):
    setting = make("top-2", head, loss=loss, dtype=torch.float32)
    setting.scramble()
    setting.model.to(dtype)
    setting.inputs = setting.inputs.to(dtype)
    if setting.targets.is_floating_point():
        setting.targets = setting.targets.to(dtype)
    lowering = lowered(setting, problem=kind)
    # The loss is not computed in half precision: its rounding would hide what a map gains.
    forward = setting.model.forward
    setting.model.forward = lambda inputs, ids=None: forward(inputs, ids).float()
    if setting.targets.is_floating_point():
        setting.targets = setting.targets.float()
    assert_true_under_any_map(setting, lowering, rel=10 * ROUNDING)


@pytest.mark.parametrize("gate", ["top-1", "top-2"])
def test_targets_of_half_precision(gate):
    setting = make(gate, dtype=torch.float32)
    setting.scramble()
    setting.targets = setting.targets.bfloat16()
    assert_true_under_any_map(setting, lowered(setting), rel=1e-5)


@pytest.mark.parametrize("gate", ["top-1", "top-2"])
def test_a_gate_that_other_layers_use_too(gate):
    class Three(Model):
        def __init__(self, moe, head):
            super().__init__(moe, head)
            self.others = nn.ModuleList(MixtureOfExperts(moe.experts, moe.gate) for _ in range(2))

        def forward(self, inputs, ids=None):
            first = self.others[0](inputs, ids)
            return self.head(self.moe(first, ids) + 0 * self.others[1](first + 1, ids))

    setting = make(gate)
    setting.scramble()
    setting.model = Three(setting.moe, setting.model.head)
    lowering = lowered(setting)
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_a_layer_that_does_not_call_its_gate():
    class Constant(MixtureOfExperts):
        def forward(self, inputs, ids=None):
            return self.expert_outputs(inputs)[:, 0]

    moe = Constant(StackedExperts(4, 6, 3), TopK(6, 4, k=2))
    with pytest.raises(ValueError, match="moe must call its gates in a forward of model, it was seen to call 0 of 1"):
        lower(moe, moe, torch.randn(5, 6), torch.randn(5, 3), nn.MSELoss())
