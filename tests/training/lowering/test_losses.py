import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from moe_search.problems.mixture import MixtureAssignment
from moe_search.training.lowering.losses import NonFiniteLossError, recognize_loss, sample_losses


def batch(samples=7, classes=5):
    generator = torch.Generator().manual_seed(3)
    outputs = torch.randn(samples, classes, generator=generator)
    return outputs, torch.randint(classes, (samples,), generator=generator)


def one_by_one(loss, outputs, targets):
    return [float(loss(outputs[b : b + 1], targets[b : b + 1])) for b in range(len(outputs))]


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_losses_of_the_samples_are_those_of_batches_of_one(samples):
    outputs, targets = batch(samples)
    losses = sample_losses(nn.CrossEntropyLoss(), outputs, targets)
    assert losses.dtype == np.float64
    np.testing.assert_allclose(losses, one_by_one(nn.CrossEntropyLoss(), outputs, targets), rtol=1e-6)


def test_a_loss_that_cannot_be_mapped_is_called_sample_by_sample():
    def branching(outputs, targets):
        losses = [(o - t).pow(2).sum() if o.sum().item() > 0 else (o - t).abs().sum() for o, t in zip(outputs, targets)]  # noqa: B905
        return torch.stack(losses).mean()

    outputs, _ = batch()
    targets = torch.zeros_like(outputs)
    losses = sample_losses(branching, outputs, targets)
    np.testing.assert_allclose(losses, one_by_one(branching, outputs, targets), rtol=1e-6)
    assert (outputs.sum(1) > 0).any()
    assert (outputs.sum(1) < 0).any()


def test_half_precision_is_computed_in_single():
    outputs, targets = batch()
    half = outputs.to(torch.bfloat16)
    expected = one_by_one(functional.cross_entropy, half.float(), targets)
    np.testing.assert_allclose(sample_losses(functional.cross_entropy, half, targets), expected, rtol=1e-6)
    # One of single precision too, with targets of half.
    of_logits, probabilities = functional.binary_cross_entropy_with_logits, outputs.sigmoid().to(torch.bfloat16)
    expected = one_by_one(of_logits, outputs, probabilities.float())
    np.testing.assert_allclose(sample_losses(of_logits, outputs, probabilities), expected, rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 7])
def test_a_sum_over_the_samples_is_rejected(samples):
    outputs, targets = batch(samples)
    with pytest.raises(ValueError, match="loss must be the mean over the samples"):
        sample_losses(nn.CrossEntropyLoss(reduction="sum"), outputs, targets)


def test_a_mean_weighted_by_class_is_rejected():
    outputs, targets = batch()
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2, 1.0, 3.0]))
    with pytest.raises(ValueError, match="loss must be the mean over the samples"):
        sample_losses(weighted, outputs, targets)


def test_a_vector_is_rejected():
    outputs, targets = batch()
    with pytest.raises(ValueError, match=r"loss must return a scalar, .* shape \(7,\)"):
        sample_losses(nn.CrossEntropyLoss(reduction="none"), outputs, targets)


def test_a_number_is_rejected():
    outputs, targets = batch()
    with pytest.raises(TypeError, match="loss must return a scalar tensor, got float"):
        sample_losses(lambda o, t: float(functional.cross_entropy(o, t)), outputs, targets)


def test_a_loss_that_is_not_finite_is_named():
    outputs, targets = batch()
    outputs[2, 1] = torch.nan
    with pytest.raises(NonFiniteLossError, match="loss must be finite, got nan"):
        sample_losses(nn.CrossEntropyLoss(), outputs, targets)


def test_an_error_of_the_loss_itself_is_raised():
    def broken(outputs, targets):
        raise KeyError("no such task")

    with pytest.raises(KeyError, match="no such task"):
        sample_losses(broken, *batch())


def test_gradients_are_not_recorded():
    outputs, targets = batch()
    outputs.requires_grad_()
    sample_losses(nn.CrossEntropyLoss(), outputs, targets)
    assert outputs.grad is None


B, C, G, D = 9, 4, 3, 5


def generator():
    return torch.Generator().manual_seed(11)


def outputs_of(*shape):
    return torch.randn(*shape, generator=generator())


def classes(*shape):
    return torch.randint(C, shape, generator=generator())


def halves(*shape):
    return torch.rand(*shape, generator=generator())


def tasks_first(outputs, targets):  # outputs [B, G, C], the mean over the tasks
    return torch.stack([functional.cross_entropy(outputs[:, g], targets[:, g]) for g in range(G)]).mean()


def tasks_flat(outputs, targets):  # outputs [B, G C], the sum over the tasks
    return sum(functional.cross_entropy(outputs[:, g * C : g * C + C], targets[:, g]) for g in range(G))


