"""The processes that train one model together, and what a search asks of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import distributed

from moe_search.training.lowering.losses import NonFiniteLossError

T = TypeVar("T")


def _cpu() -> torch.device:
    return torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, or this process alone.

    Whatever fails on one rank is raised on all of them, so that none waits for another that has left.

    Parameters
    ----------
    group : ProcessGroup or None
        None for this process alone: then every method is the identity.
    device : callable
        Returns the device that the group's backend needs tensors to be summed on; a model may move.
    """

    group: Any = None
    device: Callable[[], torch.device] = _cpu

    @property
    def index(self) -> int:
        """Number of this process in the group, from 0."""
        return 0 if self.group is None else distributed.get_rank(self.group)

    def collect(self, value: T) -> list[T]:
        """Return the value of every rank, in their order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * distributed.get_world_size(self.group)
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def agree(self, compute: Callable[[], T]) -> T:
        """Return what ``compute`` returns on this rank, once it has returned on all.

        Raises
        ------
        NonFiniteLossError
            If it raised that on any rank.
        RuntimeError
            If it raised anything else on another rank; on the failing rank, its own error.
        """
        if self.group is None:
            return compute()
        value, error = _outcome(compute)
        failures = self.collect(_failure(error))
        _raise(error, failures)
        return value  # type: ignore[return-value]

    def sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the sum of an array over the ranks, the same on all of them."""
        if self.group is None:
            return array
        total = torch.from_numpy(array).to(self.device())
        distributed.all_reduce(total, group=self.group)
        return total.cpu().numpy()

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks on the first one, an empty list on the others."""
        if self.group is None:
            return [value]
        values: list[Any] | None = None
        if self.index == 0:
            values = [None] * distributed.get_world_size(self.group)
        distributed.gather_object(value, values, dst=self._first, group=self.group)
        return values or []

    def from_first(self, compute: Callable[[], T]) -> T:
        """Return, on all ranks, what ``compute`` returns on the first; errors as in `agree`."""
        if self.group is None:
            return compute()
        value, error = _outcome(compute) if self.index == 0 else (None, None)
        sent: list[Any] = [value, _failure(error)]
        distributed.broadcast_object_list(sent, src=self._first, group=self.group, device=self.device())
        _raise(error, [sent[1]])
        return sent[0]

    @property
    def _first(self) -> int:
        return distributed.get_global_rank(self.group, 0)


ALONE = Ranks()


def ranks_of(process_group: Any, device: Callable[[], torch.device]) -> Ranks:
    """Return the ranks of a process group; of the default one for None, if torch.distributed is initialized."""
    if process_group is None:
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        process_group = distributed.group.WORLD
    elif not (distributed.is_available() and isinstance(process_group, distributed.ProcessGroup)):
        # new_group gives a process that it leaves out a marker instead.
        if process_group is getattr(distributed.GroupMember, "NON_GROUP_MEMBER", None):
            raise ValueError("process_group must contain this process, got a group without it")
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup, got {type(process_group).__name__}")
    return Ranks(process_group, device) if distributed.get_world_size(process_group) > 1 else ALONE


def _outcome(compute: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    try:
        return compute(), None
    except BaseException as error:  # a KeyboardInterrupt too: the others would wait for this rank
        return None, error


def _failure(error: BaseException | None) -> tuple[bool, str] | None:
    if error is None:
        return None
    finite = not isinstance(error, NonFiniteLossError)
    return finite, f"{type(error).__name__}: {error}" if finite else str(error)


def _raise(own: BaseException | None, failures: list[tuple[bool, str] | None]) -> None:
    # An error of the program comes before a number that is not finite, which training survives, on all ranks.
    worse = isinstance(own, NonFiniteLossError) and any(failure is not None and failure[0] for failure in failures)
    if own is not None and not worse:
        raise own
    for finite, message in sorted(filter(None, failures), key=lambda failure: not failure[0]):
        if finite:
            raise RuntimeError(f"the search failed on another rank: {message}")
        raise NonFiniteLossError(message)
