import itertools

import naive_training
import numpy as np
import pytest
import torch
from specialists import FEATURES, Model, lowered, make, random_permutation
from torch import nn
from torch.nn import functional

from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.training.lowering.losses import NonFiniteLossError
from moe_search.training.lowering.lowering import lower

ONE_SLOT = ("hash", "top-1", "sigmoid-1")
MANY_SLOTS = ("top-2", "comet", "comet-shared", "softmax", "olmoe-2", "deepseek-3")
SIZES = ((4, 4), (3, 6))


def slot_weights(setting):
    with torch.no_grad():
        return setting.moe.gate(setting.inputs, setting.ids).weights


def evaluated(module):
    """The module in eval mode, without gradients."""

    def call(inputs):
        training = module.training
        module.eval()
        with torch.no_grad():
            outputs = module(inputs)
        module.train(training)
        return outputs

    return call


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss()], ids=["squared", "absolute"])
@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("head", ["none", "linear", "deep"])
@pytest.mark.parametrize("gate", ONE_SLOT)
def test_linear_cost_is_that_of_a_triple_loop(gate, head, n, m, loss):
    setting = make(gate, head, n, m, samples=20)
    setting.scramble()
    lowering = lowered(setting, loss)
    assert isinstance(lowering.problem, LinearAssignment)
    assert not lowering.linearized
    expected = naive_training.linear_cost(
        slot_weights(setting)[:, 0].argmax(1).tolist(),
        m,
        [evaluated(expert) for expert in setting.moe.experts],
        evaluated(setting.model.head),
        loss,
        setting.inputs,
        setting.targets,
        slot_weights(setting).sum((1, 2)).tolist(),
    )
    np.testing.assert_allclose(lowering.problem.cost, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("gate", ONE_SLOT)
def test_linear_value_is_the_true_loss_under_any_map(gate, head, n, m):
    setting = make(gate, head, n, m, loss="cross_entropy")
    setting.loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    setting.scramble()
    lowering = lowered(setting)
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)
    assert lowering.batch_loss == pytest.approx(setting.true_loss(), rel=1e-9)
    rng = np.random.default_rng(1)
    for _ in range(4):
        permutation = random_permutation(lowering.problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


@pytest.mark.parametrize("loss", ["squared", "bce", "cross_entropy"])
@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("gate", MANY_SLOTS)
def test_mixture_value_is_the_true_loss_under_any_map_for_a_linear_head(gate, n, m, loss):
    setting = make(gate, "linear", n, m, loss=loss)
    setting.scramble()
    lowering = lowered(setting)
    assert isinstance(lowering.problem, MixtureAssignment)
    assert lowering.problem.loss == loss
    assert not lowering.linearized
    assert lowering.num_samples == len(setting.inputs)
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)
    rng = np.random.default_rng(1)
    for _ in range(4):
        permutation = random_permutation(lowering.problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_samples_without_any_weight_are_answered_by_the_head_alone():
    setting = make("sigmoid-2", "linear", n=3, m=3, dtype=torch.float32)
    with torch.no_grad():  # a third of the samples has logits whose sigmoid is 0
        setting.moe.gate.linear.weight[:, 0] = 1e4
        setting.inputs[::3, 0] = -1.0
        setting.inputs[1::3, 0] = 0.0
    lowering = lowered(setting)
    assert not bool(slot_weights(setting)[::3].any())
    for permutation in itertools.permutations(range(3)):
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-5)


@pytest.mark.parametrize("gate", ["top-2", "comet"])
def test_mixture_value_is_that_of_a_loop_over_samples_and_slots(gate):
    setting = make(gate, "linear", 3, 6, samples=15)
    setting.scramble()
    lowering = lowered(setting)
    expected = naive_training.mixture_loss(
        slot_weights(setting),
        setting.expert_map.experts.tolist(),
        [evaluated(expert) for expert in setting.moe.experts],
        evaluated(setting.model.head),
        setting.loss,
        setting.inputs,
        setting.targets,
    )
    assert lowering.problem.value(lowering.initial) == pytest.approx(expected, rel=1e-9)