CASES = {
    "cross-entropy": (nn.CrossEntropyLoss(), outputs_of(B, C), classes(B), "cross_entropy", 1.0),
    "cross-entropy, classes first": (nn.CrossEntropyLoss(), outputs_of(B, C, G), classes(B, G), "cross_entropy", 1 / G),
    "cross-entropy, square": (nn.CrossEntropyLoss(), outputs_of(B, C, C), classes(B, C), "cross_entropy", 1 / C),
    "cross-entropy, tasks first": (tasks_first, outputs_of(B, G, C), classes(B, G), "cross_entropy", 1 / G),
    "cross-entropy, tasks flat": (tasks_flat, outputs_of(B, G * C), classes(B, G), "cross_entropy", 1.0),
    "squared, mean over D": (nn.MSELoss(), outputs_of(B, D), halves(B, D), "squared", 1 / D),
    "squared, sum over D": (lambda o, t: (o - t).pow(2).sum(1).mean(), outputs_of(B, D), halves(B, D), "squared", 1.0),
    "squared, half": (lambda o, t: 0.5 * (o - t).pow(2).sum(1).mean(), outputs_of(B, D), halves(B, D), "squared", 0.5),
    "squared, one axis": (nn.MSELoss(), outputs_of(B), halves(B), "squared", 1.0),
    "squared, one column": (nn.MSELoss(), outputs_of(B, 1), halves(B, 1), "squared", 1.0),
    "squared, mixed": (lambda o, t: (o[:, 0] - t).pow(2).mean(), outputs_of(B, 1), halves(B), "squared", 1.0),
    "squared, images": (nn.MSELoss(), outputs_of(B, 2, 3), halves(B, 2, 3), "squared", 1 / 6),
    "squared, integer targets": (lambda o, t: (o - t).pow(2).mean(), outputs_of(B), classes(B), "squared", 1.0),
    "bce, mean over D": (nn.BCEWithLogitsLoss(), outputs_of(B, D), halves(B, D), "bce", 1 / D),
    "bce, hard": (nn.BCEWithLogitsLoss(), outputs_of(B), halves(B).round(), "bce", 1.0),
    "bce, one column": (nn.BCEWithLogitsLoss(), outputs_of(B, 1), halves(B, 1), "bce", 1.0),
    "double": (nn.CrossEntropyLoss(), outputs_of(B, C).double(), classes(B), "cross_entropy", 1.0),
    "half precision": (nn.CrossEntropyLoss(), outputs_of(B, C).bfloat16(), classes(B), "cross_entropy", 1.0),
    "squared, half precision": (nn.MSELoss(), outputs_of(B, D).bfloat16(), halves(B, D).bfloat16(), "squared", 1 / D),
    "targets of half precision": (nn.MSELoss(), outputs_of(B, D), outputs_of(B, D).bfloat16(), "squared", 1 / D),
    "bce, half precision": (nn.BCEWithLogitsLoss(), outputs_of(B, D), halves(B, D).bfloat16(), "bce", 1 / D),
    "one sample": (nn.CrossEntropyLoss(), outputs_of(1, C), classes(1), "cross_entropy", 1.0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_an_accepted_loss_is_recognized_and_scaled(case):
    loss, outputs, targets, name, scale = case
    found = recognize_loss(loss, outputs, targets)
    assert found.name == name
    assert found.scale == pytest.approx(scale, rel=1e-5)
    # What was recognized gives the loss back, on outputs that recognition did not see.
    other = (outputs * 0.7 + 0.2).to(torch.promote_types(outputs.dtype, torch.float32))
    flat = found.flatten(other.double().numpy(), leading=1)
    problem = MixtureAssignment(np.ones((len(flat), 1, 1)), flat[:, None], found.targets, found.name)
    # torch computes a loss in half precision if the targets have it.
    targets = targets.float() if targets.is_floating_point() else targets
    assert found.scale * problem.value([0]) == pytest.approx(float(loss(other, targets)), rel=1e-5)


def test_flatten_keeps_leading_axes():
    found = recognize_loss(nn.CrossEntropyLoss(), outputs_of(B, C, G), classes(B, G))
    many = outputs_of(B, 6, C, G).numpy()
    np.testing.assert_array_equal(found.flatten(many, leading=2)[:, 2], found.flatten(many[:, 2], leading=1))


REJECTED = {
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.01), outputs_of(B, C), classes(B)),
    "absolute error": (nn.L1Loss(), outputs_of(B, D), halves(B, D)),
    "absolute error, none at hand": (nn.L1Loss(), halves(B, D), halves(B, D)),
    "huber, quadratic at hand": (nn.HuberLoss(delta=2.0), 0.1 * halves(B, D), torch.zeros(B, D)),
    "tasks of unequal weight": (
        lambda o, t: functional.cross_entropy(o[:, 0], t[:, 0]) + 0.5 * functional.cross_entropy(o[:, 1], t[:, 1]),
        outputs_of(B, 2, C),
        classes(B, 2),
    ),
    "a constant added": (lambda o, t: functional.mse_loss(o, t) + 1.0, outputs_of(B, D), halves(B, D)),
    "negative": (lambda o, t: -functional.mse_loss(o, t), outputs_of(B, D), halves(B, D)),
    "poisson, overflows under noise": (
        nn.PoissonNLLLoss(),
        torch.full((B, D), 40.0),
        halves(B, D),
    ),
    "probabilities, none of others": (nn.BCELoss(), torch.sigmoid(outputs_of(B, D)), halves(B, D).clamp(0, 1)),
    "probabilities as targets": (nn.CrossEntropyLoss(), outputs_of(B, C), torch.softmax(outputs_of(B, C), 1)),
}


@pytest.mark.parametrize("case", REJECTED.values(), ids=REJECTED.keys())
def test_another_loss_is_rejected_with_a_list_of_those_accepted(case):
    with pytest.raises(ValueError, match=r"squared error .* binary cross-entropy .* cross-entropy \(class indices"):
        recognize_loss(*case)


def test_nothing_is_drawn_from_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    recognize_loss(nn.MSELoss(), outputs_of(B, D), halves(B, D))
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
