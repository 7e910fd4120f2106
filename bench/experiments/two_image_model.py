"""The model on canvases of two images: one mixture of eight experts and a linear head for two tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_search.bench.datasets.two_images import Canvases, CanvasSplit
from moe_search.bench.experiments.gates import make_gate
from moe_search.layers import MixtureOfExperts, StackedExperts
from moe_search.training.lowering.batch import Batch

NUM_EXPERTS = 8
"""Few enough that all 8! = 40,320 maps can be tried: the exact optimum stands beside every search of the demo."""

NUM_TASKS = 2
NUM_CLASSES = 10
EXPERTS_PER_SAMPLE = 2


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of the data and the model, and how its specialists are trained.

    Attributes
    ----------
    num_train, num_validation, num_test : int
        Canvases of each split.
    canvas : int
        Width and height of a canvas in pixels.
    hidden_features, features : int
        Hidden units and outputs of an expert.
    pretraining_epochs, learning_rate
        Epochs that specialists get, and the rate of Adam for them.
    """

    num_train: int = 4000
    num_validation: int = 1000
    num_test: int = 2000
    canvas: int = 12
    hidden_features: int = 24
    features: int = 24
    pretraining_epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 3e-3


SMOKE_SIZES = ModelSizes(
    num_train=320,
    num_validation=100,
    num_test=100,
    hidden_features=8,
    features=8,
    pretraining_epochs=2,
    batch_size=32,
)
"""Sizes that take seconds and prove nothing but that every part works."""


@dataclass(frozen=True, eq=False)
class DataTensors:
    """All splits on one device: flat images, shape [N, pixels], and labels, shape [N, tasks]."""

    train: Batch
    validation: Batch
    test: Batch


def to_tensors(data: Canvases, device: torch.device) -> DataTensors:
    """Copy a data set to a device."""

    def move(split: CanvasSplit) -> Batch:
        return Batch(torch.from_numpy(split.images).flatten(1).to(device), torch.from_numpy(split.labels).to(device))

    return DataTensors(move(data.train), move(data.validation), move(data.test))


class TwoImageModel(nn.Module):
    """A mixture of experts from pixels to features, then a linear head to the logits of both tasks."""

    def __init__(self, moe: MixtureOfExperts, features: int) -> None:
        super().__init__()
        self.moe = moe
        self.head = nn.Linear(features, NUM_TASKS * NUM_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits, shape [B, tasks, classes], of flat images, shape [B, pixels]."""
        return self.classify(self.moe(inputs))

    def classify(self, mixture: Tensor) -> Tensor:
        """Return the logits, shape [B, tasks, classes], of mixtures, shape [B, features]."""
        return self.head(mixture).unflatten(-1, (NUM_TASKS, NUM_CLASSES))


def make_model(gate: str, sizes: ModelSizes, seed: int) -> TwoImageModel:
    """Return a fresh model on the CPU with a gate of this name; equal arguments give equal weights."""
    pixels = sizes.canvas**2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        experts = StackedExperts(NUM_EXPERTS, pixels, sizes.features, sizes.hidden_features)
        moe = MixtureOfExperts(experts, make_gate(gate, pixels, NUM_EXPERTS, k=EXPERTS_PER_SAMPLE, seed=seed))
        return TwoImageModel(moe, sizes.features)


def two_task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy, mean over samples and tasks; outputs [B, tasks, classes], targets [B, tasks]."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Evaluation:
    """Loss, accuracy by task and experts used a sample."""

    loss: float
    accuracies: tuple[float, ...]
    experts_per_sample: float


@torch.no_grad()
def evaluate(model: TwoImageModel, split: Batch) -> Evaluation:
    """Evaluate a model on all of a split; the model is left in eval mode."""
    model.eval()
    outputs = model(split.inputs)
    right = outputs.argmax(-1) == split.targets
    expert_weights = model.moe.gate.expert_map(model.moe.gate(split.inputs).weights)
    return Evaluation(
        loss=float(two_task_loss(outputs, split.targets)),
        accuracies=tuple(right.double().mean(0).tolist()),
        experts_per_sample=float((expert_weights > 0).double().sum(1).mean()),
    )