def test_a_shared_map_gives_one_block_of_summed_weights():
    setting = make("comet-shared", n=3, m=6)
    lowering = lowered(setting)
    weights = slot_weights(setting)
    assert weights.shape[1] == 2
    np.testing.assert_allclose(lowering.problem.slot_weights, weights.sum(1, keepdim=True).numpy(), rtol=1e-12)
    assert lowering.problem.block_size == lowering.problem.size == 6


def test_a_deep_head_is_linearized_by_its_jacobian():
    setting = make("top-2", "deep", samples=12)
    setting.scramble()
    lowering = lowered(setting)
    assert lowering.linearized
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)
    head = evaluated(setting.model.head)
    mixture = evaluated(setting.moe)(setting.inputs)
    for e, expert in enumerate(setting.moe.experts):
        answers = evaluated(expert)(setting.inputs)
        for b in range(len(setting.inputs)):
            expected = naive_training.folded_output(head, mixture[b : b + 1], answers[b : b + 1])
            np.testing.assert_allclose(lowering.problem.outputs[b, e], expected[0].numpy(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(6))
def test_only_heads_that_are_not_affine_count_as_linearized(seed, dtype):
    for head, expected in (("none", False), ("linear", False), ("deep", True)):
        setting = make("top-2", head, seed=seed, dtype=dtype)
        assert lowered(setting).linearized is expected, head


def test_single_precision_gives_the_loss_to_its_tolerance():
    setting = make("comet", "linear", 4, 8, loss="cross_entropy", dtype=torch.float32)
    setting.scramble()
    lowering = lowered(setting)
    assert lowering.problem.outputs.dtype == np.float64
    permutation = random_permutation(lowering.problem, np.random.default_rng(2))
    setting.expert_map.assign_permutation(permutation)
    assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-5)


def two_tasks_first(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@pytest.mark.parametrize(
    ("shape", "loss"),
    [((2, 3), two_tasks_first), ((3, 2), nn.CrossEntropyLoss())],
    ids=["tasks first", "classes first"],
)
@pytest.mark.parametrize("gate", ["top-1", "top-2"])
def test_outputs_of_several_tasks(gate, shape, loss):
    setting = make(gate, "none")
    torch.manual_seed(0)
    setting.model.head = nn.Sequential(nn.Linear(FEATURES, 6), nn.Unflatten(1, shape)).double()
    setting.targets = torch.randint(3, (len(setting.inputs), 2))
    setting.loss = loss
    lowering = lowered(setting)
    rng = np.random.default_rng(1)
    for _ in range(3):
        permutation = random_permutation(lowering.problem, rng)
        setting.expert_map.assign_permutation(permutation)
        assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_a_head_that_works_in_place_is_linearized_around_what_it_was_given():
    class Doubling(Model):
        def forward(self, inputs, ids=None):
            mixture = self.moe(inputs, ids)
            mixture *= 2.0
            return self.head(mixture)

    class Twice(nn.Module):
        def forward(self, inputs):
            return 2.0 * inputs

    setting = make("top-2", "deep")
    setting.model = Doubling(setting.moe, setting.model.head)
    setting.scramble()
    lowering = lowered(setting)
    doubled = Model(setting.moe, nn.Sequential(Twice(), setting.model.head))
    expected = lower(doubled, setting.moe, setting.inputs, setting.targets, setting.loss).problem
    np.testing.assert_allclose(lowering.problem.outputs, expected.outputs, rtol=1e-9)


@pytest.mark.parametrize("gate", ["top-1", "top-2"])
def test_heads_that_work_in_place_or_look_at_the_inputs(gate):
    class Residual(Model):
        def forward(self, inputs, ids=None):
            mixture = self.moe(inputs, ids)
            mixture *= 2.0
            return self.head(mixture + inputs)

    setting = make(gate, "linear")
    setting.model = Residual(setting.moe, setting.model.head)
    setting.scramble()
    lowering = lowered(setting)
    assert not lowering.linearized
    permutation = random_permutation(lowering.problem, np.random.default_rng(4))
    setting.expert_map.assign_permutation(permutation)
    assert lowering.problem.value(permutation) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_the_layer_may_be_the_whole_model():
    setting = make("top-2", "none")
    lowering = lower(setting.moe, setting.moe, setting.inputs, setting.targets, setting.loss)
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)


