"""The gate of binary codes: k selectors, each a row of smooth-step bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_search.checks import require_integer, require_number
from moe_search.gates.batch_checks import (
    require_device,
    require_dtype,
    require_mask,
    require_rows,
    rows_of,
    weight_dtype,
)
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import Gate, SlotWeights, require_k
from moe_search.gates.smooth_step import entropy_terms, smooth_step

LEAST_REACHED = 1e-6
"""Part of a selector on the codes of slots below which its penalty grows no further."""


class SmallLinear(nn.Linear):
    """The affine function from inputs to the values of k selectors; it starts as published, near 0."""

    def __init__(self, in_features: int, out_features: int, k: int, gamma: float) -> None:
        self.k, self.gamma = k, gamma
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Draw fresh parameters from torch's global generator."""
        super().reset_parameters()
        for parameter in self.parameters():
            _start_small(parameter, self.k, self.gamma)


class DSelectK(Gate):
    """k selectors of ceil(log2 m) smooth-step bits, whose codes are the slots.

    Slot s is the binary code of the number s, most significant bit first. With z[t, j] the value of bit j of selector
    t, and S the smooth-step function, selector t gives slot s

        p[t, s] = product over bits j of S(z[t, j]) if bit j of s is 1, of 1 - S(z[t, j]) if it is 0,

    and with w[t] the value of the selector itself, the slots have the weights

        g[t, s] = softmax(w)[t] p[t, s] / c,    c = sum over t, s of softmax(w)[t] p[t, s].

    If m is a power of two, c = 1. Else 2^bits - m codes stand for no slot; c makes up for what is given to them, and
    the second term of the penalty keeps selectors away from them.

    Once every bit is outside of (-gamma / 2, gamma / 2), a selector has one code: at most k weights are not 0. The
    first term of the penalty drives the bits there, if by its default seldom all the way, or with few experts in use:
    `GammaAnnealing` brings a sample to k. Bits that are there get no gradient any more. With k = 1, w[0] has no other
    to be weighed against: it never gets one.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, in which z and w are affine, experts n and slots m of a selector; see `Gate`. None for
        `in_features` makes the static gate, whose z and w are parameters, the same for all samples: it chooses k
        experts for a task.
    k : int
        Number of selectors, at most m: what the number of experts of a sample comes down to.
    gamma : float
        Width of the part of the smooth-step function that is neither 0 nor 1.
    entropy, zeta : float
        Factors of the penalty,
        ``entropy * mean_b sum_ts -p log p + zeta * mean_b sum_t 1 / sum_s p``, the second term only if m is not a power
        of two. 0 for none.
    shared_map : bool
        Whether code s is of the same expert in all selectors.

    Notes
    -----
    Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong and Chi (2021), DSelect-k: differentiable selection in
    the mixture of experts with applications to multi-task learning, section 3 and its extension to numbers of experts
    other than powers of two. The published gate does not divide by c, so that its weights sum to less than 1
    until the penalty has done its work; and it sums penalties over the batch, where ours is a mean. A sample whose
    selectors are all on codes of no slot has c = 0: all its slots get the same weight. Nor does it get any gradient,
    since p is constant there: the second term, whose slope grows steeply on the way, turns selectors back before they
    arrive, but brings none back from there, where a step too long or ``zeta = 0`` may leave them. They show in
    ``probabilities.sum(2)``, which should come to 1, and is 0 there.

    It starts as published: what makes z is uniform within gamma / 100 of 0, what makes w within 0.05, weights and bias
    alike. Every sample uses all experts at first.

    The values of all selectors, selector after selector, its bits and then w, are the rows of the one layer `linear`,
    or, for the static gate, of the one parameter `values`.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.dselect_k import DSelectK
    >>> gate = DSelectK(in_features=8, num_experts=6, k=2)
    >>> routing = gate(torch.randn(5, 8))
    >>> routing.weights.shape, gate.penalty(routing).shape
    (torch.Size([5, 2, 6]), torch.Size([]))
    >>> static = DSelectK(None, num_experts=6, k=2)
    >>> static(torch.randn(5, 3)).weights.shape
    torch.Size([5, 2, 6])
    """

    values: nn.Parameter | None
    linear: nn.Linear | None

    def __init__(
        self,
        in_features: int | None,
        num_experts: int,
        k: int,
        num_slots: int | None = None,
        gamma: float = 1.0,
        entropy: float = 1e-2,
        zeta: float = 1.0,
        shared_map: bool = False,
    ) -> None:
        super().__init__(
            num_experts, num_slots, require_integer("k", k), in_features=in_features, shared_map=shared_map
        )
        self.k = require_k(k, self.num_slots)
        self.gamma = require_number("gamma", gamma, strict=True)
        self.entropy = require_number("entropy", entropy)
        self.zeta = require_number("zeta", zeta)
        rows = self.k * (self.num_bits + 1)
        if self.in_features is None:
            self.linear = None
            self.values = nn.Parameter(torch.empty(rows))
            _start_small(self.values, self.k, self.gamma)
        else:
            self.linear = SmallLinear(self.in_features, rows, self.k, self.gamma)
            self.register_parameter("values", None)

    @property
    def num_bits(self) -> int:
        """Number of bits of a selector, ceil(log2 m)."""
        return (self.num_slots - 1).bit_length()

    def reset_parameters(self) -> None:
        """Start anew, with a fresh map and parameters drawn from torch's global generator."""
        super().reset_parameters()
        if self.values is not None:
            _start_small(self.values, self.k, self.gamma)

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`.

        The static gate takes any number of features.
        """
        values = self._values(inputs, mask).view(-1, self.k, self.num_bits + 1)
        p = code_probabilities(values[..., : self.num_bits], self.gamma)[..., : self.num_slots]
        weights = values[..., self.num_bits :].softmax(1) * p
        total = weights.sum((1, 2), keepdim=True)
        lost = total < torch.finfo(total.dtype).tiny
        weights = (weights / total.masked_fill(lost, 1.0)).masked_fill(lost, 1.0 / (self.k * self.num_slots))
        shape = (rows_of(inputs).shape[0], self.k, self.num_slots)
        return SlotWeights(weights.expand(shape), None, p.expand(shape)).masked(mask)

    def _values(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Return the values of bits and selectors of every row, of one that stands for all in the static gate."""
        if self.linear is not None:
            dtype = weight_dtype(self.linear)
            # A row of bits is a product of many factors: autocast or not, it keeps the precision of the weights.
            return self.linear(self.features(inputs, dtype, mask)).to(dtype or inputs.dtype)
        assert self.values is not None
        require_rows(inputs)
        require_device("inputs", inputs, self.values.device, "gate")
        require_dtype(inputs, self.values.dtype, "gate")
        if mask is not None:
            require_mask(mask, inputs)
        return self.values.unsqueeze(0)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty, a scalar; its second term grows no further where a sum over codes is below 1e-6."""
        p = slot_weights.require_probabilities("DSelectK")
        rows = slot_weights.num_rows
        penalty = self.entropy * slot_weights.without_padding(entropy_terms(p)).sum() / rows
        if self.num_slots < 2**self.num_bits:
            terms = p.sum(2).clamp(min=LEAST_REACHED).reciprocal()
            penalty = penalty + self.zeta * slot_weights.without_padding(terms).sum() / rows
        return penalty

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return (
            f"in_features={self.in_features}, k={self.k}, gamma={self.gamma:g}, "
            f"entropy={self.entropy:g}, zeta={self.zeta:g}"
        )


@torch.no_grad()
def _start_small(parameter: Tensor, k: int, gamma: float) -> None:
    if not is_loaded(parameter):
        # The last row of a selector is its own value, the others are its bits.
        rows = parameter.view(k, -1, *parameter.shape[1:])
        rows[:, :-1].uniform_(-gamma / 100, gamma / 100)
        rows[:, -1].uniform_(-0.05, 0.05)


def code_probabilities(bits: Tensor, gamma: float) -> Tensor:
    """Return the probability of every number whose bits, the most significant first, are independent of each other.

    The smooth-step function of width ``gamma`` makes of ``bits``, shape [..., bits], the probability of a 1. The result
    has shape [..., 2^bits] and sums to 1.
    """
    # 1 - S(t) = S(-t), but a small S(-t) keeps its digits.
    steps = smooth_step(torch.stack((-bits, bits), -1), gamma)
    codes = bits.new_ones((*bits.shape[:-1], 1))
    for j in range(bits.shape[-1]):
        codes = (codes.unsqueeze(-1) * steps[..., j, None, :]).flatten(-2)
    return codes
