"""The map from slots to experts: the discrete half of a gate, and what a search changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moe_search.checks import require_integer
from moe_search.gates.batch_checks import cannot_read_values
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.leaf import Leaf

AVERAGED = (
    "the mean of two maps is none: averages of models must take over buffers of integers as they are, as AveragedModel "
    "of torch and WeightAveraging of Lightning do with use_buffers=False"
)

ROUNDING = 1e-3
"""How far from integers the means of equal integers may be."""


class ExpertMap(Leaf):
    """The expert of every slot, one row for each selector.

    Every expert holds c = m / n slots of every row. The map is a buffer: it is in the state dict, follows the module
    to its device, and gets no gradient. A fresh map gives slot s to expert s // c.

    Parameters
    ----------
    num_experts : int
        Number of experts n.
    num_slots : int, optional
        Number of slots m of a selector, a multiple of n; n by default.
    num_selectors : int
        Number of selectors T.
    shared : bool
        Whether all selectors use one row.

    Attributes
    ----------
    experts : Tensor of int64
        Shape [T, m], or [1, m] if shared. `assign`, `assign_permutation` and `scramble` change it.
    capacity : int
        Slots c that an expert holds in every row.

    Notes
    -----
    The buffer is checked at the first forward and, on the CPU, at every one that finds other entries in it. To look at
    the entries would wait for any other device: there it is checked after `train` and `eval` and, in eval mode, where
    the version that torch counts tells that it was written to. After `torch.nn.Module.to_empty`, `reset_parameters`
    makes it a fresh map.

    ``AveragedModel(use_buffers=True)`` averages it, as `EMAWeightAveraging` of Lightning does by default. The mean of
    two maps is none, nor is what is left of it when it is rounded down (its squares sum to less), so that the next
    forward refuses it; with ``use_buffers=False`` the averaged model takes over the map of the model, which is right.
    The mean of equal maps is that map: a state dict whose entries were averaged as numbers is loaded.

    Examples
    --------
    >>> from moe_search.gates.expert_map import ExpertMap
    >>> expert_map = ExpertMap(num_experts=2, num_slots=4)
    >>> expert_map.assign([[1, 0, 0, 1]])
    >>> expert_map.permutation()
    array([2, 0, 1, 3])
    """

    experts: Tensor

    # The buffer that was last found to be a map, its version then, and a copy of its entries.
    _checked: tuple[Tensor, int, Tensor] | None = None

    def __init__(
        self, num_experts: int, num_slots: int | None = None, num_selectors: int = 1, shared: bool = False
    ) -> None:
        super().__init__()
        self.num_experts = require_integer("num_experts", num_experts)
        self.num_slots = self.num_experts if num_slots is None else require_integer("num_slots", num_slots)
        self.num_selectors = require_integer("num_selectors", num_selectors)
        self.shared = bool(shared)
        if self.num_slots % self.num_experts:
            raise ValueError(
                "num_slots must be a multiple of num_experts, "
                f"got {self.num_slots} slots for {self.num_experts} experts"
            )
        self.capacity = self.num_slots // self.num_experts
        row = torch.arange(self.num_slots) // self.capacity
        self.register_buffer("experts", row.repeat(1 if self.shared else self.num_selectors, 1))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Become a fresh map, which gives slot s to expert s // c."""
        if not is_loaded(self.experts):
            self.experts.copy_(torch.arange(self.num_slots, device=self.experts.device) // self.capacity)

    def assign(self, experts: Tensor | npt.ArrayLike) -> None:
        """Take over the expert of every slot.

        Parameters
        ----------
        experts : Tensor or array_like of integers
            The shape of the attribute `experts`; every expert c times in every row.

        Raises
        ------
        TypeError
            If the entries are not integers.
        ValueError
            If the shape is another, an expert does not exist, or one holds more or fewer than c slots of a row.
        """
        if not isinstance(experts, Tensor):
            # numpy reads nested lists and other libraries' arrays.
            array = np.asarray(experts)
            if array.dtype.kind not in "iu":
                raise TypeError(f"experts must hold integers, got dtype {array.dtype}")
            experts = torch.from_numpy(array.astype(np.int64))
        self._check("experts", experts)
        with torch.no_grad():
            self.experts.copy_(experts)

    def permutation(self) -> npt.NDArray[np.int64]:
        """Return the map as a permutation of slots to seats.

        Returns
        -------
        ndarray of int64, shape (rows * m,)
            ``p[t * m + s] = t * m + seat``, where seat // c is the expert. The seats of an expert go to its slots in
            the order of the slots.

        Raises
        ------
        ValueError
            If something else wrote to the buffer what is no map.
        """
        self._check_buffer()
        experts = self.experts.cpu().numpy()
        rows, m = experts.shape
        seats = np.empty((rows, m), dtype=np.int64)
        np.put_along_axis(seats, np.argsort(experts, axis=1, kind="stable"), np.arange(m)[None], axis=1)
        return (seats + m * np.arange(rows)[:, None]).reshape(-1)

    def assign_permutation(self, permutation: npt.ArrayLike) -> None:
        """Take over the map of a permutation of slots to seats, as `permutation` returns it.

        Raises
        ------
        TypeError
            If the entries are not integers.
        ValueError
            If it is not a permutation of 0 .. rows * m - 1, or gives a slot a seat of another row.
        """
        p = np.asarray(permutation)
        rows, m = self.experts.shape
        if p.dtype.kind not in "iu":
            raise TypeError(f"permutation must hold integers, got dtype {p.dtype}")
        if p.shape != (rows * m,):
            raise ValueError(f"permutation must have shape ({rows * m},) for {self._what()}, got shape {p.shape}")
        if not np.array_equal(np.sort(p), np.arange(rows * m)):
            raise ValueError(f"permutation must hold every seat of 0 .. {rows * m - 1} once, got {p.tolist()}")
        stray = p // m != np.arange(rows * m) // m
        if stray.any():
            slot = int(np.argmax(stray))
            raise ValueError(f"permutation must keep every slot in its row of {m} seats, got seat {p[slot]} for {slot}")
        self.assign((p % m // self.capacity).reshape(rows, m))

    def scramble(self, generator: torch.Generator) -> None:
        """Draw every row uniformly at random from all maps: the same for the same seed on the same device."""
        rows, m = self.experts.shape
        drawn = [torch.randperm(m, generator=generator, device=generator.device) for _ in range(rows)]
        self.assign(torch.stack(drawn) // self.capacity)

    def forward(self, slot_weights: Tensor) -> Tensor:
        """Add up the weights of the slots of every expert.

        Parameters
        ----------
        slot_weights : Tensor
            Shape [B, T, m].

        Returns
        -------
        Tensor
            Shape [B, n].

        Raises
        ------
        ValueError
            If the shape is another, or something else wrote to the buffer what is no map.
        """
        self._require_map()
        if slot_weights.ndim != 3 or slot_weights.shape[1:] != (self.num_selectors, self.num_slots):
            raise ValueError(
                f"slot_weights must have shape [B, {self.num_selectors}, {self.num_slots}], "
                f"got shape {tuple(slot_weights.shape)}"
            )
        by_slot = slot_weights.sum(1) if self.shared else slot_weights.flatten(1)
        # Sorting slots by expert lines up equally many for each: a gather and a sum, the same on every device and run.
        # It also leaves autograd nothing to remember of the buffer, which may change before the backward pass.
        experts = self.experts.flatten()
        # The number of a slot decides among those of an expert: keys that differ need no stable sort, which is slow for
        # large maps and which ONNX does not know.
        keys = experts * experts.shape[0] + torch.arange(experts.shape[0], device=experts.device)
        by_expert = by_slot.index_select(1, keys.argsort())
        return by_expert.unflatten(1, (self.num_experts, -1)).sum(2)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return (
            f"num_experts={self.num_experts}, num_slots={self.num_slots}, "
            f"num_selectors={self.num_selectors}, shared={self.shared}"
        )

    def train(self, mode: bool = True) -> ExpertMap:
        """Set training or eval mode; the buffer is checked at the next forward."""
        self._checked = None
        return super().train(mode)

    def _require_map(self) -> None:
        """Raise ValueError if the buffer holds no map, where that can be told; see the notes of the class."""
        if cannot_read_values() or self.experts.is_inference() or self._is_checked():
            return
        if not cannot_read_values(self.experts):
            self._check_buffer()
            self._checked = self.experts, self.experts._version, self.experts.clone()

    def _is_checked(self) -> bool:
        if self._checked is None or self._checked[0] is not self.experts:
            return False
        _, version, entries = self._checked
        if self.experts.is_cpu:
            return torch.equal(entries, self.experts)
        # In training mode DistributedDataParallel writes to all buffers at every step.
        return self.training or version == self.experts._version

    def _check_buffer(self) -> None:
        try:
            self._check("experts", self.experts)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the buffer of an expert map must be changed by the map alone, it was written to: {error} "
                f"(a module that was emptied, or made on the device meta, starts anew by reset_parameters; {AVERAGED})"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": None}

    def _what(self) -> str:
        rows = self.experts.shape[0]
        return f"{self.num_experts} experts and {rows} row{'s' * (rows > 1)} of {self.num_slots} slots"

    def _check(self, name: str, experts: Tensor) -> None:
        if experts.is_floating_point() or experts.is_complex() or experts.dtype == torch.bool:
            raise TypeError(f"{name} must hold integers, got dtype {experts.dtype}")
        if experts.shape != self.experts.shape:
            raise ValueError(
                f"{name} must have shape {tuple(self.experts.shape)} for {self._what()}, "
                f"got shape {tuple(experts.shape)}"
            )
        # Inside of torch.func.grad a tensor has no memory that numpy could read.
        for t, row in enumerate(np.array(experts.tolist())):
            if row.min() < 0 or row.max() >= self.num_experts:
                raise ValueError(
                    f"{name} must hold the experts 0 .. {self.num_experts - 1}, got {row.min()} .. {row.max()}"
                )
            slots = np.bincount(row.astype(np.int64), minlength=self.num_experts)
            wrong = slots != self.capacity
            if wrong.any():
                e = int(np.argmax(wrong))
                raise ValueError(
                    f"{name} must hold every expert {self.capacity} times in every row for {self._what()}, "
                    f"got expert {e} {slots[e]} times in row {t}"
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # torch would take any map of the right shape, and a wrong one would then route samples to wrong experts.
        key = f"{prefix}experts"
        experts = state_dict.get(key)
        if isinstance(experts, Tensor) and not experts.is_meta:
            if experts.is_floating_point() and bool(((experts - experts.round()).abs() <= ROUNDING).all()):
                experts = experts.round().long()
                state_dict = {**state_dict, key: experts}
            try:
                self._check(key, experts)
            except (TypeError, ValueError) as error:
                error_messages: list[str] = rest[-1]
                error_messages.append(f"{error} ({AVERAGED})" if experts.shape == self.experts.shape else str(error))
                return
        super()._load_from_state_dict(state_dict, prefix, *rest)
