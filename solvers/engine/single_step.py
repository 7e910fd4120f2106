"""The result of a solver that finds its answer in one step."""

from __future__ import annotations

from moe_search.problems.permutation_problem import Permutation
from moe_search.solvers.engine.clock import Clock
from moe_search.solvers.engine.incumbent import Incumbent, OnImprovement
from moe_search.solvers.engine.result import Result, Status, TrajectoryPoint


def single_step_result(
    clock: Clock,
    permutation: Permutation,
    value: int | float,
    bound: int | float | None,
    status: Status,
    solver: str,
    on_improvement: OnImprovement | None,
) -> Result:
    """Show the answer to `on_improvement` and return it; its trajectory is one point, at iteration 1."""
    seconds = clock.seconds()
    if on_improvement is not None:
        try:
            on_improvement(Incumbent(seconds, 1, value, permutation))
        except KeyboardInterrupt:
            status = status if status == "optimal" else "interrupted"
    return Result(
        permutation=permutation,
        value=value,
        bound=bound,
        status=status,
        trajectory=(TrajectoryPoint(seconds, value, 1),),
        iterations=1,
        moves=0,
        restarts=0,
        runtime=clock.seconds(),
        seed=None,
        solver=solver,
    )
