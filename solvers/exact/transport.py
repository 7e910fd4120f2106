"""Linear assignment with capacity at any size, on the graph of the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from moe_search.problems.arrays import read_only
from moe_search.problems.balanced_routing import BalancedRouting
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.permutation_problem import seats_by_expert
from moe_search.solvers.engine.result import Result, reached
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.exact.expert_flow import CHOOSE, DONE, empty_flow, flow_slice, place_rest

# Looks at a cost, a nanosecond each: far less than a slice takes, and calls of the kernel cost too.
FIRST_LOOKS = 1 << 17
# Rows an expert in a sample at least, and the share of the units that must be too many for samples to pay.
LEAST_SAMPLE = 8
CROWDED = 1 / 3


@dataclass(frozen=True)
class Transport(Solver):
    """Solve a `LinearAssignment` or a `BalancedRouting` to optimality on the graph of its n experts, at any size.

    Every unit of a row (a slot has one, a token k) first goes where it costs least, at prices found on samples of the
    rows where they crowd. Then the fullest expert raises its price until only as many units stay as it holds, and
    again, as in an auction; what is left over when that stalls is sent along shortest paths between experts, where the
    arc from u to v is the row of u, not of v, that costs least to move. Prices are dual variables all the while.
    Integers are exact; floats up to rounding.

    Notes
    -----
    An iteration is one rise of a price, which looks at the rows of one expert, or one path, in O(n^2). Stopped early,
    it moves the units that are too many to the cheapest experts with room, and returns that or `initial`, whichever is
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
    takes: ClassVar[type | tuple[type, ...]] = (LinearAssignment, BalancedRouting)

    def search(self, run: Run) -> Result:
        """Search; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, (LinearAssignment, BalancedRouting))
        n = problem.num_experts
        k = problem.k if isinstance(problem, BalancedRouting) else 1
        run.take_initial(problem.even_solution() if isinstance(problem, BalancedRouting) else np.arange(problem.size))
        cost, units = problem.cost, np.full(len(problem.cost), k)
        free = n * problem.capacity - units.sum()
        if free:
            # Units that cost nothing, a row each, fill what the rows leave free.
            cost = read_only(np.concatenate([cost, np.zeros((free, n), dtype=cost.dtype)]))
            units = np.concatenate([units, np.ones(free, dtype=units.dtype)])
        strides = sample_strides(problem.cost, k)
        flows = [empty_flow(sample(cost, stride), sample(units, stride)) for stride in strides]
        capacities = [-(-int(flow.units.sum()) // n) for flow in flows]
        level = 0

        def advance(budget: int, target: float) -> Slice:
            nonlocal level
            flow = flows[level]
            work = flow_slice(flow, budget, capacities[level])
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
                paid = flow.cost[flow.held].sum() + (flow.size * flow.price).sum()
                bound = (paid - problem.capacity * flow.price.sum()).item()
                place_rest(flow, problem.capacity)
            experts = np.flatnonzero(flow.held[: len(problem.cost)]) % n
            solution = experts.reshape(-1, k) if isinstance(problem, BalancedRouting) else seats_by_expert(experts)
            run.offer(solution, problem.value(solution), run.iterations)
            run.show()
        proved = flow.counts[0].phase == DONE or reached(run.value, bound, problem)
        run.bound = None if bound is None else min(bound, run.value)
        return run.result(moves=sum(int(each.counts[0].moves) for each in flows), proved=bool(proved))


def sample_strides(cost: npt.NDArray[Any], k: int = 1) -> list[int]:
    """Return the strides of the samples whose prices one after the other start the next; the last is 1, all rows.

    Samples pay only where the rows, of k units, crowd together on a few experts: from other prices than zero, the noise
    of a sample takes longer to mend than it saves.
    """
    m, n = cost.shape
    strides = [stride for stride in (64, 8) if m // stride >= LEAST_SAMPLE * n]
    if strides:
        first = sample(cost, strides[0])
        chosen = first.argmin(axis=1) if k == 1 else first.argpartition(k - 1, axis=1)[:, :k]
        crowds = np.bincount(chosen.ravel(), minlength=n)
        if np.maximum(crowds - chosen.size // n, 0).sum() < CROWDED * chosen.size:
            return [1]
    return [*strides, 1]


def sample(rows: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """Return the rows at multiples of the stride."""
    # Read-only as the whole is, so that one compiled kernel serves both.
    return read_only(np.ascontiguousarray(rows[::stride]))
