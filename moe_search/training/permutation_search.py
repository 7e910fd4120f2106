"""Permutation search in the middle of training: every so many steps, find a better expert map."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.problems.linear import LinearAssignment
from moe_search.solvers.hungarian import Hungarian
from moe_search.solvers.local_search import LocalSearch
from moe_search.solvers.result import Result
from moe_search.solvers.solver import Solver
from moe_search.solvers.stop import MaxRuntime, StoppingCriterion, require_criterion
from moe_search.training.arguments import require_int
from moe_search.training.batch import Batch, concatenate
from moe_search.training.cut import check_model
from moe_search.training.lowering import Lowering, lower
from moe_search.training.sample_losses import Loss, NonFiniteLossError
from moe_search.training.search_record import Outcome, SearchRecord
from moe_search.training.verification import Verification, verify

OnSearch: TypeAlias = Callable[[SearchRecord, Lowering, Result], None]

# Below this part of the value, a gain is rounding.
ROUNDING = 1e-9


class PermutationSearch:
    """Search the expert map of a mixture layer while its model is trained.

    Call `step` after every optimizer step. Every ``period`` steps, up to step ``until``, it lowers the layer to a
    search problem on the last batches before the present one, solves it, and verifies the map it found on the present
    batch by true forwards: the map is committed to the gate if the mean loss decreases by more than the standard error
    of that decrease, and refused otherwise. Only the map ever changes: experts, gate and optimizer stay as they are.

    Parameters
    ----------
    model : Module
        The model that is trained, called as ``model(inputs)``, or ``model(inputs, ids=ids)`` where ids are given.
    moe : MixtureOfExperts
        The layer to search, a submodule of `model` or `model` itself.
    loss : callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples. Any for gates with one slot a
        sample; squared error, binary cross-entropy or cross-entropy for the others (see `recognize_loss`).
    period : int, default 100
        Steps from one search to the next.
    until : int, default 1000
        Last step at which a search may run. Afterwards `step` only counts.
    batches : int, default 1
        Number of batches to search on: references to them are kept, from the steps just before a search, so they must
        not be overwritten in place.
    solver : Solver, optional
        By default `Hungarian` for a linear problem, which it solves to optimality, and
        ``LocalSearch(neighborhood="swap", restarts=True)`` from the present map for a mixture.
    stop : StoppingCriterion, default MaxRuntime(0.05)
        When the solver stops.
    seed : int, default 0
        The i-th search draws its own seed from (seed, i).
    on_search : callable, optional
        Called as ``on_search(record, lowering, result)`` after every search that a solver ran in, the map decided.

    Attributes
    ----------
    history : list of SearchRecord
        One record for every search.
    seconds : float
        Time spent in searches, verification included.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If `moe` is not inside `model`, or `period`, `until`, `batches` or `seed` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        moe: MixtureOfExperts,
        *,
        loss: Loss,
        period: int = 100,
        until: int = 1000,
        batches: int = 1,
        solver: Solver | None = None,
        stop: StoppingCriterion = MaxRuntime(0.05),  # noqa: B008  (immutable)
        seed: int = 0,
        on_search: OnSearch | None = None,
    ) -> None:
        check_model(model, moe)
        if not callable(loss):
            raise TypeError(f"loss must be a callable (outputs, targets) -> scalar, got {type(loss).__name__}")
        for name, count in (("period", period), ("until", until), ("batches", batches)):
            require_int(name, count, 1)
        if solver is not None and not callable(getattr(solver, "solve", None)):
            raise TypeError(f"solver must have a method solve, got {type(solver).__name__}")
        require_criterion(stop)
        require_int("seed", seed, 0)
        if on_search is not None and not callable(on_search):
            raise TypeError(f"on_search must be a callable (record, lowering, result), got {type(on_search).__name__}")
        self._model = model
        self._moe = moe
        self._loss = loss
        self._period = int(period)
        self._until = int(until)
        self._batches = int(batches)
        self._solver = solver
        self._stop = stop
        self._on_search = on_search
        self._seed = int(seed)
        self._step = 0
        self._searches = 0
        self._retained: list[Batch] = []
        self.history: list[SearchRecord] = []
        self.seconds = 0.0

    def step(self, inputs: Tensor, targets: Tensor, ids: Tensor | None = None) -> SearchRecord | None:
        """Count a training step, and search if one is due.

        Parameters
        ----------
        inputs, targets : Tensor
            The batch of this step, shape [B, ...].
        ids : Tensor, optional
            Shape [B], for gates that route by id.

        Returns
        -------
        SearchRecord or None
            What the search did; None at a step without one.

        Raises
        ------
        ValueError
            If the batch is empty, or a search is due and there are too few samples to verify it on. It takes 2, or 3 if
            no earlier batch was kept (``period=1``): the first half is then searched and the second verifies. Also
            whatever `lower` raises. The map is then as it was.
        """
        step = self._step + 1
        if step > self._until:
            self._step = step
            return None
        batch = Batch(inputs, targets, ids)
        due = step % self._period == 0
        if not due:
            batch.require(1)
        elif self._retained:
            batch.require(2, " to verify a search")
        else:
            batch.require(3, " to be searched and verified by halves, no earlier batch being kept")
        batch.check_device(self._model)

        self._step = step
        record = self._search(batch) if due else None
        self._retain(batch)
        return record

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on as if the run had never stopped: plain numbers, strings and tensors.

        The expert map itself is in the state dict of the model. The batches kept for the next search are in it, so a
        state saved just before a search is as large as they are.
        """
        return {
            "step": self._step,
            "searches": self._searches,
            "seed": self._seed,
            "seconds": self.seconds,
            "history": [record.to_dict() for record in self.history],
            "retained": [dict(batch.named()) for batch in self._retained],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`.

        Raises
        ------
        ValueError, TypeError
            If the state is not one of a `PermutationSearch`. Nothing is taken up then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be the dict of state_dict, got {type(state).__name__}")
        keys = ("step", "searches", "seed", "seconds", "history", "retained")
        if set(state) != set(keys):
            raise ValueError(f"state must have the keys {', '.join(keys)}, got {', '.join(map(str, state)) or 'none'}")
        for name in keys[:3]:
            require_int(name, state[name], 0)
        device = self._moe.gate.expert_map.experts.device
        history = [SearchRecord.from_dict(values) for values in state["history"]]
        retained = [Batch(**tensors).to(device) for tensors in state["retained"]]
        self.seconds = float(state["seconds"])
        self._step, self._searches, self._seed = state["step"], state["searches"], state["seed"]
        self.history, self._retained = history, retained

    def _retain(self, batch: Batch) -> None:
        due = (self._step // self._period + 1) * self._period
        if due <= self._until and due - self._step <= self._batches:
            self._retained = [*self._retained, batch][-self._batches :]
        else:
            self._retained = []

    def _search(self, batch: Batch) -> SearchRecord:
        start = time.perf_counter()
        if self._retained:
            searched, verified = concatenate(self._retained), batch
        else:
            half = len(batch) // 2
            searched, verified = batch.part(0, half), batch.part(half, len(batch))
        seed = np.random.SeedSequence(self._seed, spawn_key=(self._searches,)).generate_state(1)[0]
        self._searches += 1

        lowering: Lowering | None = None
        result: Result | None = None
        verification: Verification | None = None
        before, seconds_solving = None, 0.0
        outcome: Outcome = "no improvement"
        try:
            lowering = lower(self._model, self._moe, searched.inputs, searched.targets, self._loss, searched.ids)
            before = float(lowering.problem.value(lowering.initial))
            solver = _default_solver(lowering) if self._solver is None else self._solver
            solving = time.perf_counter()
            result = solver.solve(lowering.problem, self._stop, seed=int(seed), initial=lowering.initial)
            seconds_solving = time.perf_counter() - solving
            if result.status == "interrupted":
                # The solver took the Ctrl-C that was meant for the training around it.
                raise KeyboardInterrupt
            if before - result.value > ROUNDING * abs(before):
                verification = verify(self._model, self._moe, result.permutation, verified, self._loss)
                outcome = "committed" if verification.confirmed else "refused"
        except NonFiniteLossError as error:
            outcome = "not finite"
            warnings.warn(
                f"the search at step {self._step} was given up and the expert map left as it is: {error}",
                RuntimeWarning,
                stacklevel=3,
            )
        if result is not None and outcome == "committed":
            self._moe.gate.expert_map.assign_permutation(result.permutation)

        found = None if result is None else float(result.value)
        record = SearchRecord(
            step=self._step,
            problem=None if lowering is None else type(lowering.problem).__name__,
            solver=None if result is None else result.solver,
            outcome=outcome,
            value_before=before,
            value_found=found,
            bound=None if result is None or result.bound is None else float(result.bound),
            gain=None if before is None or found is None else before - found,
            verified_gain=None if verification is None else verification.gain,
            standard_error=None if verification is None else verification.standard_error,
            seconds=time.perf_counter() - start,
            seconds_solving=seconds_solving,
            linearized=lowering is not None and lowering.linearized,
            num_samples=len(searched),
        )
        self.history.append(record)
        self.seconds += record.seconds
        if self._on_search is not None and lowering is not None and result is not None:
            self._on_search(record, lowering, result)
        return record


def _default_solver(lowering: Lowering) -> Solver:
    if isinstance(lowering.problem, LinearAssignment):
        return Hungarian()
    return LocalSearch(neighborhood="swap", restarts=True)
