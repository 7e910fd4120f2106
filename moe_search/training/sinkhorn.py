"""The published way to search the expert map: a relaxed permutation, trained by gradient, then rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from moe_search.checks import require_integer, require_number
from moe_search.gates.batch_checks import without_autocast
from moe_search.gates.fresh_start import is_loaded
from moe_search.gates.gate import Gate, SlotWeights, route
from moe_search.training.wrapped_gate import WrappedGate

INITIAL_RANGE = 0.05
"""The parameters of the permutations start uniform within this of 0, as published."""


@dataclass(frozen=True, eq=False)
class PermutedWeights(SlotWeights):
    """Slot weights that a relaxed permutation has spread over the seats.

    Parameters
    ----------
    source : SlotWeights
        What the wrapped gate returned. All fields but the weights are its, of its slots and not permuted.
    log_permutation : Tensor
        log P, shape [rows, m, m], one for each row of the expert map: what the weights were spread with.
    """

    source: SlotWeights = field(kw_only=True)
    log_permutation: Tensor = field(kw_only=True)


class SinkhornPermutation(WrappedGate):
    """A gate whose expert map is learned by gradient: relaxed to doubly stochastic matrices, annealed, rounded once.

    One matrix ``P = Sinkhorn(L / tau)`` for each row of the map of the wrapped gate multiplies its slot weights,
    ``g'[b, t, j] = sum_s g[b, t, s] P[t, s, j]``, and the map then sends seat j to its expert. `step`, called after
    every optimizer step, lowers the temperature tau and adds Sinkhorn iterations. At the last of ``steps`` calls every
    P is rounded to the permutation nearest to it, which is composed with the map of the wrapped gate; from then on the
    wrapped gate answers alone, as sparse as it is, and no matrix is looked at again.

    Parameters
    ----------
    gate : Gate
        Any, with as many slots, selectors and rows of its map as it likes.
    steps : int
        Number of calls of `step` until the permutation is rounded, the optimizer steps of the first E epochs.
    temperatures : (float, float), default (1e-3, 1e-7)
        tau at the first and at the last step, log-linear in between.
    iterations : (int, int), default (20, 150)
        Sinkhorn iterations at the first and at the last step, linear in between.
    entropy : float, default 1e-4
        Factor zeta of the penalty, the entropy ``sum_sj -P log P``, mean over the rows of the map. 0 for none.
    noise : float, default 0.0
        Factor of Gumbel noise that is added to L in training mode, drawn from torch's random generator.

    Attributes
    ----------
    gate : Gate
    log_weights : Parameter
        L, shape [rows, m, m], float32 as created.
    finished : bool
        Whether the permutation is rounded and the wrapped gate answers alone.

    Notes
    -----
    Ibrahim, Chen, Hazimeh, Ponomareva, Zhao and Mazumder (2023), COMET: learning cardinality constrained mixture of
    experts with trees and local search, arXiv 2306.02824, the section on permutation-based local search, which relaxes
    and rounds as here. The operator and its Gumbel noise: Mena, Belanger, Linderman and Snoek (2018), Learning latent
    permutations with Gumbel-Sinkhorn networks. Iterations run on logarithms in float64, since L / tau reaches 1e6 and
    more, and end on rows, so that the weights of a sample go on summing to 1; columns sum to 1 in the limit.

    Step and `finished` are in the state dict: a finished model stays hard when it is loaded. In eval mode an unfinished
    permutation is as soft as in training, without noise. Once finished, `log_weights` gets no gradient any more, for
    which `DistributedDataParallel` needs ``find_unused_parameters=True`` from the start.
    torch.compile takes both; it compiles anew at every step of an unfinished one, whose number of iterations changes.

    Examples
    --------
    >>> import torch
    >>> from moe_search.gates.top_k import TopK
    >>> from moe_search.training.sinkhorn import SinkhornPermutation
    >>> gate = SinkhornPermutation(TopK(in_features=8, num_experts=4, k=2), steps=2)
    >>> inputs = torch.randn(5, 8)
    >>> gate.step(), gate.step(), gate.finished
    (None, None, True)
    >>> torch.equal(gate(inputs).weights, gate.gate(inputs).weights)
    True
    """

    def __init__(
        self,
        gate: Gate,
        steps: int,
        *,
        temperatures: tuple[float, float] = (1e-3, 1e-7),
        iterations: tuple[int, int] = (20, 150),
        entropy: float = 1e-4,
        noise: float = 0.0,
    ) -> None:
        if not isinstance(gate, Gate):
            raise TypeError(f"gate must be a Gate, got {type(gate).__name__}")
        if isinstance(gate, SinkhornPermutation):
            raise ValueError("gate must not be a SinkhornPermutation: one permutation a map is enough")
        super().__init__(gate, steps)
        hot, cold = (require_number("temperatures", each, strict=True) for each in _pair("temperatures", temperatures))
        few, many = (require_integer("iterations", each) for each in _pair("iterations", iterations))
        self.temperatures, self.iterations = (hot, cold), (few, many)
        self.entropy = require_number("entropy", entropy)
        self.noise = require_number("noise", noise)
        rows, m = gate.expert_map.experts.shape
        self.log_weights = nn.Parameter(torch.empty(rows, m, m).uniform_(-INITIAL_RANGE, INITIAL_RANGE))
        self.finished = False
        self._learned = True

    def reset_parameters(self) -> None:
        """Start anew, with a fresh gate and map, fresh logarithms, and at the first step."""
        super().reset_parameters()
        nn.init.uniform_(self.log_weights, -INITIAL_RANGE, INITIAL_RANGE)
        self._go_to(self._step if is_loaded(self.log_weights) else 0)

    @property
    def most_slots(self) -> int | None:
        """Those of the wrapped gate once it answers alone: a soft permutation leaves no slot out."""
        return self.gate.most_slots if self.finished else None

    @property
    def temperature(self) -> float:
        """The temperature tau of the present step; the last one from there on."""
        first, last = map(math.log, self.temperatures)
        return math.exp(first + self._progress() * (last - first))

    @property
    def num_iterations(self) -> int:
        """Number of Sinkhorn iterations of the present step."""
        first, last = self.iterations
        return round(first + self._progress() * (last - first))

    def _at_step(self, inputs: Tensor, ids: Tensor | None, mask: Tensor | None) -> SlotWeights:
        routing = route(self.gate, inputs, ids, mask)
        if self.finished:
            return routing
        log_permutation = self.log_permutation()
        permutation = log_permutation.exp().to(routing.weights.dtype)
        with without_autocast(inputs.device):
            # [T, B, m] times [rows, m, m], where a single row is for all selectors.
            weights = (routing.weights.transpose(0, 1) @ permutation).transpose(0, 1)
        return PermutedWeights(
            weights,
            routing.logits,
            routing.probabilities,
            routing.noisy_logits,
            routing.noise_scale,
            routing.mask,
            source=routing,
            log_permutation=log_permutation,
        )

    def log_permutation(self) -> Tensor:
        """Return log P for every row of the map, float64, shape [rows, m, m], with noise in training mode."""
        scores = self.log_weights.double()
        if self.training and self.noise > 0:
            # Exponential draws are never 0 for torch, so the logarithm is finite.
            scores = scores - self.noise * torch.empty_like(scores).exponential_().log()
        return sinkhorn(scores / self.temperature, self.num_iterations)

    def penalty(self, slot_weights: SlotWeights) -> Tensor:
        """Return the penalty of the wrapped gate plus, until finished, ``zeta * mean_rows sum_sj -P log P``."""
        if not isinstance(slot_weights, PermutedWeights):
            return self.gate.penalty(slot_weights)
        slot_weights.require_gradient()
        penalty = self.gate.penalty(slot_weights.source)
        log_p = slot_weights.log_permutation
        return penalty - (self.entropy * (log_p.exp() * log_p).sum((1, 2)).mean()).to(penalty.dtype)

    @torch.no_grad()
    def step(self) -> None:
        """Count an optimizer step: cool down, and round at the last of them. Afterwards it does nothing."""
        if self.finished:
            return
        if self._step + 1 < self.steps:
            self._go_to(self._step + 1)
            return
        self._step += 1  # the last temperature
        seats = round_permutations(sinkhorn(self.log_weights.double() / self.temperature, self.num_iterations))
        experts = self.expert_map.experts
        self.expert_map.assign(experts.gather(1, seats.to(experts.device)))
        self._go_to(self.steps)

    def get_extra_state(self) -> Tensor:
        """Return step and `finished` for the state dict."""
        return torch.tensor([self._step, int(self.finished)])

    def set_extra_state(self, state: Any) -> None:
        """Take up what `get_extra_state` returned."""
        if not isinstance(state, Tensor) or state.shape != (2,) or state.is_floating_point() or int(state.min()) < 0:
            raise ValueError(f"the extra state must be two integers from 0 on, step and finished, got {state!r}")
        step, finished = state.tolist()
        self._go_to(self.steps if finished else step)

    def extra_repr(self) -> str:
        """Return the schedule, for `repr`."""
        return f"steps={self.steps}, step={self._step}, finished={self.finished}, entropy={self.entropy:g}"

    def _progress(self) -> float:
        # Clamped: a temperature that goes on falling ends in NaN.
        return min(self._step / self.steps, 1.0)

    def _go_to(self, step: int) -> None:
        self._count(step)
        if step >= self.steps:
            self._finish()
        elif self.finished:
            self.finished = False
            self.log_weights.requires_grad_(self._learned)

    def _finish(self) -> None:
        if not self.finished:
            # A state from before the end gives the gradient back, but not to one who had none.
            self._learned = self.log_weights.requires_grad
        self.finished = True
        self.log_weights.requires_grad_(False)
        self.log_weights.grad = None


def sinkhorn(scores: Tensor, iterations: int) -> Tensor:
    """Return the logarithm of matrices made nearly doubly stochastic by normalizing columns and rows in turns.

    Scores, shape [..., m, m], are logarithms of positive entries. Each pass goes over columns and then rows, so that
    rows sum to 1 exactly, columns in the limit. What is returned is finite for finite scores.

    Notes
    -----
    Sinkhorn and Knopp (1967), Concerning nonnegative matrices and doubly stochastic matrices.
    """
    for _ in range(iterations):
        scores = scores - scores.logsumexp(-2, keepdim=True)
        scores = scores - scores.logsumexp(-1, keepdim=True)
    return scores


def round_permutations(log_permutation: Tensor) -> Tensor:
    """Return the permutation nearest to each matrix P, by the Hungarian algorithm, for log P of shape [rows, m, m].

    It is the seat of every slot, int64 of shape [rows, m], with the largest ``sum_s P[s, seat(s)]``.
    """
    matrices = log_permutation.exp().cpu().numpy()
    return torch.from_numpy(np.stack([linear_sum_assignment(matrix, maximize=True)[1] for matrix in matrices]))


def _pair(name: str, values: Any) -> tuple[Any, Any]:
    try:
        first, last = values
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be two numbers, the first and the last, got {values!r}") from None
    return first, last
