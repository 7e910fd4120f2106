"""Quadratic assignment in Koopmans-Beckmann form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import (
    dense,
    is_sparse,
    largest_magnitude,
    numeric_array,
    read_only,
    require_fits,
    sparse_square_matrix,
    square_matrix,
)
from moe_search.problems.dense_quadratic import DenseArrays, dense_arrays
from moe_search.problems.pair_costs import PairCosts
from moe_search.problems.permutation_problem import PermutationProblem
from moe_search.problems.sparse_quadratic import SparseArrays, sparse_arrays


@dataclass(frozen=True, eq=False, repr=False)
class QuadraticAssignment(PermutationProblem):
    """Place n facilities on n locations; the form of Koopmans and Beckmann (1957).

    ``value(p) = sum_{i, j} flow[i, j] * distance[p[i], p[j]] + sum_i linear[i, p[i]]``, over all ordered pairs, the
    diagonal included.

    Parameters
    ----------
    flow, distance : array_like, shape (n, n)
        Integers are kept exact; floats in either make the problem a floating-point one. The flow may be a matrix or an
        array of scipy.sparse; it is kept as a csr_array.
    linear : array_like, shape (n, n), optional
        Cost of facility i at location k.

    Raises
    ------
    ValueError
        If a matrix is not square, the shapes differ, an entry is NaN or infinite, or totals could overflow.

    Notes
    -----
    A delta takes O(n), and O(1) where those of all swaps are kept from move to move. Integer matrices are held in 32
    bits where no delta can overflow them, of 512 facilities and more in 16 or 8 where they fit, for speed. Of 256
    facilities and more, where at most a 50th of the flows, or of the distances, are not zero, a delta takes as many
    steps as the two facilities have flows, or their two locations distances, whatever n. Integers give the same search
    in every way.

    Examples
    --------
    >>> from moe_search.problems.quadratic import QuadraticAssignment
    >>> QuadraticAssignment([[0, 3], [3, 0]], [[0, 2], [2, 0]]).value([1, 0])
    12
    """

    flow: Any
    distance: npt.NDArray[Any]
    linear: npt.NDArray[Any] | None = None
    kernel_arrays: DenseArrays | SparseArrays = field(init=False, kw_only=True)

    def __post_init__(self) -> None:
        flow: Any = (sparse_square_matrix if is_sparse(self.flow) else square_matrix)("flow", self.flow)
        distance = square_matrix("distance", self.distance)
        if flow.shape != distance.shape:
            raise ValueError(f"flow and distance must have one shape, got {flow.shape} and {distance.shape}")
        linear = None if self.linear is None else numeric_array("linear", self.linear, 2)
        if linear is not None and linear.shape != flow.shape:
            raise ValueError(f"linear must have the shape of flow, {flow.shape}, got {linear.shape}")
        parts = [a for a in (flow, distance, linear) if a is not None]
        if not all(a.dtype.kind == "i" for a in parts):
            flow, distance = flow.astype(np.float64), read_only(distance.astype(np.float64))
            linear = None if linear is None else read_only(linear.astype(np.float64))
        for part in (flow.data, flow.indices, flow.indptr) if is_sparse(flow) else (flow,):
            read_only(part)
        flows, distances = largest_magnitude(flow), largest_magnitude(distance)
        once = 0 if linear is None else flow.shape[0] * largest_magnitude(linear)
        require_fits("the value of a permutation", 4 * distance.size * flows * distances + 2 * once)
        # Sums of either that meet zeros, or numbers below one, in the other.
        require_fits("a sum of flows", 4 * distance.size * flows)
        require_fits("a sum of distances", 4 * distance.size * distances)
        for name, array in (("flow", flow), ("distance", distance), ("linear", linear)):
            object.__setattr__(self, name, array)
        arrays = sparse_arrays(flow, distance, linear) or dense_arrays(dense(flow), distance, linear)
        object.__setattr__(self, "kernel_arrays", arrays)

    def traits(self) -> list[str]:
        """Return whether both matrices are symmetric, and whether there is a linear term; see `repr`."""
        flow_symmetric = (self.flow != self.flow.T).sum() == 0
        symmetric = bool(flow_symmetric) and np.array_equal(self.distance, self.distance.T)
        return ["symmetric"] * symmetric + ["linear term"] * (self.linear is not None)

    @property
    def size(self) -> int:
        """Number of facilities n."""
        return self.flow.shape[0]

    @property
    def integral(self) -> bool:
        """Whether all data are integers."""
        return self.flow.dtype.kind == "i"

    def value(self, permutation: npt.ArrayLike) -> int | float:
        """Return the total cost of a permutation; see `PermutationProblem.value`."""
        p = self.check_solution(permutation)
        if is_sparse(self.flow):
            rows, columns = self.flow.nonzero()
            value = np.vdot(self.flow.data, self.distance[p[rows], p[columns]])
        else:
            value = np.vdot(self.flow, self.distance[np.ix_(p, p)])
        if self.linear is not None:
            value = value + self.linear[np.arange(self.size), p].sum()
        return value.item()

    def state(self, permutation: npt.ArrayLike) -> Any:
        """Return the arrays of the kernels; see `PermutationProblem.state`."""
        return self.kernel_arrays.state(self.check_solution(permutation))

    def delta_matrix(self) -> Any:
        """Return the arrays for the deltas of all swaps; see `PermutationProblem.delta_matrix`."""
        return self.kernel_arrays.delta_matrix()

    @property
    def fill_cost(self) -> int:
        """Operations that the deltas of all swaps take; see `PermutationProblem.fill_cost`."""
        return self.kernel_arrays.fill_cost

    def value_range(self) -> tuple[int | float, int | float]:
        """Return the values if every flow went over the least distance, and over the largest."""
        least, most = self.distance.min().item(), self.distance.max().item()
        flows = self.flow.data if is_sparse(self.flow) else self.flow
        positive, negative = np.maximum(flows, 0).sum().item(), np.minimum(flows, 0).sum().item()
        low, high = positive * least + negative * most, positive * most + negative * least
        if self.linear is None:
            return low, high
        return low + self.linear.min(axis=1).sum().item(), high + self.linear.max(axis=1).sum().item()

    def pair_costs(self) -> PairCosts:
        """Return the costs, in factors, both of them dense."""
        return PairCosts(self.flow.shape, self.size, self.integral, self.linear, (dense(self.flow), self.distance))
