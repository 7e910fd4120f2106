"""A batch of samples, as a search takes, keeps and concatenates it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields

import torch
from torch import Tensor, nn

OF_KEYWORDS = "keywords."
"""What stands before a keyword where the tensors of a batch have names."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Inputs and targets of the same samples, and what else is known of each.

    Parameters
    ----------
    inputs : Tensor
        What the model takes, shape [B, ...].
    targets : Tensor
        What the loss compares the outputs with, shape [B, ...].
    ids : Tensor, optional
        What the model takes as the keyword ``ids``, for gates that route by id; shape [B].
    groups : Tensor, optional
        Integers, shape [B]: samples with the same number (of one user, of one sequence) depend on each other, and a
        verification counts them as one.
    keywords : dict of Tensor, optional
        What else the model takes, by keywords, such as that of ``attention_mask``; shape [B, ...] each.
    """

    inputs: Tensor
    targets: Tensor
    ids: Tensor | None = None
    groups: Tensor | None = None
    keywords: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for name, tensor in self.named():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
            if tensor.ndim == 0:
                raise ValueError(f"{name} must have the samples along its first axis, got a scalar")
            if tensor.shape[0] != self.inputs.shape[0]:
                raise ValueError(
                    f"{name} must hold as many samples as inputs, "
                    f"got shape {tuple(tensor.shape)} for inputs of shape {tuple(self.inputs.shape)}"
                )
        if self.groups is not None and (self.groups.ndim > 1 or self.groups.is_floating_point()):
            raise ValueError(
                f"groups must be integers of shape [B], got {self.groups.dtype} of shape {tuple(self.groups.shape)}"
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return self.inputs.shape[0]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the tensor of what is there."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                yield from ((OF_KEYWORDS + name, tensor) for name, tensor in value.items())
            elif value is not None or field.default is MISSING:
                yield field.name, value

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> Batch:
        """Return the batch whose tensors have these names."""
        given = {name: tensor for name, tensor in named.items() if not name.startswith(OF_KEYWORDS)}
        keywords = {name.removeprefix(OF_KEYWORDS): named[name] for name in named if name not in given}
        return cls(**given, keywords=keywords or None)

    def require(self, num_samples: int, purpose: str = "") -> None:
        """Raise ValueError if there are fewer than ``num_samples`` samples; ``purpose`` tells what they are for."""
        if len(self) < num_samples:
            count = "one sample" if num_samples == 1 else f"{num_samples} samples"
            raise ValueError(
                f"inputs must hold at least {count}{purpose}, got {len(self)} (shape {tuple(self.inputs.shape)})"
            )

    def check_device(self, model: nn.Module) -> None:
        """Raise ValueError if a tensor lies on a device that holds no part of ``model``."""
        devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
        for name, tensor in self.named():
            if tensor.device not in devices:
                accepted = ", ".join(sorted(str(device) for device in devices))
                raise ValueError(f"{name} must be on the device of the model ({accepted}), got {tensor.device}")

    def detach(self) -> Batch:
        """Return the batch without the graphs that computed it, which would live as long as it is kept."""
        return self._each(Tensor.detach)

    def part(self, start: int, stop: int) -> Batch:
        """Return the samples ``start`` to ``stop - 1``."""
        return self._each(lambda tensor: tensor[start:stop])

    def parts(self, size: int) -> Iterator[Batch]:
        """Yield all samples in order, at most ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.part(start, min(start + size, len(self)))

    def last(self, max_samples: int) -> Batch:
        """Return the last ``max_samples`` samples, or all if there are fewer."""
        return self if len(self) <= max_samples else self.part(len(self) - max_samples, len(self))

    def repeat(self, count: int) -> Batch:
        """Return every sample ``count`` times, the copies of a sample beside each other."""
        return self if count == 1 else self._each(lambda tensor: tensor.repeat_interleave(count, 0))

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch.of({name: change(tensor) for name, tensor in self.named()})


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Return one batch with the samples of all ``batches``, in their order."""
    if len(batches) == 1:
        return batches[0]
    named = [dict(batch.named()) for batch in batches]
    for name in {name: None for tensors in named for name in tensors}:
        if any(name not in tensors for tensors in named):
            raise ValueError(f"{name} must come with every batch or with none, got some batches with and some without")
        shapes = sorted({tuple(tensors[name].shape[1:]) for tensors in named})
        if len(shapes) > 1:
            raise ValueError(f"{name} of batches searched together must agree in the shape of a sample, got {shapes}")
    return Batch.of({name: torch.cat([tensors[name] for tensors in named]) for name in named[0]})
