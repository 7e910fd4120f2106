"""The loss of every sample, from a mean over a batch, and which of the losses that a mixture problem knows it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_search.problems.mixture import LossName, MixtureAssignment

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``loss(outputs, targets)``: a scalar tensor, the mean over the samples of a batch."""

NOISE_LEVELS = (0.1, 1.0, 10.0)
"""Outputs are perturbed by these multiples of their size: a Huber loss is quadratic under small ones only."""

ACCEPTED = (
    "squared error (outputs and targets [B] or [B, D]), binary cross-entropy of logits (the same shapes, targets in"
    " [0, 1]) and cross-entropy (class indices [B] with outputs [B, C], or [B, G] with outputs [B, G, C], [B, C, G] or"
    " [B, G * C]), each the mean over the samples, summed or averaged over D or G"
)


def at_least_single(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 where it has floats of less; any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return the array of a tensor, on any device and with any graph; half precision comes as float32."""
    # numpy has no bfloat16.
    return at_least_single(tensor.detach()).cpu().numpy()


class NonFiniteLossError(ValueError):
    """A loss, or an output that a loss is made of, is NaN or infinite."""


@torch.no_grad()
def sample_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Return the loss of each sample alone, shape [B].

    The loss is mapped over the samples by ``torch.func.vmap``; a loss that cannot be mapped (one that calls ``.item()``
    or branches on values) is called once for each sample.

    Raises
    ------
    ValueError
        If the loss returns more than a scalar, or something else than the mean over the samples.
    NonFiniteLossError
        If the loss of the batch is NaN or infinite.
    """
    # Half precision has too few digits to tell one loss from another, or a small gain from none.
    outputs, targets = at_least_single(outputs), at_least_single(targets)
    # One sample has the same mean and sum; the same sample twice has not.
    repeats = 2 if len(outputs) == 1 else 1
    of_batch = loss(torch.cat([outputs] * repeats), torch.cat([targets] * repeats))
    if not isinstance(of_batch, Tensor):
        raise TypeError(f"loss must return a scalar tensor, got {type(of_batch).__name__}")
    if of_batch.ndim != 0:
        raise ValueError(
            f"loss must return a scalar, the mean over the samples, got a tensor of shape {tuple(of_batch.shape)}"
        )
    mean = float(of_batch)
    if not np.isfinite(mean):
        raise NonFiniteLossError(f"loss must be finite, got {mean}")

    losses = _each_loss(loss, outputs, targets)
    # Rounding grows far slower than the square root of the machine epsilon with the number of samples summed.
    tolerance = torch.finfo(of_batch.dtype).eps ** 0.5
    if not abs(losses.mean() - mean) <= tolerance * np.abs(losses).mean():
        raise ValueError(
            f"loss must be the mean over the samples, got {mean:.6g} for {len(outputs) * repeats} samples "
            f"whose own losses have the mean {losses.mean():.6g}"
        )
    return losses


def each_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample alone, shape [B], with the graph that it was computed by."""
    try:
        with warnings.catch_warnings():
            # vmap warns of every operator that it can only map slowly.
            warnings.simplefilter("ignore")
            return torch.func.vmap(lambda output, target: loss(output[None], target[None]))(outputs, targets)
    except Exception:
        # Whatever a loss does under vmap, outside of it the loop below meets the same error, if it is one.
        return torch.stack([loss(outputs[b : b + 1], targets[b : b + 1]) for b in range(len(outputs))])


def _each_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    return each_loss(loss, outputs, targets).detach().cpu().double().numpy()


IGNORED = -100
"""The target that `torch.nn.functional.cross_entropy` leaves out by default."""


def mean_and_error(values: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float, int]:
    """Return the mean of numbers of sequences, its standard error, and of how many sequences it is.

    A sequence counts as told, shape [B] as the numbers, so that the mean is a ratio of sums; those that count nothing
    are none.
    """
    size, total = int((counts > 0).sum()), float(counts.sum())
    mean = float(values @ counts / total)
    squares = float(((values - mean) * counts) @ ((values - mean) * counts))
    return mean, (size / (size - 1) * squares) ** 0.5 / total if size > 1 else float("nan"), size


def sequence_losses(loss: Loss, outputs: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the loss of each sequence alone, shape [B], and what it counts in the mean over a batch, shape [B].

    A sequence counts as many times as it has targets that are not ignored, where these are integers for each of its
    tokens (the first one apart, where the loss leaves it out, as those do that shift targets against outputs), and once
    where they are anything else, or where the loss says so. One that counts nothing has the loss 0.

    Raises
    ------
    ValueError
        If the loss is the mean over neither.
    NonFiniteLossError
        If the loss of the batch is NaN or infinite.
    """
    counted = torch.ones(len(targets), 1, dtype=torch.bool, device=targets.device)
    of_tokens = targets.ndim > 1 and not targets.is_floating_point()
    if of_tokens:
        counted = (targets != IGNORED).flatten(1)
    if not bool(counted.any()):
        return np.zeros(len(targets)), np.zeros(len(targets))
    outputs, targets = at_least_single(outputs), at_least_single(targets)
    of_batch = loss(outputs, targets)
    mean, eps = float(of_batch), torch.finfo(of_batch.dtype).eps
    tolerance = eps**0.5
    if of_tokens and _without_first(loss, outputs, targets, mean, 8 * eps):
        counted = counted[:, 1:]
    counts = counted.sum(1).double().cpu().numpy()
    if not counts.any():
        return np.zeros(len(targets)), counts
    if not np.isfinite(mean):
        raise NonFiniteLossError(f"loss must be finite, got {mean}")
    losses = losses_where(counts > 0, loss, outputs, targets)
    require_finite(losses)
    for weights in (counts, (counts > 0) * counts.sum() / (counts > 0).sum()):
        if abs(losses @ weights / weights.sum() - mean) <= tolerance * np.abs(losses).max():
            return losses, weights
    raise ValueError(
        f"loss must be the mean over the sequences, or over the targets that are not {IGNORED}, got {mean:.6g} for "
        f"{len(targets)} sequences whose own losses have the mean {losses[counts > 0].mean():.6g}"
    )


def losses_where(counted: NDArray[np.bool_], loss: Loss, outputs: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """Return the loss of each sequence alone, shape [B], 0 for those that are not counted; it need not be finite."""
    losses = np.zeros(len(targets))
    if counted.any():
        here = torch.from_numpy(np.flatnonzero(counted)).to(outputs.device)
        losses[counted] = _each_loss(loss, at_least_single(outputs)[here], at_least_single(targets)[here])
    return losses


def require_finite(losses: NDArray[np.float64]) -> None:
    """Raise NonFiniteLossError if a loss of sequences, or what one differs from another by, is NaN or infinite."""
    if not np.isfinite(losses).all():
        raise NonFiniteLossError("loss must be finite, got NaN or infinity for a sequence")


def _without_first(loss: Loss, outputs: Tensor, targets: Tensor, mean: float, tolerance: float) -> bool:
    """Return whether the first target of a sequence changes nothing.

    The mean over many tokens hardly changes without the first ones: what is left out changes no digit of it, up to sums
    in another order.
    """
    # Those of half of the sequences too: once, it may be by chance.
    for sequences in (len(targets), len(targets) // 2):
        without = targets.clone()
        without[:sequences, 0] = IGNORED
        try:
            changed = float(loss(outputs, without))
        except Exception:
            # A loss that knows no targets to ignore.
            return False
        if not (abs(changed - mean) <= tolerance * abs(mean) or (np.isnan(changed) and np.isnan(mean))):
            return False
    return True


@dataclass(frozen=True, eq=False)
class RecognizedLoss:
    """A loss equal to ``scale`` times a loss of `MixtureAssignment`.

    Targets have the shape that `MixtureAssignment` takes. With ``classes_first``, outputs are [B, C, G], the classes
    before the groups.
    """

    name: LossName
    scale: float
    targets: NDArray[Any]
    classes_first: bool = False

    def fits(self, outputs: Tensor, losses: NDArray[np.float64]) -> bool:
        """Return whether this is what gave the ``losses`` of the samples, shape [B], for ``outputs``, [B, ...]."""
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        try:
            expected = _losses(self, outputs.detach().cpu().double().numpy())
        except (TypeError, ValueError):
            return False  # the problem itself rejects these targets for this loss
        return _close(self.scale * expected, losses, dtype)

    def with_targets(self, targets: Tensor) -> RecognizedLoss:
        """Return the same loss for the targets of other samples, shape [B, ...]."""
        return replace(self, targets=_shaped(self.name, as_numpy(targets)))

    def flatten(self, outputs: NDArray[np.float64], leading: int) -> NDArray[np.float64]:
        """Return ``outputs`` with all but the ``leading`` axes in the one axis D of `MixtureAssignment`."""
        if self.classes_first:
            outputs = np.swapaxes(outputs, -1, -2)
        return outputs.reshape(*outputs.shape[:leading], -1)


def recognize_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> RecognizedLoss:
    """Find which loss of `MixtureAssignment` a callable is, up to a positive factor.

    The losses of the samples are compared with those of every candidate, on the given outputs and on perturbed ones
    (by numbers that are always the same). If none fits, the ValueError lists those accepted.
    """
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    shape = tuple(outputs.shape)
    given = outputs.detach().to(dtype)
    size = max(float(given.abs().mean()), 1.0)
    rng = np.random.default_rng(0)
    trials = [given]
    for level in NOISE_LEVELS:
        noise = torch.from_numpy(rng.standard_normal(shape)).to(given.device, dtype)
        trials.append(given + level * size * noise)
    measured = [sample_losses(loss, given, targets)]
    candidates = list(_candidates(shape, as_numpy(targets)))
    try:
        measured += [sample_losses(loss, trial, targets) for trial in trials[1:]]
    except Exception:
        candidates = []  # no accepted loss overflows so early, or refuses outputs such as those beyond 0 .. 1
    arrays = [trial.cpu().double().numpy() for trial in trials]
    for candidate in candidates:
        try:
            expected = [_losses(candidate, array) for array in arrays]
        except (TypeError, ValueError):
            continue  # the problem itself rejects these targets for this loss
        scale = _scale(expected, measured)
        # Each is compared at its own noise, or a deviation at a small scale would hide behind a large one.
        if scale > 0 and all(_close(scale * want, got, dtype) for got, want in zip(measured, expected, strict=True)):
            return replace(candidate, scale=scale)
    raise ValueError(
        f"loss must be one that a mixture can be searched under: {ACCEPTED}; "
        f"got another one for outputs of shape {shape} and targets of shape {tuple(targets.shape)}"
    )


def _candidates(shape: tuple[int, ...], targets: NDArray[Any]) -> Iterator[RecognizedLoss]:
    batch, width = shape[0], int(np.prod(shape[1:]))
    if targets.size == batch * width:
        # Equal numbers in another order ([B, C, D] against [B, D, C]) would not fit by value.
        for name in get_args(LossName)[:2]:
            yield RecognizedLoss(name, 1.0, _shaped(name, targets))
    if targets.dtype.kind not in "iu" or targets.ndim > 2:
        return
    groups = _shaped("cross_entropy", targets)
    num_groups = groups.shape[1]
    if len(shape) == 2 or (len(shape) == 3 and shape[1] == num_groups):
        yield RecognizedLoss("cross_entropy", 1.0, groups)
    if len(shape) == 3 and shape[2] == num_groups:
        yield RecognizedLoss("cross_entropy", 1.0, groups, classes_first=True)


def _shaped(name: LossName, targets: NDArray[Any]) -> NDArray[Any]:
    flat = targets.reshape(len(targets), -1)
    return flat if name == "cross_entropy" else flat.astype(np.float64)


def _close(expected: NDArray[np.float64], measured: NDArray[np.float64], dtype: torch.dtype) -> bool:
    return bool(np.abs(measured - expected).max() <= torch.finfo(dtype).eps ** 0.5 * np.abs(measured).max())


def _losses(candidate: RecognizedLoss, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = candidate.flatten(outputs, leading=1)
    one_slot = np.ones((len(flat), 1, 1))
    return MixtureAssignment(one_slot, flat[:, None, :], candidate.targets, candidate.name).sample_losses(flat)


def _scale(expected: list[NDArray[np.float64]], measured: list[NDArray[np.float64]]) -> float:
    want, got = np.concatenate(expected), np.concatenate(measured)
    square = float(want @ want)
    return float(want @ got) / square if square > 0 else 0.0