def test_one_sample_is_enough():
    setting = make("top-2", "linear", samples=1)
    lowering = lowered(setting)
    assert lowering.problem.value(lowering.initial) == pytest.approx(setting.true_loss(), rel=1e-9)


def snapshot(setting):
    model = setting.model
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "routing": id(setting.moe.routing),
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def in_training(gate):
    """A setting in the middle of a training step: gradients, a routing, a submodule frozen on purpose."""
    setting = make(gate, "deep")
    setting.model.train()
    setting.model.head[2].eval()
    torch.manual_seed(8)
    inputs, targets, ids = setting.batch()
    setting.loss(setting.model(inputs, ids=ids), targets).backward()
    return setting


@pytest.mark.parametrize("gate", ONE_SLOT + MANY_SLOTS)
def test_the_model_is_left_as_it_was(gate):
    setting = in_training(gate)
    before = snapshot(setting)
    lowered(setting)
    assert same(before, snapshot(setting))


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_the_model_is_left_as_it_was_by_an_error_too(gate, calls):
    setting = in_training(gate)
    before = snapshot(setting)
    count = 0

    def breaks(_module, _args, _outputs):
        nonlocal count
        count += 1
        if count > calls:
            raise KeyError("broken head")

    hook = setting.model.head.register_forward_hook(breaks)
    with pytest.raises(KeyError, match="broken head"):
        lowered(setting, chunk_size=len(setting.inputs))
    hook.remove()
    assert same(before, snapshot(setting))


def test_randomness_of_a_head_in_eval_mode_is_not_taken_from_training():
    class Noisy(nn.Module):
        def forward(self, inputs):
            return inputs + 1e-9 * torch.randn_like(inputs)

    setting = make("top-2", "none")
    setting.model.head = Noisy()
    state = torch.get_rng_state()
    lowered(setting)
    assert torch.equal(state, torch.get_rng_state())


def test_the_layer_must_be_inside_the_model():
    setting, other = make("top-2"), make("top-2")
    with pytest.raises(ValueError, match="moe must be a submodule of model"):
        lower(setting.model, other.moe, setting.inputs, setting.targets, setting.loss)


def test_arguments_of_a_wrong_type():
    setting = make("top-2")
    arguments = {
        "model": setting.model,
        "moe": setting.moe,
        "inputs": setting.inputs,
        "targets": setting.targets,
        "loss": setting.loss,
    }
    for name, wrong in (("model", len), ("moe", nn.Linear(1, 1)), ("inputs", [1.0]), ("targets", 3), ("loss", "mse")):
        with pytest.raises(TypeError, match=f"{name} must be"):
            lower(**arguments | {name: wrong})


def test_rows_of_the_layer_must_be_the_samples():
    class Tokens(Model):
        def forward(self, inputs, ids=None):
            return self.head(self.moe(inputs.flatten(0, 1))).unflatten(0, inputs.shape[:2]).mean(1)

    setting = make("top-2")
    model = Tokens(setting.moe, setting.model.head)
    with pytest.raises(ValueError, match=r"one row for each sample of the batch, shape \(10, 6\), got shape \(30, 6\)"):
        lower(model, setting.moe, setting.inputs[:30].unflatten(0, (10, 3)), setting.targets[:10], setting.loss)


def test_the_layer_must_run_once():
    class Twice(Model):
        def forward(self, inputs, ids=None):
            return self.head(self.moe(self.moe(inputs)))

    class Never(Model):
        def forward(self, inputs, ids=None):
            return self.head(inputs)

    setting = make("top-2")
    for kind, count in ((Twice, 2), (Never, 0)):
        model = kind(setting.moe, setting.model.head)
        with pytest.raises(ValueError, match=f"moe must run exactly once .* seen {count} times"):
            lower(model, setting.moe, setting.inputs, setting.targets, setting.loss)


def test_outputs_must_depend_on_the_layer():
    class Cut(Model):
        def forward(self, inputs, ids=None):
            return self.head(self.moe(inputs).detach())

    setting = make("top-2")
    model = Cut(setting.moe, setting.model.head)
    with pytest.raises(ValueError, match="must depend on those of moe by differentiable operations"):
        lower(model, setting.moe, setting.inputs, setting.targets, setting.loss)


