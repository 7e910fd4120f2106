"""Problems as costs of single slots and of pairs of slots, which exact solvers and bounds read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

# What a solver says that needs pair costs, of a problem without any.
NO_PAIR_COSTS = "its value is not a sum over pairs of slots; Enumeration or LocalSearch take it"


@dataclass(frozen=True, eq=False)
class PairCosts:
    """The value of a problem as a sum over slots and pairs of slots, e(s) being the expert of slot s.

    ``value(p) = sum_s linear[s, e(s)] + sum_{s, t} flow[s, t] * distance[e(s), e(t)]``, over all ordered pairs, s = t
    included. Either term may be missing. Where no such factors are known, the value is that of a pairwise problem.

    Parameters
    ----------
    shape : (int, int)
        Number of slots in all blocks, m, and of experts, n.
    block_size : int
        Slots of a block.
    integral : bool
        Whether all costs are integers.
    linear : ndarray, shape (m, n), optional
        Cost of every slot under every expert.
    factors : (ndarray, ndarray), shapes (n, n), optional
        The flow and the distance, where every slot has a seat of its own (m = n).
    make_pairwise : callable, optional
        Returns the `PairwiseAssignment` of the same value. It is called once, and only by who needs the (m n)^2 costs.
    products : int
        Multiplications that making it takes; 0 where it is at hand.
    limits : LoadLimits, optional
        What the experts may bear, where only permutations within limits count.
    """

    shape: tuple[int, int]
    block_size: int
    integral: bool
    linear: npt.NDArray[Any] | None = None
    factors: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None = None
    make_pairwise: Callable[[], Any] | None = None
    products: int = 0
    limits: Any = None

    def __post_init__(self) -> None:
        m, n = self.shape
        if self.factors is not None and self.make_pairwise is not None:
            raise ValueError("pair costs must have factors or make_pairwise, got both")
        if self.linear is not None and self.linear.shape != (m, n):
            raise ValueError(f"linear must have shape {(m, n)}, got shape {self.linear.shape}")
        for factor in self.factors or ():
            if m != n or factor.shape != (n, n):
                raise ValueError(f"factors must have shape {(m, m)}, one seat a slot, got shape {factor.shape}")

    @property
    def capacity(self) -> int:
        """Slots of an expert in a block."""
        return self.block_size // self.shape[1]

    @cached_property
    def pairwise(self) -> Any:
        """The pairwise problem of the same value, where no factors are known."""
        return None if self.make_pairwise is None else self.make_pairwise()

    @cached_property
    def unary(self) -> npt.NDArray[Any]:
        """Cost of slot s under expert e by itself, shape (m, n): the linear one, and that of the pair (s, s)."""
        if self.pairwise is not None:
            return self.pairwise.unary
        linear = self.linear
        if linear is None:
            linear = np.zeros(self.shape, dtype=np.int64 if self.integral else np.float64)
        if self.factors is None:
            return linear
        return np.outer(*(np.diagonal(factor) for factor in self.factors)) + linear
