"""Canvases as tensors on the device of the run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_search.bench.datasets.two_images import Canvases, CanvasSplit


@dataclass(frozen=True, eq=False)
class SplitTensors:
    """Flat images, shape [N, pixels], and labels, shape [N, tasks]."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class DataTensors:
    """All splits on one device."""

    train: SplitTensors
    validation: SplitTensors
    test: SplitTensors


def to_tensors(data: Canvases, device: torch.device) -> DataTensors:
    """Copy a data set to a device."""

    def move(split: CanvasSplit) -> SplitTensors:
        return SplitTensors(
            torch.from_numpy(split.images).flatten(1).to(device), torch.from_numpy(split.labels).to(device)
        )

    return DataTensors(move(data.train), move(data.validation), move(data.test))
