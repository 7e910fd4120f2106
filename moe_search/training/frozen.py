"""Evaluate a model in the middle of training and leave no trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the context, ``model`` is in eval mode, gradients are off and random numbers cost nothing.

    On leaving it, by an exception too, every submodule has the training flag it had, and the random generators of the
    CPU and of the model's devices are where they were.
    """
    # The flags are set one by one: train() may be overridden, and a submodule may be frozen in eval mode on purpose.
    flags = [(module, module.training) for module in model.modules()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    with torch.no_grad(), torch.random.fork_rng(devices=[device.index or 0 for device in devices], device_type=kind):
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training
