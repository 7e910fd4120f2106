"""Train small gates on real images, lower them, and store the problems beside the data sets of the benchmark.

Run ``python -m moe_search.bench.comparison.lower_trained_gates``. The images are the 1,797 handwritten digits that come
with scikit-learn: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository (1998), doi 10.24432/C50P49, licence CC BY 4.0. The files hold no image: weights of a gate, outputs of its
experts and labels, on canvases that no gate was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moe_search.bench.datasets.two_images import load_two_digits
from moe_search.bench.experiments.training import descend
from moe_search.bench.experiments.two_image_model import TwoImageModel, to_tensors, two_task_loss
from moe_search.gates.comet import COMET
from moe_search.gates.gate import Gate
from moe_search.gates.hash_routing import HashRouting
from moe_search.gates.top_k import TopK
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.stacked_experts import StackedExperts
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.problem import Problem
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.lowering import lower

CANVAS = 12
FEATURES = 32
BATCH = 128
MIXTURE_SAMPLES = 80
TRAINED_GATES: dict[str, tuple[int, Callable[[], Gate]]] = {
    "top-k": (16, lambda: TopK(CANVAS**2, 16, k=2)),
    "comet": (16, lambda: COMET(CANVAS**2, 16, k=2)),
    "hash": (8, lambda: HashRouting(8, num_slots=64, in_features=CANVAS**2, seed=0)),
}
"""By the name of a file: the number of experts, and what makes the gate."""


def train(gate: Gate, num_experts: int, data: Batch, epochs: int) -> TwoImageModel:
    """Return a model of two digits that was trained with a gate."""
    model = TwoImageModel(MixtureOfExperts(StackedExperts(num_experts, CANVAS**2, FEATURES), gate), FEATURES)

    def loss(rows: Tensor) -> Tensor:
        return two_task_loss(model(data.inputs[rows]), data.targets[rows]) + model.moe.regularization()

    epochs_of_rows = (torch.split(torch.randperm(len(data)), BATCH) for _ in range(epochs))
    descend(model.parameters(), chain.from_iterable(epochs_of_rows), loss, 2e-3)
    return model.eval()


def arrays(problem: Problem) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a problem, as small as they may be without becoming another problem to a search."""
    if isinstance(problem, LinearAssignment):
        return {"cost": problem.cost.astype(np.float32)}
    assert isinstance(problem, MixtureAssignment)
    assert problem.sample_weights is not None
    return {
        "slot_weights": problem.slot_weights.astype(np.float16),
        "outputs": problem.outputs.astype(np.float16),
        "targets": problem.targets.astype(np.int8),
        "loss": np.array(problem.loss),
        "sample_weights": problem.sample_weights.astype(np.float32),
    }


def write_problems(folder: Path, epochs: int = 20) -> None:
    """Train and lower every gate of `TRAINED_GATES`, and write one file for each to a folder."""
    data = to_tensors(load_two_digits(4000, 1000, 1000, canvas=CANVAS, seed=0), torch.device("cpu"))
    for name, (num_experts, make) in TRAINED_GATES.items():
        torch.manual_seed(0)
        model = train(make(), num_experts, data.train, epochs)
        count = len(data.validation) if name == "hash" else MIXTURE_SAMPLES
        inputs, targets = data.validation.inputs[:count], data.validation.targets[:count]
        lowering = lower(model, model.moe, inputs, targets, two_task_loss)
        path = folder / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays(lowering.problem))
        print(f"{path.name}: loss {lowering.batch_loss:.4f}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    write_problems(Path(__file__).parent / "datasets")
