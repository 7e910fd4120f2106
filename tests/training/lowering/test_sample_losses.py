import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from moe_search.training.lowering.sample_losses import NonFiniteLossError, sample_losses


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
