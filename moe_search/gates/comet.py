"""The gate of trees: cardinality-constrained and differentiable; and where its published versions differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_search.checks import require_choice, require_integer, require_number
from moe_search.gates.batch_checks import cannot_read_values, weight_dtype
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import Gate, SlotWeights, require_k
from moe_search.gates.smooth_step import entropy_terms, leaf_probabilities, live_leaves, where_above

DESCENT_SLOTS, DESCENT_LEAVES = 128, 2**17
"""A CPU descends into the live branches faster than it looks at all of them where a tree has at least the first number
of slots, and the trees of all samples the second number of leaves."""


@dataclass(frozen=True)
class CometConvention:
    """What a version of COMET does where the paper's formula leaves it, or numbers run out: the table in `COMET`.

    A leaf with a probability of at most `least`, or of 0 if that is None, has weight 0, and `offset` is added to p in
    the log p of the weights. In the penalty, p is raised to `entropy_least`; `entropy_offset` and `entropy_log_offset`
    are added to it before and in the logarithm.
    """

    split_bias: bool = True
    least: float | None = None
    offset: float = 0.0
    entropy_least: float = 0.0
    entropy_offset: float = 0.0
    entropy_log_offset: float = 0.0
    small_start: bool = False
    leaf_bias_start: bool = True

    def log(self, p: Tensor) -> Tensor:
        """Return log p of leaf probabilities, -inf where a leaf has weight 0; its gradient is finite everywhere."""
        least = self.least
        if least is None:
            least = 0.0 if self.offset else torch.finfo(p.dtype).tiny
        dead = where_above(p.detach(), least, -torch.inf).clamp(max=0.0)
        # The logarithm is kept away from 0, where its infinite slope times the zero slope of the splits would be NaN.
        p = where_above(p, least, 1.0)
        return (p + self.offset if self.offset else p).log() + dead

    def entropy(self, p: Tensor) -> Tensor:
        """Return the terms -p log p of the penalty, the shape of ``p``."""
        if not self.entropy_log_offset:
            return entropy_terms(p)
        p = p.clamp(min=self.entropy_least)
        return -(p + self.entropy_offset) * (p + self.entropy_log_offset).log()


CONVENTIONS = {
    "paper": CometConvention(),
    "torch": CometConvention(
        split_bias=False,
        least=1e-5,
        offset=1e-6,
        entropy_least=1e-6,
        entropy_offset=1e-6,
        entropy_log_offset=1e-6,
        small_start=True,
        leaf_bias_start=False,
    ),
    "tensorflow": CometConvention(offset=1e-8, entropy_log_offset=1e-6, small_start=True),
}


class Nodes(nn.Linear):
    """The affine functions of all nodes of k trees of m leaves, which start as a convention says."""

    def __init__(self, in_features: int, k: int, num_slots: int, gamma: float, convention: CometConvention) -> None:
        self.k, self.num_slots, self.gamma, self.convention = k, num_slots, gamma, convention
        super().__init__(in_features, k * (2 * num_slots - 1), bias=convention.split_bias)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh parameters from torch's global generator."""
        super().reset_parameters()
        if not self.convention.small_start:
            return
        # As the published versions do, with every leaf of every tree about equally likely.
        for name, parameter in self.named_parameters():
            if is_loaded(parameter):
                continue
            rows = parameter.view(self.k, -1, *parameter.shape[1:])
            rows[:, : self.num_slots - 1].uniform_(-self.gamma / 100, self.gamma / 100)
            if name == "weight" or self.convention.leaf_bias_start:
                rows[:, self.num_slots - 1 :].uniform_(-0.05, 0.05)


