"""Sizes and schedules of the demo."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class SearchSchedule:
    """When and how long the gates with a plus search.

    Attributes
    ----------
    period, until : int
        A search every `period` training steps, up to step `until`.
    batches : int
        Batches a search looks at; the one after them verifies.
    iterations : int
        Evaluated neighbors a search; a count and not seconds, so that a run can be repeated.
    """

    period: int
    until: int
    batches: int = 1
    iterations: int = 300

    def count(self, steps: int) -> int:
        """Return the number of searches in a run of `steps` training steps."""
        return min(steps, self.until) // self.period


@dataclass(frozen=True)
class DemoSettings:
    """All that decides what the demo computes, the device apart.

    Attributes
    ----------
    seeds : int
        Number of paired repetitions, seeds 0 .. seeds - 1.
    epochs : int
        Epochs of training in both scenarios.
    pretraining_epochs : int
        Epochs that the specialists of the second scenario get before.
    num_train, num_validation, num_test : int
        Canvases of each split.
    canvas : int
        Width and height of a canvas in pixels.
    hidden_features, features : int
        Hidden units and outputs of an expert.
    batch_size : int
    learning_rate : float
        Of Adam, from scratch and for the specialists.
    tuning_learning_rate : float
        Of Adam, for the specialists under a scrambled map.
    from_scratch, bad_initialization : SearchSchedule

    Raises
    ------
    ValueError
        If `seeds` or `epochs` is not at least 1.
    """

    seeds: int = 3
    epochs: int = 15
    pretraining_epochs: int = 10
    num_train: int = 4000
    num_validation: int = 1000
    num_test: int = 2000
    canvas: int = 12
    hidden_features: int = 24
    features: int = 24
    batch_size: int = 128
    learning_rate: float = 3e-3
    tuning_learning_rate: float = 1e-3
    from_scratch: SearchSchedule = SearchSchedule(period=120, until=480)
    bad_initialization: SearchSchedule = SearchSchedule(period=10, until=40)

    def __post_init__(self) -> None:
        for name, count in (("seeds", self.seeds), ("epochs", self.epochs)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")

    @property
    def steps(self) -> int:
        """Training steps of a run."""
        return self.epochs * math.ceil(self.num_train / self.batch_size)


def smoke_settings(seeds: int = 2, epochs: int = 2) -> DemoSettings:
    """Return sizes that take seconds and prove nothing but that every part works."""
    return DemoSettings(
        seeds=seeds,
        epochs=epochs,
        pretraining_epochs=2,
        num_train=320,
        num_validation=100,
        num_test=100,
        hidden_features=8,
        features=8,
        batch_size=32,
        from_scratch=SearchSchedule(period=8, until=8),
        bad_initialization=SearchSchedule(period=4, until=4),
    )
