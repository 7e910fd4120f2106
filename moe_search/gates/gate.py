"""A gate, and the slot weights that it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.checks import require_integer
from moe_search.gates.batch_checks import require_device, require_dtype, require_mask, require_rows, rows_of
from moe_search.gates.expert_map import ExpertMap
from moe_search.gates.fresh_start import reset_children
from moe_search.gates.leaf import Leaf


@dataclass(frozen=True, eq=False)
class SlotWeights:
    """The weights a gate gives to its slots, row by row: the B rows of inputs of shape [..., d], in order.

    Parameters
    ----------
    weights : Tensor
        g[b, t, s], shape [B, T, m]: of slot s of selector t, not negative. A slot left out has weight exactly 0. Over t
        and s they sum to 1 for every sample, but for those of a `TopK` that is told otherwise.
    logits : Tensor or None
        Shape [B, T, m]: what the gate computes at every slot, affine in the inputs, before any slot is left out and
        without noise. They are finite for finite inputs, and None for a gate that computes nothing at its slots.
    probabilities : Tensor or None
        p[b, t, s], shape [B, T, m]: the distribution over slots that some gates have in every selector (the paths of a
        tree, the codes of a row of bits), whose entropy they penalize. It sums to 1 over s, or to less in `DSelectK`,
        where codes may stand for no slot.
    noisy_logits, noise_scale : Tensor or None
        Shape [B, T, m]: the logits that a gate with noise chose slots by, and the standard deviation of the noise in
        each, greater than 0. The probability that a slot would be chosen again under fresh noise, which load penalties
        are made of, follows from these and `logits`.
    mask : Tensor or None
        Shape [B]: False for rows that are padding, whose weights are 0; None if there are none.
    with_gradient : bool
        Whether the gate ran with gradients on, as it did unless it is told otherwise where these are made.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> slot_weights = ms.TopK(8, 4, k=2)(torch.randn(5, 8))
    >>> slot_weights.weights.shape, (slot_weights.weights > 0).sum(2).flatten().tolist()
    (torch.Size([5, 1, 4]), [2, 2, 2, 2, 2])
    """

    weights: Tensor
    logits: Tensor | None
    probabilities: Tensor | None = None
    noisy_logits: Tensor | None = None
    noise_scale: Tensor | None = None
    mask: Tensor | None = None
    with_gradient: bool = field(default_factory=torch.is_grad_enabled, kw_only=True)

    @property
    def num_rows(self) -> Tensor | int:
        """Number of rows that are no padding; 1 if all are, by which nothing is divided into NaN."""
        return self.weights.shape[0] if self.mask is None else self.mask.sum().clamp(min=1)

    def masked(self, mask: Tensor | None) -> SlotWeights:
        """Return these weights with rows of padding, where ``mask``, any shape of B entries, is False or 0."""
        if mask is None:
            return self
        mask = mask.reshape(-1).bool()
        return replace(self, weights=self.weights.masked_fill(~mask[:, None, None], 0.0), mask=mask)

    def without_padding(self, values: Tensor) -> Tensor:
        """Return values of all rows, shape [B, ...], with 0 in those of padding."""
        if self.mask is None:
            return values
        return values.masked_fill(~self.mask.view(-1, *[1] * (values.ndim - 1)), 0.0)

    def require_gradient(self) -> None:
        """Raise ValueError if a penalty on these would act on nothing, as gradients are on now and were off then."""
        if torch.is_grad_enabled() and not self.with_gradient:
            raise ValueError(
                "the gate must run with gradients on for a penalty to have one, it ran with them off: under "
                "torch.no_grad, or in a torch.utils.checkpoint with use_reentrant=True, which use_reentrant=False "
                "mends; a penalty may be looked at under torch.no_grad"
            )

    def require_probabilities(self, gate: str) -> Tensor:
        """Return the probabilities, which those of a ``gate`` have, for its penalty.

        Raise ValueError if there are none, and as `require_gradient` does.
        """
        self.require_gradient()
        if self.probabilities is None:
            raise ValueError(f"slot_weights must have probabilities, as those of {gate} do, got None")
        return self.probabilities


class Gate(Leaf, ABC):
    """Turns inputs into slot weights; a gate's expert map says which experts the slots stand for.

    A new gate is one file with a `forward`, and a `penalty` if it has one. A gate leaves no trace on itself in
    `forward`: everything it has to say is in the `SlotWeights`.

    Parameters
    ----------
    num_experts : int
        Number of experts n.
    num_slots : int, optional
        Number of slots m of a selector, a multiple of n; n by default.
    num_selectors : int
        Number of selectors T.
    in_features : int, optional
        Number of features of a sample, for gates that look at them.
    shared_map : bool
        Whether all selectors use one row of the expert map.

    Attributes
    ----------
    expert_map : ExpertMap

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> class Even(ms.Gate):
    ...     def forward(self, inputs, ids=None):
    ...         weights = torch.full((len(inputs), 1, self.num_slots), 1 / self.num_slots)
    ...         return ms.SlotWeights(weights, logits=None)
    >>> ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), Even(4))(torch.randn(5, 8)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        num_experts: int,
        num_slots: int | None = None,
        num_selectors: int = 1,
        *,
        in_features: int | None = None,
        shared_map: bool = False,
    ) -> None:
        super().__init__()
        self.expert_map = ExpertMap(num_experts, num_slots, num_selectors, shared_map)
        self.num_experts = self.expert_map.num_experts
        self.num_slots = self.expert_map.num_slots
        self.num_selectors = self.expert_map.num_selectors
        self.in_features = None if in_features is None else require_integer("in_features", in_features)

    @abstractmethod
    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots.

        Parameters
        ----------
        inputs : Tensor
            Floating point, shape [..., in_features], as `torch.nn.Linear` takes it: all leading axes are rows, such as
            samples, or the tokens of sequences. Images are flattened by who has them.
        ids : Tensor, optional
            Integers, shape [...], for gates that route by id; all others ignore them.
        mask : Tensor, optional
            Booleans or integers, shape [...]: False or 0 for padding, which gets weight 0 everywhere, and counts in no
            penalty and no statistics. Its features, and ids, may be anything.

        Returns
        -------
        SlotWeights

        Raises
        ------
        TypeError
            If an argument is not a tensor.
        ValueError
            If there is no row, or shape, dtype or device are not those of the gate.
        """

    @property
    def most_slots(self) -> int | None:
        """The most slots that a row has weight on, whatever its numbers are; None where these decide.

        A device then knows how much memory pairs of rows and experts take without being waited for.
        """
        return None

    def reset_parameters(self) -> None:
        """Start anew, with a fresh map and parameters drawn from torch's global generator.

        A gate with parameters of its own, not in a submodule, adds them.
        """
        reset_children(self)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return what the gate adds to the training loss for these slot weights, a scalar; 0 by default.

        One that is not 0 raises ValueError where it would have no gradient, by `SlotWeights.require_gradient`.
        """
        return slot_weights.weights.new_zeros(())

    def features(self, inputs: Tensor, dtype: torch.dtype | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the rows of checked inputs, shape [B, in_features], with zeros in those of padding.

        Parameters
        ----------
        inputs, mask : Tensor
            As in `forward`.
        dtype : torch.dtype, optional
            What the gate's weights are; any floating-point type by default.

        Raises
        ------
        TypeError, ValueError
            As in `forward`.
        """
        require_rows(inputs)
        if inputs.shape[-1] != self.in_features:
            raise ValueError(
                f"inputs must have shape [..., {self.in_features}], in_features of the gate being {self.in_features}, "
                f"got shape {tuple(inputs.shape)}"
            )
        require_device("inputs", inputs, self.expert_map.experts.device, "gate")
        require_dtype(inputs, dtype, "gate")
        if mask is not None:
            require_mask(mask, inputs)
        return rows_of(inputs, mask)

    def extra_repr(self) -> str:
        """Return the width of the inputs, for `repr`."""
        return "" if self.in_features is None else f"in_features={self.in_features}"


def route(gate: nn.Module, inputs: Tensor, ids: Tensor | None, mask: Tensor | None) -> SlotWeights:
    """Return the slot weights of a gate, which need not know of masks where there is none."""
    routing: SlotWeights = gate(inputs, ids) if mask is None else gate(inputs, ids, mask)
    return routing


def require_k(k: Any, num_slots: int) -> int:
    """Return the number of slots that a gate keeps as an int in 1 .. ``num_slots``."""
    k = require_integer("k", k)
    if k > num_slots:
        raise ValueError(f"k must be at most the number of slots, {num_slots}, got {k}")
    return k
