"""The spine of compiled searches: a kernel searches in slices, a track keeps where it stands and what it found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moe_search.problems.kernels import compiled, kernel_for
from moe_search.problems.moves import copy_permutation
from moe_search.problems.permutation_problem import Permutation, PermutationProblem
from moe_search.solvers.engine.random_state import random_state
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.run import Run, Slice
from moe_search.solvers.engine.solver import Solver

LOG_LENGTH = 512
# Rounding errors of a state of floats add up over about this many moves; then it is built afresh.
REFRESH_AFTER = 1 << 17

COUNTS = np.dtype(
    [
        ("iterations", np.int64),
        ("moves", np.int64),
        ("restarts", np.int64),
        ("logged", np.int64),  # improvements of the incumbent in this slice
        ("stale", np.bool_),  # the state is to be built afresh, before rounding errors add up
        ("done", np.bool_),  # nothing is left to do: the target is reached, or the search has ended
        ("proved", np.bool_),  # the search has ended and proves its incumbent optimal
    ]
)

Kernel = Callable[..., int]
"""``kernel(state, track, budget, target, *arguments)`` does at most `budget` units of work and returns how many.

It returns early when `take` says so, when it is done, or when the state is stale. What it does depends on the state,
the track and the arguments alone and never on where slices begin, so that a seed gives one result whatever the clock.
"""


class Track(NamedTuple):
    """What every compiled search keeps from slice to slice.

    Parameters
    ----------
    totals : ndarray, shape (2,)
        Value of the current permutation and of the incumbent.
    counts : ndarray of `COUNTS`, shape (1,)
        Where the search stands.
    incumbent : ndarray of int64, shape (size,)
        The best permutation met.
    log_values, log_iterations : ndarray, shape (LOG_LENGTH,)
        Improvements of the incumbent in this slice.
    rng : ndarray of uint64, shape (4,)
        State of the random numbers.
    tolerance : int or float
        A delta is an improvement if it is below minus this.
    """

    totals: npt.NDArray[Any]
    counts: npt.NDArray[Any]
    incumbent: Permutation
    log_values: npt.NDArray[Any]
    log_iterations: npt.NDArray[np.int64]
    rng: npt.NDArray[np.uint64]
    tolerance: Any


@compiled
def take(track: Track, permutation: Any, target: float) -> bool:
    """Take the current permutation, which is better, for the incumbent; return whether the slice ends here.

    It is called where a new incumbent is met and not at every move: to hand over a tuple of arrays costs more than a
    delta.
    """
    totals, counts = track.totals, track.counts[0]
    totals[1] = totals[0]
    copy_permutation(track.incumbent, permutation)
    track.log_values[counts.logged] = totals[0]
    track.log_iterations[counts.logged] = counts.iterations
    counts.logged += 1
    if totals[1] <= target:
        counts.done = True
    return counts.done or counts.logged == track.log_values.shape[0]


def new_track(run: Run, incumbent: Permutation) -> Track:
    """Return the track of a search that begins at the incumbent of a run, which is kept in `incumbent`."""
    return Track(
        np.array([run.value, run.value], dtype=run.dtype),
        np.zeros(1, dtype=COUNTS).view(np.recarray),
        incumbent,
        np.zeros(LOG_LENGTH, dtype=run.dtype),
        np.zeros(LOG_LENGTH, dtype=np.int64),
        random_state(run.seed),
        run.tolerance,
    )


class CompiledSearch(Solver):
    """A solver that is a kernel: it gives `prepare`, and `statistics` if it counts more than moves."""

    @abstractmethod
    def prepare(self, run: Run, state: Any) -> tuple[Kernel, tuple[Any, ...]]:
        """Return the kernel, and what it takes after the target."""

    def iteration_work(self, problem: PermutationProblem) -> int:
        """Return the units of work of an iteration."""
        return 1

    def statistics(self, track: Track, arguments: tuple[Any, ...]) -> dict[str, int]:
        """Return the counts of a run that has ended."""
        counts = track.counts[0]
        return {"swaps evaluated": int(counts.iterations), "swaps committed": int(counts.moves)}

    def search(self, run: Run) -> Result:
        """Search slice by slice; see `Solver.search`."""
        problem = run.problem
        assert isinstance(problem, PermutationProblem)
        state = problem.state(run.take_initial())
        track = new_track(run, run.incumbent)
        counts = track.counts[0]
        kernel, arguments = self.prepare(run, state)
        kernel = kernel_for(state, kernel)

        def advance(budget: int, target: float) -> Slice:
            nonlocal state
            counts.logged = 0
            work = kernel(state, track, budget, target, *arguments)
            if counts.stale:
                state = problem.state(state.permutation)
                track.totals[0] = problem.value(state.permutation)
                counts.stale = False
            improvements = zip(track.log_iterations[: counts.logged], track.log_values[: counts.logged], strict=True)
            return Slice(work, int(counts.iterations), improvements, bool(counts.done))

        run.loop(advance, self.iteration_work(problem))
        return run.result(
            moves=int(counts.moves),
            restarts=int(counts.restarts),
            proved=bool(counts.proved),
            statistics=self.statistics(track, arguments),
        )
