"""Linear assignment with capacity at any size, on the graph of the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import read_only
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.permutation_problem import seats_by_expert
from moe_search.solvers.engine.result import Result, reached
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.exact.expert_flow import CHOOSE, DONE, empty_flow, flow_slice, place_rest

# Looks at a cost, a nanosecond each: far less than a slice takes, and calls of the kernel cost too.
FIRST_LOOKS = 1 << 17
# Slots of an expert in a sample at least, and the share of the slots that must be too many for samples to pay.
LEAST_SAMPLE = 8
CROWDED = 1 / 3


@dataclass(frozen=True)
class Transport(Solver):
    """Solve a `LinearAssignment` to optimality on the graph of its n experts, however many slots there are.

    Every slot first goes where it costs least, at prices found on samples of the slots where they crowd. Then the
    fullest expert raises its price until only as many slots stay as it holds, and again, as in an auction; what is left
    over when that stalls is sent along shortest paths between experts, where the arc from u to v is the slot of u that
    costs least to move. Prices are dual variables all the while. Integers are exact; floats up to rounding.

    Notes
    -----
    An iteration is one rise of a price, which looks at the slots of one expert, or one path, in O(n^2). Stopped early,
    it moves the slots that are too many to the cheapest experts with room, and returns that or `initial`, whichever is
    better, with the bound that the prices prove. `seed` has no influence on the optimum.

    References
    ----------
    D. P. Bertsekas, D. A. Castanon, "The auction algorithm for the transportation problem", Annals of Operations
    Research 20 (1989), 67-96; J. Edmonds, R. M. Karp, "Theoretical improvements in algorithmic efficiency for network
    flow problems", Journal of the ACM 19 (1972), 248-264, for the paths.

    Examples
    --------
    >>> import moe_search as ms
    >>> problem = ms.random_linear(600, 3, seed=0)  # every expert takes 200 slots
    >>> ms.solve(problem, ms.Transport()).value == ms.solve(problem, ms.Hungarian()).value
    True
    """

    exact: ClassVar[bool] = True
    takes: ClassVar[type] = LinearAssignment

    def search(self, run: Run) -> Result:
        """Search; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, LinearAssignment)
        run.take_initial(np.arange(problem.size))
        strides = sample_strides(problem.cost)
        flows = [empty_flow(sample(problem.cost, stride)) for stride in strides]
        level = 0

        def advance(budget: int, target: float) -> Slice:
            nonlocal level
            flow = flows[level]
            work = flow_slice(flow, budget, len(flow.cost) // problem.num_experts)
            if flow.counts[0].phase == DONE and strides[level] > 1:
                level += 1
                flows[level].price[:] = flow.price
            iterations = sum(int(each.counts[0].iterations) for each in flows)
            return Slice(work, iterations, (), flows[-1].counts[0].phase == DONE)

        run.loop(advance, first_budget=FIRST_LOOKS)
        flow = flows[-1]
        bound = None
        if flow.counts[0].phase > CHOOSE:
            if flow.counts[0].phase != DONE:
                # In modular arithmetic the products may overflow, the bound cannot.
                cheapest = flow.cost[np.arange(problem.size), flow.expert] + flow.price[flow.expert]
                bound = (cheapest.sum() - problem.capacity * flow.price.sum()).item()
                place_rest(flow, problem.capacity)
            permutation = seats_by_expert(flow.expert)
            run.offer(permutation, problem.value(permutation), run.iterations)
            run.show()
        proved = flow.counts[0].phase == DONE or reached(run.value, bound, problem.integral)
        run.bound = None if bound is None else min(bound, run.value)
        return run.result(moves=sum(int(each.counts[0].moves) for each in flows), proved=bool(proved))


def sample_strides(cost: npt.NDArray[Any]) -> list[int]:
    """Return the strides of the samples whose prices one after the other start the next; the last is 1, all slots.

    Samples pay only where the slots crowd together on a few experts: from other prices than zero, the noise of a sample
    takes longer to mend than it saves.
    """
    m, n = cost.shape
    strides = [stride for stride in (64, 8) if m // stride >= LEAST_SAMPLE * n]
    if strides:
        first = sample(cost, strides[0])
        crowds = np.bincount(first.argmin(axis=1), minlength=n)
        if np.maximum(crowds - len(first) // n, 0).sum() < CROWDED * len(first):
            return [1]
    return [*strides, 1]


def sample(cost: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """Return the rows at multiples of the stride, the largest number of them that fills all experts alike."""
    m, n = cost.shape
    # Read-only as the whole is, so that one compiled kernel serves both.
    return read_only(np.ascontiguousarray(cost[::stride][: m // stride // n * n]))
