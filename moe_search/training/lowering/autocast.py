"""The state of autocast, as it is inside of a model's forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Autocast:
    """What autocast does on one type of device.

    Parameters
    ----------
    device : str
        The type of the device.
    enabled : bool
    dtype : torch.dtype
        Of what is computed in lower precision, if enabled.
    cache : bool
        Whether weights are cast once within a context.
    """

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
