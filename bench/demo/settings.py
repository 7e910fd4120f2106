"""Sizes, schedules and the device of the demo."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch

from moe_search.bench.experiments.gates import SPARSE
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.bench.experiments.two_image_model import SMOKE_SIZES, ModelSizes
from moe_search.checks import require_choice, require_integer

SEARCHED = tuple(gate for gate in SPARSE if gate != "DSelect-k")
"""The sparse gates, each of which is also trained with search: one gate with a smooth step is enough for a demo."""

SHOWN = ("Softmax", *SEARCHED)

LATE, EARLY = SearchSchedule(period=120, until=480), SearchSchedule(period=10, until=40)


@dataclass(frozen=True, kw_only=True)
class DemoSettings(ModelSizes):
    """All that decides what the demo computes, the device apart.

    Attributes
    ----------
    seeds : int
        Number of paired repetitions, seeds 0 .. seeds - 1.
    epochs : int
        Epochs of training in both scenarios; specialists are trained before the second.
    tuning_learning_rate : float
        The rate of Adam for the specialists under a scrambled map; from scratch, it is `learning_rate`.
    windows : int
        Windows of every task of the trace that is replayed.
    dense_steps : int
        Training steps of the dense network whose neurons are split.
    """

    seeds: int = 3
    epochs: int = 15
    tuning_learning_rate: float = 1e-3
    from_scratch: SearchSchedule = LATE
    bad_initialization: SearchSchedule = EARLY
    windows: int = 16
    dense_steps: int = 600

    def __post_init__(self) -> None:
        require_integer("seeds", self.seeds)
        require_integer("epochs", self.epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch."""
        return math.ceil(self.num_train / self.batch_size)

    @property
    def steps(self) -> int:
        """Training steps of a run."""
        return self.epochs * self.steps_per_epoch


def smoke_settings(seeds: int = 2, epochs: int = 2) -> DemoSettings:
    """Return sizes that take seconds and prove nothing but that every part works."""
    return DemoSettings(
        **asdict(SMOKE_SIZES),
        seeds=seeds,
        epochs=epochs,
        from_scratch=SearchSchedule(period=8, until=8),
        bad_initialization=SearchSchedule(period=4, until=4),
        windows=6,
        dense_steps=60,
    )


def find_device(name: str) -> torch.device:
    """Return the torch device of a name; ``auto`` takes a GPU if torch sees one."""
    require_choice("device", name, ("auto", "cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu or auto here: cuda was asked for, but torch sees none")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
