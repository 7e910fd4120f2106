"""Which of the losses that a mixture problem knows a callable is, told by its values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_search.problems.mixture import LossName, MixtureAssignment
from moe_search.training.lowering.precision import as_numpy
from moe_search.training.lowering.sample_losses import Loss, NonFiniteLossError, sample_losses

NOISE_LEVELS = (0.1, 1.0, 10.0)
"""Outputs are perturbed by these multiples of their size: a Huber loss is quadratic under small ones only."""

ACCEPTED = (
    "squared error (outputs and targets [B] or [B, D]), binary cross-entropy of logits (the same shapes, targets in"
    " [0, 1]) and cross-entropy (class indices [B] with outputs [B, C], or [B, G] with outputs [B, G, C], [B, C, G] or"
    " [B, G * C]), each the mean over the samples, summed or averaged over D or G"
)


@dataclass(frozen=True, eq=False)
class RecognizedLoss:
    """A loss equal to ``scale`` times a loss of `MixtureAssignment`.

    Parameters
    ----------
    name : {"squared", "bce", "cross_entropy"}
    scale : float
    targets : ndarray
        In the shape that `MixtureAssignment` takes.
    classes_first : bool
        Whether outputs are [B, C, G], the classes before the groups.
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
    (by numbers that are always the same).

    The arguments are those of `sample_losses`.

    Raises
    ------
    ValueError
        If no candidate fits; the message lists those accepted. Also whatever `sample_losses` raises on the outputs.
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
    except NonFiniteLossError:
        candidates = []  # no accepted loss overflows so early
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
