"""The precision that a model computes in: half made single, and the state of autocast inside of a forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def at_least_single(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 where it has floats of less; any other as it is."""
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return the array of a tensor, on any device and with any graph; half precision comes as float32."""
    # numpy has no bfloat16.
    return at_least_single(tensor.detach()).cpu().numpy()


@dataclass(frozen=True)
class Autocast:
    """What autocast does on one type of device: whether and to which dtype it casts, and whether weights only once."""

    device: str
    enabled: bool
    dtype: torch.dtype
    cache: bool

    @classmethod
    def here(cls, device: torch.device) -> Autocast:
        """Return the state where this is called."""
        return cls(
            device.type,
            torch.is_autocast_enabled(device.type),
            torch.get_autocast_dtype(device.type),
            torch.is_autocast_cache_enabled(),
        )

    def again(self) -> torch.autocast:
        """Return a context in which autocast is in this state."""
        return torch.autocast(self.device, self.dtype, self.enabled, self.cache)


def without_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which everything is computed in the precision of its tensors."""
    return torch.autocast(device.type, enabled=False)
