"""What a search found, and the record of what became of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from moe_search.api import training_solver
from moe_search.problems.load_limited import LoadLimited
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.solver import Solver, require_result
from moe_search.solvers.engine.stop import StoppingCriterion
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.lowering import Lowering
from moe_search.training.saved_state import require_keys
from moe_search.training.search.load_limit import LoadLimit, limit_load_if_possible, mean_load

Outcome: TypeAlias = Literal["committed", "enforced", "refused", "no improvement", "not finite", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """One search: what was found, what a second batch said of it, and what became of it.

    Parameters
    ----------
    step : int
        The training step, counted from 1, after which the search ran.
    layer : int or None
        Which layer of several, or whose rows are tokens, it was; None where samples have a row each.
    problem : str or None
        The class of the problem, ``"LinearAssignment"``, ``"PairwiseAssignment"`` or ``"MixtureAssignment"``; None if
        the loss was not finite.
    solver : str or None
        The solver's name; None if none ran.
    outcome : str
        ``"committed"``: the new map is in the gate. ``"enforced"``: it is, without a confirmed gain, since the old one
        broke the load limit on the searched samples. ``"refused"``: the second batch did not confirm the gain, the map
        stayed. ``"no improvement"``: the solver found nothing better. ``"not finite"``: a loss was NaN or infinite, the
        map stayed. ``"skipped"``: no search can use this batch, the map stayed. ``"failed"``: the solver raised, before
        the state was saved that this run was loaded from or under ``on_error="warn"``, the map stayed.
    reason : str or None
        What was wrong where the outcome is one of the last three.
    value_before, value_found : float or None
        Mean loss on the searched samples under the old and the found map (a prediction if ``linearized``).
    bound : float or None
        A proven lower bound on that loss over all maps, if the solver gave one.
    gain : float or None
        ``value_before - value_found``: the predicted decrease of the mean loss.
    verified_gain, standard_error : float or None
        Mean decrease of the loss of a sample on the second batch, by true forwards, and its standard error; None if
        there was nothing to verify.
    seconds, seconds_solving : float
        Time that training waited for the search, and time of the solver, which is part of it unless it ran on a thread.
    compile_seconds : float
        Time in which the solver's kernels were compiled or loaded, which is not part of `seconds_solving`.
    linearized : bool
        Whether the head was not affine, so that its linearization was searched.
    num_samples : int
        Number of samples searched on.
    load_limit : float, tuple of float or None
        The limit on the load of all experts, or of each, that was searched under, in multiples of the mean: more than
        what was asked for where no map keeps that, None if there was none.
    value_shifted : float or None
        Mean loss on the searched samples if every slot had the expert after its own: near `value_before`, experts are
        alike and their places matter little.
    loads : tuple of int or None
        Number of searched samples with weight on a slot of each expert, once for each such slot, under the map that
        the search left.
    dead_experts : tuple of int or None
        The experts without a sample in the last searches under that map; None if their samples are too few to tell,
        that is, if they might well miss an expert with a tenth of the mean load.
    experts_per_sample : float or None
        Mean number of experts with weight that a searched sample had under the old map, for each task; None if samples
        are sequences of tokens.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> inputs = torch.randn(64, 8)
    >>> targets = moe(inputs).detach()  # so that the present map is the best one
    >>> moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    >>> search = ms.PermutationSearch(moe, moe, loss=torch.nn.functional.mse_loss, period=2)
    >>> _ = search.step(inputs[:32], targets[:32])  # kept, to search on
    >>> record = search.step(inputs[32:], targets[32:])  # to verify on
    >>> record.step, record.outcome, record.verified_gain > record.standard_error
    (2, 'committed', True)
    """

    step: int
    layer: int | None = None
    problem: str | None = None
    solver: str | None = None
    outcome: Outcome
    reason: str | None = None
    value_before: float | None = None
    value_found: float | None = None
    bound: float | None = None
    gain: float | None = None
    verified_gain: float | None = None
    standard_error: float | None = None
    seconds: float = 0.0
    seconds_solving: float = 0.0
    compile_seconds: float = 0.0
    linearized: bool = False
    num_samples: int
    load_limit: float | tuple[float, ...] | None = None
    value_shifted: float | None = None
    loads: tuple[int, ...] | None = None
    dead_experts: tuple[int, ...] | None = None
    experts_per_sample: float | None = None

    @property
    def new_map(self) -> bool:
        """Whether the search changed the map."""
        return self.outcome in ("committed", "enforced")

    @property
    def max_load(self) -> float | None:
        """The largest load of an expert, in multiples of the mean."""
        loads = self.loads or ()
        return max(loads) * len(loads) / sum(loads) if any(loads) else None

    def metrics(self) -> dict[str, float]:
        """Return what loggers of training curves take.

        ``search/outcome`` is 1 if the search changed the map, else 0, and ``search/gain`` the verified decrease of the
        loss by that change. ``load/max`` is the largest load of an expert in multiples of the mean, left out where the
        search looked at no samples, and ``load/dead`` the number of `dead_experts`, left out where these are not known.
        """
        gain = self.verified_gain if self.new_map and self.verified_gain is not None else 0.0
        metrics = {"search/outcome": float(self.new_map), "search/gain": gain}
        if self.max_load is not None:
            metrics["load/max"] = self.max_load
        if self.dead_experts is not None:
            metrics["load/dead"] = float(len(self.dead_experts))
        return metrics

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a plain dict of numbers and strings."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchRecord:
        """Return the record of ``to_dict``."""
        # What later versions added is missing in what an earlier one saved.
        defaults = {field.name: field.default for field in fields(cls) if field.default is not MISSING}
        require_keys("a search record", {**defaults, **values}, [field.name for field in fields(cls)])
        tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **tuples})


MISSED = 0.01
"""An expert with a tenth of the mean load is called dead with at most this probability."""


def enough_to_tell_the_dead(history: Sequence[SearchRecord]) -> list[SearchRecord]:
    """Return the last searches under the present map, as many as tell dead experts from rare ones; [] if too few.

    Where several layers are searched, they are those of the layer that was searched last.

    Of n experts, one with a tenth of the mean load gets none of L slots with weight with probability
    ``(1 - 1 / (10 n))**L``, which is at most `MISSED` for ``L >= 10 n log(1 / MISSED)``.
    """
    enough: list[SearchRecord] = []
    slots = 0
    layer = next((record.layer for record in reversed(history) if record.loads), None)
    for record in reversed(history):
        if record.layer != layer:
            continue
        if record.loads:
            enough.append(record)
            slots += sum(record.loads)
            if slots >= 10 * len(record.loads) * math.log(1 / MISSED):
                return enough
        if record.new_map:
            break
    return []


def experts_without_a_sample(searches: Sequence[SearchRecord]) -> tuple[int, ...] | None:
    """Return the experts that no sample of some searches went to; None if there are no searches."""
    loads = [record.loads for record in searches if record.loads]
    return tuple(np.flatnonzero(np.sum(loads, 0) == 0).tolist()) if loads else None


ROUNDING = 1e-9
"""Below this part of the value, a gain is rounding."""


@dataclass(frozen=True, eq=False)
class CandidateMap:
    """What a solver found for a lowered layer.

    Parameters
    ----------
    record : SearchRecord
        Its outcome is the one that is right unless a batch confirms or refuses the map: where a solver ran,
        ``"enforced"`` if the present map breaks the load limit, else ``"no improvement"``.
    permutation : ndarray of int64 or None
        The map; None if it is no better on the samples searched than the present one, which keeps the limit.
    loads : tuple of int or None
        The loads of the record if this map is taken; None if there is none.
    lowering, result : Lowering, Result, optional
        Where it came from; it is there only on the rank that solved it, and not in a saved state.
    """

    record: SearchRecord
    permutation: NDArray[np.int64] | None
    loads: tuple[int, ...] | None = None
    lowering: Lowering | None = None
    result: Result | None = None

    def bare(self) -> CandidateMap:
        """Return the map without where it came from, as it is sent and saved."""
        return replace(self, lowering=None, result=None)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and a tensor."""
        permutation = None if self.permutation is None else torch.from_numpy(self.permutation.copy())
        return {"record": self.record.to_dict(), "permutation": permutation, "loads": self.loads}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> CandidateMap:
        """Return the map of `state_dict`."""
        permutation, loads = state["permutation"], state.get("loads")
        return cls(
            SearchRecord.from_dict(state["record"]),
            None if permutation is None else permutation.cpu().numpy(),
            None if loads is None else tuple(loads),
        )


