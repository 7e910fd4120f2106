"""The relaxation of COMET's permutation search: doubly stochastic matrices, learned by gradient and rounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moe_search.problems.arrays import dense
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.problems.problem import Problem
from moe_search.problems.quadratic import QuadraticAssignment
from moe_search.solvers.engine.proposer import Proposer

LARGEST_BLOCK = 256


@dataclass(frozen=True)
class SinkhornRelaxation(Proposer):
    """Learn logits L of ``P = Sinkhorn(L / tau)`` by gradient on the relaxed value, and round P after every step.

    The temperature falls and the number of Sinkhorn iterations rises log-linearly, as published; then it starts again
    from other logits. P holds one doubly stochastic matrix for each block.

    Parameters
    ----------
    steps : int, default 100
        Gradient steps of one annealing.
    temperatures : (float, float), default (1e-3, 1e-7)
        First and last tau.
    iterations : (int, int), default (20, 150)
        First and last number of Sinkhorn iterations.
    entropy : float, default 1e-4
        Weight of the entropy of P, in units of the value of a random permutation.
    learning_rate : float, default 1e-2
        Step size of Adam.

    References
    ----------
    S. Ibrahim, W. Chen, H. Hazimeh, N. Ponomareva, Z. Zhao, R. Mazumder, "COMET: Learning cardinality constrained
    mixture of experts with trees and local search", KDD 2023, section 4.
    """

    steps: int = 100
    temperatures: tuple[float, float] = (1e-3, 1e-7)
    iterations: tuple[int, int] = (20, 150)
    entropy: float = 1e-4
    learning_rate: float = 1e-2

    def refuses(self, problem: Problem) -> str | None:
        """Refuse unknown classes, and blocks whose square matrices cost seconds a step."""
        if not isinstance(problem, (LinearAssignment, QuadraticAssignment, PairwiseAssignment, MixtureAssignment)):
            return "its value has no known relaxation"
        if problem.block_size > LARGEST_BLOCK:
            return f"its blocks have {problem.block_size} seats, and a step on more than {LARGEST_BLOCK} takes seconds"
        return None

    def proposals(self, problem: PermutationProblem, rng: np.random.Generator) -> Iterator[Permutation]:
        """Yield the rounded matrix after every step."""
        value = relaxed_value(problem)
        m = problem.block_size
        scale = abs(problem.value(problem.random_solution(rng))) or 1.0
        while True:
            draws = 1e-3 * rng.standard_normal((problem.size // m, m, m))
            logits = torch.from_numpy(draws).requires_grad_()
            optimizer = torch.optim.Adam([logits], lr=self.learning_rate)
            for step in range(self.steps):
                share = step / max(self.steps - 1, 1)
                log_p = log_sinkhorn(
                    logits / _between(self.temperatures, share), round(_between(self.iterations, share))
                )
                matrix = log_p.exp()
                loss = value(matrix) / scale - self.entropy * (matrix * log_p).sum()
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                # A hard P has no gradient left, and its entropy one that is not finite.
                assert logits.grad is not None
                torch.nan_to_num_(logits.grad, nan=0.0, posinf=0.0, neginf=0.0)
                optimizer.step()
                yield rounded(matrix.detach())


def log_sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """Return the logarithm of matrices [..., m, m] whose rows and columns were normalized in turns; Sinkhorn (1964)."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-1, keepdim=True)
        logits = logits - logits.logsumexp(-2, keepdim=True)
    return logits


def rounded(matrices: Tensor) -> Permutation:
    """Return the permutation that has the most weight in matrices of shape [blocks, m, m]."""
    m = matrices.shape[-1]
    parts = [block * m + linear_sum_assignment(-matrix)[1] for block, matrix in enumerate(matrices.numpy())]
    return np.concatenate(parts).astype(np.int64)


@singledispatch
def relaxed_value(problem: PermutationProblem) -> Callable[[Tensor], Tensor]:
    """Return the value of a problem as a function of doubly stochastic matrices [blocks, m, m].

    Where the matrices are permutations, it is the value of the permutation.
    """
    raise TypeError(f"no relaxation is known for {type(problem).__name__}")


@relaxed_value.register
def _linear(problem: LinearAssignment) -> Callable[[Tensor], Tensor]:
    cost = _tensor(problem.cost)
    return lambda matrix: (cost * _experts(matrix, problem.capacity)).sum()


@relaxed_value.register
def _quadratic(problem: QuadraticAssignment) -> Callable[[Tensor], Tensor]:
    flow, distance = _tensor(dense(problem.flow)), _tensor(problem.distance)
    linear = torch.zeros_like(flow) if problem.linear is None else _tensor(problem.linear)
    return lambda matrix: (flow * (matrix[0] @ distance @ matrix[0].T)).sum() + (linear * matrix[0]).sum()


@relaxed_value.register
def _pairwise(problem: PairwiseAssignment) -> Callable[[Tensor], Tensor]:
    pairs = _tensor(problem.cost).clone()
    slot = torch.arange(problem.size)
    own = pairs[slot, slot].diagonal(dim1=1, dim2=2).clone()
    # A slot has one expert: off the diagonal its own cost means nothing.
    pairs[slot, slot] = 0.0

    def value(matrix: Tensor) -> Tensor:
        x = _experts(matrix, problem.capacity)
        return torch.einsum("stef,se,tf->", pairs, x, x) + (own * x).sum()

    return value


@relaxed_value.register
def _mixture(problem: MixtureAssignment) -> Callable[[Tensor], Tensor]:
    weights, outputs = _tensor(problem.slot_weights).flatten(1), _tensor(problem.outputs)
    assert problem.sample_weights is not None
    sample_weights, targets = _tensor(problem.sample_weights), torch.from_numpy(problem.targets.copy())
    functional = torch.nn.functional

    def value(matrix: Tensor) -> Tensor:
        z = torch.einsum("bn,bnd->bd", weights @ _experts(matrix, problem.capacity), outputs)
        if problem.loss == "squared":
            losses = ((z - targets) ** 2).sum(1)
        elif problem.loss == "bce":
            losses = functional.binary_cross_entropy_with_logits(z, targets, reduction="none").sum(1)
        else:
            groups = z.reshape(len(z), targets.shape[1], -1).movedim(2, 1)
            losses = functional.cross_entropy(groups, targets, reduction="none").sum(1)
        return sample_weights @ losses

    return value


def _experts(matrix: Tensor, capacity: int) -> Tensor:
    """Return the share of every expert in every slot, [slots, experts], from those of the seats."""
    return matrix.reshape(-1, matrix.shape[2] // capacity, capacity).sum(2)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.astype(np.float64))


def _between(ends: tuple[float, float], share: float) -> float:
    """Interpolate log-linearly."""
    return math.exp((1 - share) * math.log(ends[0]) + share * math.log(ends[1]))
