"""A gate with search against the same gate without, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_search.bench.demo.training_run import TrainingRun


@dataclass(frozen=True)
class MeanAndError:
    """A mean and its standard error, which is NaN for a single value."""

    mean: float
    error: float

    def text(self, digits: int, scale: float = 1.0) -> str:
        """Return ``mean ± error``; without the error if it is not known."""
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if math.isnan(self.error) else f"{mean} ± {scale * self.error:.{digits}f}"


def mean_and_error(values: Sequence[float]) -> MeanAndError:
    """Return the mean of some values and its standard error (sample standard deviation, ddof = 1)."""
    array = np.asarray(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan
    return MeanAndError(float(array.mean()), error)


@dataclass(frozen=True)
class Comparison:
    """Paired differences, with search minus without.

    Attributes
    ----------
    gate : str
        The gate without search.
    loss_differences : tuple of float
        Of the test losses, one a seed; negative means that search did better.
    accuracy_differences : tuple of float
        Of the accuracies, mean of both tasks.
    epochs_to_match : tuple of int or None
        The first epoch at which the run with search is at the least validation loss of the run without; None if never.
    epochs_without : tuple of int
        The epoch of that least loss in the run without search.
    first_epoch_without, first_epoch_with : tuple of float
        Validation losses after the first epoch.
    committed : int
        Maps that search put into the gate, all seeds together.
    epochs : int
        Epochs of a run.
    """

    gate: str
    loss_differences: tuple[float, ...]
    accuracy_differences: tuple[float, ...]
    epochs_to_match: tuple[int | None, ...]
    epochs_without: tuple[int, ...]
    first_epoch_without: tuple[float, ...]
    first_epoch_with: tuple[float, ...]
    committed: int
    epochs: int

    @property
    def verdict(self) -> str:
        """``gain`` or ``harm`` if all seeds agree and the mean exceeds two standard errors; else neither."""
        loss = mean_and_error(self.loss_differences)
        if len(self.loss_differences) > 1 and abs(loss.mean) > 2 * loss.error:
            if max(self.loss_differences) < 0:
                return "gain"
            if min(self.loss_differences) > 0:
                return "harm"
        return "no clear difference"

    def sentences(self) -> str:
        """Return the comparison in plain words."""
        plus = f"{self.gate}+"
        if not any(self.loss_differences) and not self.committed:
            return f"{plus} against {self.gate}: no difference, no map was committed."
        loss = mean_and_error(self.loss_differences)
        accuracy = mean_and_error(self.accuracy_differences)
        of_seeds = f"of {len(self.loss_differences)} {'seed' if len(self.loss_differences) == 1 else 'seeds'}"
        lower = sum(difference < 0 for difference in self.loss_differences)
        epochs = ", ".join("never" if epoch is None else str(epoch) for epoch in self.epochs_to_match)
        return (
            f"{plus} against {self.gate}: {self.verdict}. "
            f"Test loss {_change(loss, 3, 'lower', 'higher')}, lower in {lower} {of_seeds}; "
            f"accuracy {_change(accuracy, 2, 'points lower', 'points higher', scale=100.0)}. "
            f"Validation loss after one epoch: {np.mean(self.first_epoch_with):.3f} with search, "
            f"{np.mean(self.first_epoch_without):.3f} without. "
            f"Epoch at the least validation loss of {self.gate}, by seed: {epochs} with search, "
            f"{', '.join(map(str, self.epochs_without))} without."
        )


def compare(without: Sequence[TrainingRun], with_search: Sequence[TrainingRun]) -> Comparison:
    """Compare runs of one gate, paired by seed.

    Raises
    ------
    ValueError
        If the runs are not pairs of the same seeds, or there are none.
    """
    seeds = [run.seed for run in without]
    if not seeds or seeds != [run.seed for run in with_search]:
        raise ValueError(f"runs must be pairs of the same seeds, got {seeds} and {[run.seed for run in with_search]}")
    return Comparison(
        gate=without[0].gate,
        loss_differences=tuple(b.test_loss - a.test_loss for a, b in zip(without, with_search, strict=True)),
        accuracy_differences=tuple(
            float(np.mean(b.accuracies) - np.mean(a.accuracies)) for a, b in zip(without, with_search, strict=True)
        ),
        epochs_to_match=tuple(
            _first_at_most(b.validation_losses.tolist(), a.validation_losses.min())
            for a, b in zip(without, with_search, strict=True)
        ),
        epochs_without=tuple(run.best_epoch for run in without),
        first_epoch_without=tuple(float(run.validation_losses[1]) for run in without),
        first_epoch_with=tuple(float(run.validation_losses[1]) for run in with_search),
        committed=sum(record.outcome == "committed" for run in with_search for record in run.history),
        epochs=len(without[0].validation_losses) - 1,
    )


def _first_at_most(losses: Sequence[float], target: float) -> int | None:
    return next((epoch for epoch, loss in enumerate(losses) if loss <= target), None)


def _change(change: MeanAndError, digits: int, down: str, up: str, scale: float = 1.0) -> str:
    error = "" if math.isnan(change.error) else f" (standard error {scale * change.error:.{digits}f})"
    return f"{abs(scale * change.mean):.{digits}f} {down if change.mean < 0 else up}{error}"