def find_candidate(
    lowering: Lowering,
    solver: Solver | None,
    stop: StoppingCriterion,
    seed: int,
    step: int,
    load_limit: LoadLimit | None = None,
) -> CandidateMap:
    """Solve a lowered layer from its present map, under a load limit if one is given."""
    kind, before = type(lowering.problem).__name__, float(lowering.problem.value(lowering.initial))
    shifted = float(lowering.problem.value(shifted_map(lowering)))
    limit: float | tuple[float, ...] | None = None
    enforced = False
    if load_limit is not None:
        lowering = limit_load_if_possible(lowering, load_limit)
        assert isinstance(lowering.problem, LoadLimited)
        each = tuple((lowering.problem.limits / mean_load(lowering)).tolist())
        limit = each[0] if np.ndim(load_limit) == 0 else each
        enforced = not lowering.problem.feasible(lowering.initial)
    if solver is None:
        solver = training_solver(lowering.problem)
    start = time.perf_counter()
    result = require_result(solver, solver.solve(lowering.problem, stop, seed=seed, initial=lowering.initial))
    seconds = time.perf_counter() - start
    if result.status == "interrupted":
        # The solver took the Ctrl-C that was meant for the training around it.
        raise KeyboardInterrupt
    found = float(result.value)
    record = SearchRecord(
        step=step,
        problem=kind,
        solver=result.solver,
        outcome="enforced" if enforced else "no improvement",
        value_before=before,
        value_found=found,
        bound=None if result.bound is None else float(result.bound),
        gain=before - found,
        seconds_solving=seconds - result.compile_seconds,
        compile_seconds=result.compile_seconds,
        linearized=lowering.linearized,
        num_samples=lowering.num_samples,
        load_limit=limit,
        value_shifted=shifted,
        loads=_loads(lowering, lowering.initial),
        experts_per_sample=lowering.experts_per_sample,
    )
    if before - found > ROUNDING * abs(before) or enforced:
        return CandidateMap(record, result.permutation, _loads(lowering, result.permutation), lowering, result)
    return CandidateMap(record, None, None, lowering, result)


