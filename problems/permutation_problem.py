"""Problems whose solutions are permutations that stay inside blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import read_only
from moe_search.problems.moves import DeltaMatrix, empty_delta_matrix
from moe_search.problems.problem import Problem

Permutation = npt.NDArray[np.int64]


class PermutationProblem(Problem):
    """Minimize ``value(p)`` over the permutations p of {0 .. size - 1} that stay inside blocks.

    A permutation gives the seat of every slot. Slots and seats ``t * block_size .. (t + 1) * block_size - 1`` form
    block t, one for each selector of a gate, and a slot only ever takes a seat of its own block. A new problem class
    gives `size`, `block_size`, `integral`, `value` and `state`, and registers the kernels `swap_delta` and
    `commit_swap` for the NamedTuple that `state` returns (see `moe_search.problems.moves`).

    Examples
    --------
    >>> import moe_search as ms
    >>> problem: ms.PermutationProblem = ms.LinearAssignment([[4, 1], [2, 3], [0, 5], [1, 1]])
    >>> problem.size, problem.num_experts, problem.capacity
    (4, 2, 2)
    >>> problem.experts([2, 0, 1, 3]).tolist()  # seats 0 and 1 are of expert 0, seats 2 and 3 of expert 1
    [1, 0, 0, 1]
    """

    def __repr__(self) -> str:
        sizes = {"block_size": (self.block_size, self.size), "num_experts": (self.num_experts, self.block_size)}
        words = [f"size={self.size}", *(f"{name}={own}" for name, (own, usual) in sizes.items() if own != usual)]
        words.append("integral" if self.integral else "float")
        return f"{type(self).__name__}({', '.join([*words, *self.traits()])})"

    def traits(self) -> Sequence[str]:
        """Return what `repr` says of this problem beside its sizes and the kind of its numbers."""
        return ()

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of slots (and of seats) in all blocks."""

    @property
    def block_size(self) -> int:
        """Number of slots in a block; moves stay inside a block."""
        return self.size

    @abstractmethod
    def value(self, permutation: npt.ArrayLike) -> int | float:
        """Return the value of a permutation, ``permutation[s]`` being the seat of slot s; see `Problem.value`."""

    @abstractmethod
    def state(self, permutation: npt.ArrayLike) -> Any:
        """Return the NamedTuple of arrays that the kernels read and update, standing at `permutation`.

        It has at least the fields ``permutation`` (seat of every slot) and ``order`` (slot of every seat).
        """

    def delta_matrix(self) -> DeltaMatrix:
        """Return the arrays for the deltas of all swaps, to be filled; see `moe_search.problems.moves`."""
        return empty_delta_matrix(self.size, np.int64 if self.integral else np.float64)

    @property
    def sweep_cost(self) -> int:
        """Operations, of about a nanosecond, that bring the deltas of all swaps up to date after a move."""
        return self.size * self.block_size

    @property
    def fill_cost(self) -> int:
        """Operations, of about a nanosecond, that the deltas of all swaps take when computed afresh."""
        return self.sweep_cost

    @property
    def num_swaps(self) -> int:
        """Number of pairs of slots that can exchange their seats."""
        return self.size * (self.block_size - 1) // 2

    @property
    def num_experts(self) -> int:
        """Number of experts n; by default as many as slots in a block, each with a seat of its own."""
        return self.block_size

    @property
    def capacity(self) -> int:
        """Slots of an expert in a block, m / n."""
        return self.block_size // self.num_experts

    def experts(self, permutation: npt.ArrayLike) -> Permutation:
        """Return the expert of every slot, shape (size,), under a permutation."""
        return expert_of_seat(self.size, self.block_size, self.capacity)[self.check_solution(permutation)]

    def check_solution(self, solution: npt.ArrayLike, name: str = "permutation") -> Permutation:
        """Return a permutation as a new int64 array, or raise an error that says why it is none.

        Raises
        ------
        ValueError
            If the length is wrong, a seat is missing or twice taken, or a slot leaves its block.
        """
        p = np.asarray(solution)
        if p.dtype.kind not in "iu":
            raise TypeError(f"{name} must hold integers, got dtype {p.dtype}")
        if p.shape != (self.size,):
            raise ValueError(f"{name} must have shape ({self.size},), got shape {p.shape}")
        if p.min() < 0 or p.max() >= self.size:
            raise ValueError(f"{name} must hold the seats 0 .. {self.size - 1}, got {p.min()} .. {p.max()}")
        counts = np.bincount(p.astype(np.int64), minlength=self.size)
        if counts.max() > 1:
            seat = int(np.argmax(counts))
            raise ValueError(f"{name} must hold every seat once, got seat {seat} {counts[seat]} times")
        if self.block_size == self.size:
            return p.astype(np.int64)
        blocks = np.arange(self.size) // self.block_size
        stray = p // self.block_size != blocks
        if stray.any():
            slot = int(np.argmax(stray))
            raise ValueError(
                f"{name} must keep every slot in its block of {self.block_size} seats,"
                f" got seat {p[slot]} for slot {slot}"
            )
        return p.astype(np.int64)

    def random_solution(self, rng: np.random.Generator) -> Permutation:
        """Return a uniformly random permutation that stays inside the blocks."""
        starts = range(0, self.size, self.block_size)
        return np.concatenate([start + rng.permutation(self.block_size) for start in starts])

    def ordinary_value(self) -> float:
        """Return the magnitude of the value of the permutation that reverses every block.

        Values of the identity, or of where a search starts, may be the least there is.
        """
        blocks = np.arange(self.size).reshape(-1, self.block_size)
        return abs(float(self.value(blocks[:, ::-1].ravel())))


def inverse(permutation: Permutation) -> Permutation:
    """Return the inverse permutation: the slot of every seat."""
    order = np.empty_like(permutation)
    order[permutation] = np.arange(permutation.size)
    return order


def expert_of_seat(size: int, block_size: int, capacity: int) -> Permutation:
    """Return the expert of every seat: seats e * c .. e * c + c - 1 of each block belong to expert e."""
    return read_only(np.arange(size) % block_size // capacity)


def seats_by_expert(experts: Permutation, block_size: int | None = None) -> Permutation:
    """Return the permutation that gives every slot a seat of its expert in its block, by default the only one.

    Each expert must have its number of slots in every block; its seats go to them in their order.
    """
    permutation = np.empty_like(experts)
    keys = experts
    if block_size is not None:
        keys = experts + np.arange(experts.size) // block_size * block_size
    # Numpy sorts 16 bits by radix, five times as fast.
    keys = keys.astype(np.int16) if keys.max(initial=0) < 2**15 else keys
    permutation[np.argsort(keys, kind="stable")] = np.arange(experts.size)
    return permutation