class COMET(Gate):
    """k trees of smooth-step splits with the slots at the leaves.

    A tree has m - 1 split nodes in heap order: the children of node i are 2 i + 1 (left) and 2 i + 2, so that the
    leaves are the nodes m - 1 .. 2 m - 2, for m of any size. A sample x goes left at node i with probability
    S(v_i . x + b_i), S the smooth-step function, and reaches leaf s of tree t with p[t, s], the product along the path.
    With a[t, s] affine in x,

        g = softmax over all k m leaves of a + log p,    g[t, s] = 0 where p[t, s] = 0.

    Once every split is outside of (-gamma / 2, gamma / 2), a sample reaches one leaf a tree: at most k weights are not
    0. The penalty drives the splits there, but by its default seldom all the way: a sample ends with some 3.5 of
    8 experts for k = 2. `GammaAnnealing` brings it to k; docs/experiments.md tells at what loss.

    Parameters
    ----------
    in_features, num_experts, num_slots : int
        Features of a sample, experts n and leaves m of a tree; see `Gate`.
    k : int
        Number of trees, at most m: what the number of experts of a sample comes down to.
    gamma : float
        Width of the part of the smooth-step function that is neither 0 nor 1.
    entropy : float
        Factor lambda of the penalty, ``lambda * mean_b sum_ts -p log p``. 0 for none.
    shared_map : bool
        Whether leaf s is of the same expert in all trees.
    convention : {"paper", "torch", "tensorflow"}
        The version to compute and start by, see the notes.

    Notes
    -----
    Ibrahim, Chen, Hazimeh, Ponomareva, Zhao and Mazumder (2023), COMET: learning cardinality constrained mixture of
    experts with trees and local search, section 3. Two versions were published with it, for TensorFlow and, with
    COMET-BERT, for torch. They differ from the formulas and from each other in value:

    ==================  ===========================  ==============================  ============================
    convention          "paper"                      "torch"                         "tensorflow"
    ==================  ===========================  ==============================  ============================
    splits              with a bias                  without                         with a bias
    weight is 0 where   p = 0 (or underflows)        p < 1e-5                        p = 0
    log p               log p                        log(p + 1e-6)                   log(p + 1e-8)
    -p log p            -p log p                     -q log q, q = max(p, e) + e     -p log(p + e), e = 1e-6
    start of splits     as `torch.nn.Linear`         within gamma / 100 of 0         within gamma / 100 of 0
    start of leaves     as `torch.nn.Linear`         within 0.05, bias 0             within 0.05 of 0
    ==================  ===========================  ==============================  ============================

    The two offsets and the cut show at leaves that are hardly reached but have a high score a: there weights may differ
    by all of their size. From a small start, every sample uses all experts until the splits have grown.

    The affine functions of all nodes, splits and leaves of tree after tree, are the rows of the one layer `nodes`:
    row ``t * (2 m - 1) + i`` is node i of tree t. (With splits that have no bias, that of leaves is `leaf_bias`.)
    Started as `torch.nn.Linear`, weight and bias are uniform within 1 / sqrt(in_features) of 0: with gamma = 1 and
    standardized inputs, some 4 of 10 splits are saturated.

    At inference (eval mode, no gradient, on a CPU) large batches in large trees descend from the roots, into branches
    with a probability other than 0 only, as long as these are few. What is returned is the same to the bit.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.comet import COMET
    >>> gate = COMET(in_features=8, num_experts=6, k=2)
    >>> routing = gate(torch.randn(5, 8))
    >>> routing.weights.shape, gate.penalty(routing).shape
    (torch.Size([5, 2, 6]), torch.Size([]))
    """

    leaf_bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_experts: int,
        k: int,
        num_slots: int | None = None,
        gamma: float = 1.0,
        entropy: float = 1e-2,
        shared_map: bool = False,
        convention: str = "paper",
    ) -> None:
        super().__init__(
            num_experts, num_slots, require_integer("k", k), in_features=in_features, shared_map=shared_map
        )
        self.k = require_k(k, self.num_slots)
        self.gamma = require_number("gamma", gamma, strict=True)
        self.entropy = require_number("entropy", entropy)
        require_choice("convention", convention, tuple(CONVENTIONS))
        self.convention = convention
        split_bias = CONVENTIONS[convention].split_bias
        self.nodes = Nodes(in_features, self.k, self.num_slots, self.gamma, CONVENTIONS[convention])
        self.register_parameter("leaf_bias", None if split_bias else nn.Parameter(torch.zeros(self.k, self.num_slots)))

    def reset_parameters(self) -> None:
        """Start anew, with a fresh map and parameters drawn from torch's global generator."""
        super().reset_parameters()
        if self.leaf_bias is not None:
            nn.init.zeros_(self.leaf_bias)

    def forward(self, inputs: Tensor, ids: Tensor | None = None, mask: Tensor | None = None) -> SlotWeights:
        """Return the weights of the slots; see `Gate.forward`."""
        dtype = weight_dtype(self.nodes)
        # A path is a product of many factors: autocast or not, it keeps the precision of the weights.
        nodes = self.nodes(self.features(inputs, dtype, mask)).to(dtype or inputs.dtype)
        found = self._descend(nodes) if self._descends(nodes) else None
        if found is not None:
            return found.masked(mask)
        # Samples along the last axis, so that what is done to slot after slot runs over contiguous memory.
        nodes = nodes.t().contiguous().unflatten(0, (self.k, -1))
        splits, logits = nodes.split([self.num_slots - 1, self.num_slots], dim=1)
        if self.leaf_bias is not None:
            logits = logits + self.leaf_bias.unsqueeze(2)
        p = leaf_probabilities(splits, self.gamma)
        scores = logits + CONVENTIONS[self.convention].log(p)
        weights = scores.flatten(0, 1).softmax(0).unflatten(0, (self.k, -1))
        return SlotWeights(*(by_slot.permute(2, 0, 1) for by_slot in (weights, logits, p))).masked(mask)

    def _descend(self, nodes: Tensor) -> SlotWeights | None:
        """Return the same by the live leaves alone, or None where these are many."""
        of_trees = nodes.unflatten(1, (self.k, -1))  # type: ignore[no-untyped-call]
        splits, logits = of_trees.split([self.num_slots - 1, self.num_slots], dim=2)
        if self.leaf_bias is not None:
            logits = logits + self.leaf_bias
        found = live_leaves(splits.flatten(0, 1), self.gamma)
        if found is None:
            return None
        leaves, of_leaves = found
        p = logits.new_zeros(logits.numel()).index_copy(0, leaves, of_leaves).view(logits.shape)
        scores = logits.new_full((logits.numel(),), -torch.inf)
        of_leaves = logits.flatten()[leaves] + CONVENTIONS[self.convention].log(of_leaves)
        scores = scores.index_copy(0, leaves, of_leaves).view(len(nodes), -1)
        # Summed in the order of all leaves: equal to the bit.
        weights = scores.t().contiguous().softmax(0).t().unflatten(1, (self.k, -1))
        return SlotWeights(weights, logits, p)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return ``lambda * mean_b sum_ts -p log p`` of the path probabilities, a scalar."""
        p = slot_weights.require_probabilities("COMET")
        terms = slot_weights.without_padding(CONVENTIONS[self.convention].entropy(p))
        return self.entropy * terms.sum() / slot_weights.num_rows

    def _descends(self, nodes: Tensor) -> bool:
        """Return whether to look for the live leaves only; it changes nothing but the time."""
        return (
            self.num_slots >= DESCENT_SLOTS
            and not self.training
            and not torch.is_grad_enabled()
            and nodes.shape[0] * self.k * self.num_slots >= DESCENT_LEAVES
            and nodes.device.type == "cpu"
            and not cannot_read_values(nodes)
        )

    def extra_repr(self) -> str:
        """Return the sizes, for `repr`."""
        return (
            f"{super().extra_repr()}, k={self.k}, gamma={self.gamma:g}, entropy={self.entropy:g}, "
            f"convention={self.convention}"
        )