def shifted_map(lowering: Lowering) -> NDArray[np.int64]:
    """Return the permutation that gives every slot the expert after its own."""
    p, m = lowering.initial, lowering.problem.block_size
    return p - p % m + (p + lowering.problem.capacity) % m


def _loads(lowering: Lowering, permutation: NDArray[np.int64]) -> tuple[int, ...]:
    problem = lowering.problem
    experts = permutation % problem.block_size // problem.capacity
    loads = np.zeros(problem.block_size // problem.capacity, np.int64)
    np.add.at(loads, experts, lowering.slot_loads)
    return tuple(loads.tolist())


@dataclass(eq=False)
class Underway:
    """A search whose map is not decided yet.

    Parameters
    ----------
    batch : Batch
        The samples that will decide, those of the last step.
    step, num_samples : int
        The step that it began after, and the number of samples searched on.
    seconds : float
        How long training has waited for the search so far.
    found : Future of CandidateMap or None
        It is None on the ranks that wait for what the first one finds.
    """

    batch: Batch
    step: int
    num_samples: int
    seconds: float = 0.0
    found: Future[CandidateMap] | None = None

    @property
    def done(self) -> bool:
        """Whether there is an answer, an error too."""
        return self.found is None or self.found.done()

    def __reduce__(self) -> Any:
        # A thread goes into no copy, but what it finds does.
        return Underway.from_state_dict, (self.state_dict(), self.batch.inputs.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the state once the solver has ended. If it raised, that of a search that found nothing.

        The other ranks do not know that it raised, and will ask the first for its answer.
        """
        found = None
        if self.found is not None:
            error = self.found.exception()
            reason = None if error is None else repr(error)
            record = SearchRecord(step=self.step, outcome="failed", reason=reason, num_samples=self.num_samples)
            answer = self.found.result() if error is None else CandidateMap(record, None)
            found = answer.state_dict()
        numbers = {"step": self.step, "num_samples": self.num_samples, "seconds": self.seconds}
        return {"batch": dict(self.batch.named()), **numbers, "found": found}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device) -> Underway:
        """Return the search of `state_dict`."""
        found = state["found"]
        future = None if found is None else at_once(lambda: CandidateMap.from_state_dict(found))
        numbers = state["step"], state["num_samples"], float(state["seconds"])
        return cls(Batch.of(state["batch"]).to(device), *numbers, future)


def at_once(compute: Callable[[], CandidateMap]) -> Future[CandidateMap]:
    """Compute now, and return a future that has the answer, or the error."""
    future: Future[CandidateMap] = Future()
    try:
        future.set_result(compute())
    except BaseException as error:  # a KeyboardInterrupt too: it comes again where the answer is asked for
        future.set_exception(error)
    return future


def on_thread(compute: Callable[[], CandidateMap]) -> Future[CandidateMap]:
    """Compute on a thread that ends with the answer; the compiled searches release the GIL."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="permutation-search")
    try:
        return executor.submit(compute)
    except RuntimeError as error:  # no thread is left: it comes where the answer is asked for, on all ranks
        failed: Future[CandidateMap] = Future()
        failed.set_exception(error)
        return failed
    finally:
        executor.shutdown(wait=False)
