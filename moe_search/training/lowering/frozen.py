"""Evaluate a model in the middle of training and leave no trace in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import nn

_searching: ContextVar[bool] = ContextVar("searching", default=False)


def searching() -> bool:
    """Whether the forwards of now are those of a search, and none of training or evaluation."""
    return _searching.get()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within the context, ``model`` is in eval mode, gradients are off and random numbers cost nothing.

    Compiled code runs as it was written, since compiled modules neither call hooks nor take another forward. On leaving
    the context, by an exception too, every submodule has the training flag it had, and the random generators of the CPU
    and of the model's devices are where they were.
    """
    # The flags are set one by one: train() may be overridden, and a submodule may be frozen in eval mode on purpose.
    flags = [(module, module.training) for module in model.modules()]
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers()) if tensor.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    token = _searching.set(True)
    try:
        with (
            as_written(),
            # Gradients may be turned on within, which inference mode knows none of.
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng(devices=[device.index or 0 for device in devices], device_type=kind),
        ):
            for module, _ in flags:
                module.training = False
            yield
    finally:
        for module, training in flags:
            module.training = training
        _searching.reset(token)


def as_written() -> AbstractContextManager[None]:
    """Within the context, compiled code runs as it was written."""
    # Without dynamo nothing is compiled, and loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
