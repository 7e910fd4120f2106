"""Random instances of every problem class.

Each function takes the number of slots first, then that of experts, which divides it and is by default equal to it. All
else is given by name; the seed, the source of the randomness, is an int, a SeedSequence or a Generator.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.checks import require_integer
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import LossName, MixtureAssignment
from moe_search.problems.pairwise import PairwiseAssignment
from moe_search.problems.quadratic import QuadraticAssignment

Seed = int | np.random.SeedSequence | np.random.Generator


def random_linear(
    num_slots: int, num_experts: int | None = None, *, seed: Seed, integral: bool = True
) -> LinearAssignment:
    """Return a linear assignment with independent costs, integers in 0 .. 99 or uniform in [0, 1).

    Parameters
    ----------
    num_slots, num_experts : int
        m, and n (by default m); m is a multiple of n.
    seed : int, SeedSequence or Generator
        Source of the randomness.
    integral : bool, default True
        Integers or floats.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_linear(6, 3, seed=0)
    >>> problem.size, problem.num_experts
    (6, 3)
    """
    rng = np.random.default_rng(seed)
    return LinearAssignment(_entries(rng, (num_slots, num_slots if num_experts is None else num_experts), integral))


def random_quadratic(
    size: int, *, seed: Seed, integral: bool = True, symmetric: bool = True, density: float = 1.0, linear: bool = False
) -> QuadraticAssignment:
    """Return a quadratic assignment with independent entries and zero diagonals, as Taillard's tai*a instances.

    Parameters
    ----------
    size : int
        Number of facilities n.
    seed : int, SeedSequence or Generator
        Source of the randomness.
    integral : bool, default True
        Whether entries are integers in 0 .. 99, or else uniform in [0, 1).
    symmetric : bool, default True
        Whether both matrices are symmetric (else neither is).
    density : float, default 1
        Probability that an entry of the flow is not set to zero.
    linear : bool, default False
        Whether to add a linear term.

    References
    ----------
    E. D. Taillard, "Robust taboo search for the quadratic assignment problem", Parallel Computing 17 (1991), 443-455.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.random_quadratic(3, seed=0).flow
    array([[ 0, 63, 51],
           [63,  0,  4],
           [51,  4,  0]])
    """
    rng = np.random.default_rng(seed)
    matrices = []
    for keep in (density, 1.0):
        matrix = _entries(rng, (size, size), integral) * (rng.random((size, size)) < keep)
        if symmetric:
            matrix = np.triu(matrix, 1) + np.triu(matrix, 1).T
        np.fill_diagonal(matrix, 0)
        matrices.append(matrix)
    flow, distance = matrices
    return QuadraticAssignment(flow, distance, _entries(rng, (size, size), integral) if linear else None)


def random_pairwise(
    num_slots: int, num_experts: int | None = None, *, seed: Seed, integral: bool = True, num_selectors: int = 1
) -> PairwiseAssignment:
    """Return a pairwise assignment with independent costs, integers in 0 .. 99 or uniform in [0, 1).

    Parameters
    ----------
    num_slots, num_experts : int
        Slots of one selector m, and n (by default m); m is a multiple of n.
    seed : int, SeedSequence or Generator
        Source of the randomness.
    integral : bool, default True
        Integers or floats.
    num_selectors : int, default 1
        Number of blocks of m slots.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.random_pairwise(4, 2, seed=0).cost.shape
    (4, 4, 2, 2)
    """
    rng = np.random.default_rng(seed)
    m, n = num_slots * num_selectors, num_slots if num_experts is None else num_experts
    return PairwiseAssignment(_entries(rng, (m, m, n, n), integral), block_size=num_slots)


def random_mixture(
    num_slots: int,
    num_experts: int | None = None,
    *,
    num_samples: int,
    seed: Seed,
    k: int | None = None,
    num_outputs: int = 3,
    num_selectors: int = 1,
    loss: LossName = "squared",
) -> MixtureAssignment:
    """Return a mixture assignment with Gaussian expert outputs and softmax weights over k random slots a sample.

    Parameters
    ----------
    num_slots, num_experts : int
        Slots of one selector m, and n (by default m); m is a multiple of n.
    num_samples : int
        Batch size B.
    seed : int, SeedSequence or Generator
        Source of the randomness.
    k : int, optional
        Slots with weight, of every sample and selector; by default all.
    num_outputs : int, default 3
        Width D of an expert's output.
    num_selectors : int, default 1
        Number T of blocks of m slots.
    loss : {"squared", "bce", "cross_entropy"}
        The loss; targets are Gaussian, uniform in {0, 1}, or uniform classes.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_mixture(4, num_samples=20, seed=0, k=2)
    >>> problem.slot_weights.shape, problem.outputs.shape
    ((20, 1, 4), (20, 4, 3))
    """
    if k is not None and require_integer("k", k) > num_slots:
        raise ValueError(f"k must be at most num_slots, {num_slots}, got {k}")
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((num_samples, num_selectors, num_slots))
    if k is not None:
        logits[logits < np.sort(logits, axis=2)[:, :, -k, None]] = -np.inf
    weights = np.exp(logits - logits.max(axis=(1, 2), keepdims=True))
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    outputs = rng.standard_normal((num_samples, num_slots if num_experts is None else num_experts, num_outputs))
    targets: npt.NDArray[Any]
    if loss == "cross_entropy":
        targets = rng.integers(0, num_outputs, num_samples)
    elif loss == "bce":
        targets = rng.integers(0, 2, (num_samples, num_outputs)).astype(np.float64)
    else:
        targets = rng.standard_normal((num_samples, num_outputs))
    return MixtureAssignment(weights, outputs, targets, loss)


def _entries(rng: np.random.Generator, shape: tuple[int, ...], integral: bool) -> npt.NDArray[Any]:
    return rng.integers(0, 100, shape) if integral else rng.random(shape)