def test_an_empty_batch():
    setting = make("top-2")
    with pytest.raises(ValueError, match=r"inputs must hold at least one sample, got 0 \(shape \(0, 6\)\)"):
        lower(setting.model, setting.moe, setting.inputs[:0], setting.targets[:0], setting.loss)


def test_parts_of_a_batch_must_agree_in_length():
    setting = make("hash")
    with pytest.raises(ValueError, match=r"targets must hold as many samples as inputs, got shape \(5, 4\)"):
        lower(setting.model, setting.moe, setting.inputs, setting.targets[:5], setting.loss, setting.ids)
    with pytest.raises(ValueError, match=r"ids must hold as many samples as inputs, got shape \(5,\)"):
        lower(setting.model, setting.moe, setting.inputs, setting.targets, setting.loss, setting.ids[:5])


def test_inputs_on_another_device_than_the_model():
    setting = make("top-2")
    with pytest.raises(ValueError, match=r"inputs must be on the device of the model \(cpu\), got meta"):
        lower(setting.model, setting.moe, setting.inputs.to("meta"), setting.targets, setting.loss)
    with pytest.raises(ValueError, match=r"targets must be on the device of the model \(cpu\), got meta"):
        lower(setting.model, setting.moe, setting.inputs, setting.targets.to("meta"), setting.loss)


def test_ids_for_a_model_that_takes_none():
    setting = make("top-2")
    model = nn.Sequential(setting.moe, setting.model.head)
    ids = torch.zeros(len(setting.inputs), dtype=torch.long)
    with pytest.raises(TypeError, match=r"Sequential\.forward takes no argument named ids"):
        lower(model, setting.moe, setting.inputs, setting.targets, setting.loss, ids)


def test_a_model_that_does_not_return_one_output_a_sample():
    setting = make("top-2")
    setting.model.head = nn.Flatten(0)
    with pytest.raises(
        ValueError, match=r"model must return one output for each of the 96 samples, got shape \(576,\)"
    ):
        lowered(setting)


def test_a_loss_that_no_mixture_knows():
    setting = make("comet", loss="cross_entropy")
    with pytest.raises(ValueError, match=r"loss must be one that a mixture can be searched under: squared error"):
        lowered(setting, nn.CrossEntropyLoss(label_smoothing=0.1))


@pytest.mark.parametrize("gate", ["top-1", "top-2"])
def test_a_loss_that_is_a_sum_or_a_vector(gate):
    setting = make(gate, loss="cross_entropy")
    with pytest.raises(ValueError, match="loss must be the mean over the samples"):
        lowered(setting, nn.CrossEntropyLoss(reduction="sum"))
    with pytest.raises(ValueError, match="loss must return a scalar"):
        lowered(setting, nn.CrossEntropyLoss(reduction="none"))


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_numbers_that_are_not_finite(gate):
    setting = make(gate)
    with torch.no_grad():
        setting.moe.experts[1].weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteLossError):
        lowered(setting)


@pytest.mark.parametrize("gate", ["hash", "top-2"])
def test_an_expert_that_no_sample_uses_yet_must_be_finite_too(gate):
    setting = make(gate, samples=1)
    used = setting.expert_map(slot_weights(setting))[0] > 0
    with torch.no_grad():
        setting.moe.experts[int((~used).nonzero()[0])].bias[0] = torch.nan
    with pytest.raises(NonFiniteLossError):
        lowered(setting)


@pytest.mark.cuda
@pytest.mark.parametrize("gate", ["hash", "top-2", "comet"])
def test_a_model_on_cuda(gate):
    setting = make(gate, "deep")
    expected = lowered(setting)
    setting.model.cuda()
    setting.inputs, setting.targets = setting.inputs.cuda(), setting.targets.cuda()
    setting.ids = None if setting.ids is None else setting.ids.cuda()
    state = torch.cuda.get_rng_state()
    found = lowered(setting)
    assert torch.equal(state, torch.cuda.get_rng_state())
    assert found.problem.value(expected.initial) == pytest.approx(expected.problem.value(expected.initial), rel=1e-9)
    assert found.linearized == expected.linearized
    with pytest.raises(ValueError, match=r"inputs must be on the device of the model \(cuda:0\), got cpu"):
        lower(setting.model, setting.moe, setting.inputs.cpu(), setting.targets, setting.loss)
