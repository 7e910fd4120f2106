"""The gate with nothing to learn: a fixed table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from moe_search.checks import require_integer
from moe_search.gates.batch_checks import (
    cannot_read_values,
    require_device,
    require_mask,
    require_rows,
    without_autocast,
)
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import Gate, SlotWeights

SPARE_BITS = 6
"""Bits of a code beyond those that tell slots apart: codes are not equally frequent, 64 or more a slot even out."""


class HashRouting(Gate):
    """Sends every sample to one slot, with weight 1, by a fixed random table.

    With `vocabulary`, the table gives every id its slot. With `in_features`, the sample is given a code first, the
    signs of random projections of its features, and the table gives every code its slot: samples close to each other
    tend to share a slot. Either table is balanced: slots hold equally many ids (or codes), give or take one. With
    `table`, ids go where it says, balanced or not.

    Parameters
    ----------
    num_experts, num_slots : int
        Experts n and slots m; see `Gate`.
    vocabulary, in_features : int, optional
        Number of ids, where `forward` then needs ids in 0 .. vocabulary - 1, or of features: exactly one of the two.
    seed : int
        Decides the table and the projections.
    table : Tensor or array_like of integers, optional
        The slot of every id, shape [vocabulary], instead of a random one; copied. `vocabulary` may then be left out.
        If it is ``range(m)``, every id is a slot of its own, and the expert map says which expert it goes to.

    Notes
    -----
    Roller, Sukhbaatar, Szlam and Weston (2021), Hash layers for large sparse models, the balanced assignment of ids.
    Signs of random projections: Charikar (2002), Similarity estimation techniques from rounding algorithms. There are
    ceil(log2 m) + 6 of them, normal, each less its mean, so that a code changes neither with the scale of a sample nor
    with an offset of all its features. Table and projections are buffers, in the state dict.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.hash_routing import HashRouting
    >>> gate = HashRouting(num_experts=4, vocabulary=100)
    >>> gate(torch.randn(3, 8), ids=torch.tensor([7, 99, 7])).weights.sum(2).flatten()
    tensor([1., 1., 1.])
    """

    table: Tensor
    projections: Tensor | None

    def __init__(
        self,
        num_experts: int,
        num_slots: int | None = None,
        *,
        vocabulary: int | None = None,
        in_features: int | None = None,
        seed: int = 0,
        table: Tensor | npt.ArrayLike | None = None,
    ) -> None:
        super().__init__(num_experts, num_slots, in_features=in_features)
        given = None if table is None else _slots_of_ids(table, self.num_slots)
        if given is not None and vocabulary is None and in_features is None:
            vocabulary = len(given)
        if (vocabulary is None) == (in_features is None):
            raise ValueError(
                "exactly one of vocabulary and in_features must be given, "
                f"got vocabulary={vocabulary} and in_features={in_features}"
            )
        self._seed, self._given = seed, given
        self.vocabulary = None if vocabulary is None else require_integer("vocabulary", vocabulary)
        if given is not None and len(given) != self.vocabulary:
            raise ValueError(
                f"table must give a slot to each id of a vocabulary, got {len(given)} entries for "
                f"vocabulary={self.vocabulary} and in_features={in_features}"
            )
        table, projections = self._start()
        device = torch.get_default_device()
        self.register_buffer("table", table.to(device, copy=True))
        self.register_buffer("projections", None if projections is None else projections.to(device))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew, with a fresh map, and the table and the projections of the seed, or the table given."""
        super().reset_parameters()
        table, projections = self._start()
        if not is_loaded(self.table):
            self.table.copy_(table)
        if self.projections is not None and projections is not None and not is_loaded(self.projections):
            self.projections.copy_(projections)

    def _start(self) -> tuple[Tensor, Tensor | None]:
        """Return the table and the projections that the seed decides, on the CPU."""
        generator = torch.Generator().manual_seed(self._seed)
        projections = None
        if self.vocabulary is None:
            assert self.in_features is not None
            bits = (self.num_slots - 1).bit_length() + SPARE_BITS
            entries = 2**bits
            projections = torch.randn(bits, self.in_features, generator=generator, device="cpu")
            if self.in_features > 1:
                # Inputs such as pixels, none negative, would else nearly all have the sign of the projection's sum.
                projections -= projections.mean(1, keepdim=True)
        else:
            entries = self.vocabulary
        drawn = torch.randperm(entries, generator=generator, device="cpu") % self.num_slots
        return drawn if self._given is None else self._given, projections

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`.

        With `vocabulary`, inputs may have any number of features, and ids must be integers in 0 .. vocabulary - 1. On
        other devices than the CPU, wrong ids are found by the device alone, as `torch.nn.Embedding` has it.
        """
        keys = (
            self._ids(inputs, ids, mask) if self.projections is None else self._codes(self.features(inputs, mask=mask))
        )
        slots = self.table.index_select(0, keys)
        # Not by one_hot, which reads numbers inside of torch.func.
        chosen = slots.unsqueeze(1) == torch.arange(self.num_slots, device=slots.device)
        return SlotWeights(chosen.to(inputs.dtype).unsqueeze(1), None).masked(mask)

    @property
    def most_slots(self) -> int:
        """One."""
        return 1

    def _codes(self, features: Tensor) -> Tensor:
        assert self.projections is not None
        # Codes have the precision of the projections, autocast or not: a sample must not change its slot with it.
        with without_autocast(features.device):
            bits = functional.linear(features.to(self.projections.dtype), self.projections) > 0
        # Not by shifts, which ONNX has for unsigned integers only.
        powers = torch.pow(2, torch.arange(bits.shape[1], device=bits.device))
        return (bits.long() * powers).sum(1)

    def _ids(self, inputs: Tensor, ids: Tensor | None, mask: Tensor | None) -> Tensor:
        require_rows(inputs)
        device = self.expert_map.experts.device
        require_device("inputs", inputs, device, "gate")
        if ids is None:
            raise ValueError(f"ids must be given to a gate with a vocabulary of {self.vocabulary}, got None")
        if not isinstance(ids, Tensor):
            raise TypeError(f"ids must be a tensor, got {type(ids).__name__}")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids must hold integers, got dtype {ids.dtype}")
        if ids.shape != inputs.shape[:-1]:
            raise ValueError(
                f"ids must have shape {tuple(inputs.shape[:-1])}, one for each row of inputs, "
                f"got shape {tuple(ids.shape)}"
            )
        require_device("ids", ids, device, "gate")
        if mask is not None:
            require_mask(mask, inputs)
            ids = ids.masked_fill(mask.logical_not(), 0)
        # Where no number can be read, or only by waiting for a device, the table's own lookup refuses wrong ids.
        if ids.is_cpu and not cannot_read_values(ids):
            least, most = ids.min().item(), ids.max().item()
            assert self.vocabulary is not None
            if least < 0 or most >= self.vocabulary:
                raise ValueError(f"ids must lie in 0 .. {self.vocabulary - 1}, the vocabulary, got {least} .. {most}")
        return ids.reshape(-1).long()

    def extra_repr(self) -> str:
        """Return what is hashed, for `repr`."""
        return super().extra_repr() if self.vocabulary is None else f"vocabulary={self.vocabulary}"


def _slots_of_ids(table: Tensor | npt.ArrayLike, num_slots: int) -> Tensor:
    slots = np.asarray(table.cpu() if isinstance(table, Tensor) else table)
    if slots.dtype.kind not in "iu":
        raise TypeError(f"table must hold integers, got dtype {slots.dtype}")
    if slots.ndim != 1 or len(slots) == 0:
        raise ValueError(f"table must have shape [vocabulary], got shape {slots.shape}")
    if slots.min() < 0 or slots.max() >= num_slots:
        raise ValueError(f"table must hold slots in 0 .. {num_slots - 1}, got {slots.min()} .. {slots.max()}")
    return torch.from_numpy(slots.astype(np.int64))
