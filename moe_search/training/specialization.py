"""Experts that specialize at the start of training: which expert a sample trains, by assignment and by competition."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.checks import require_integer, require_number
from moe_search.gates.batch_checks import like_rows, rows_of
from moe_search.gates.gate import SlotWeights
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.problems.balanced_routing import BalancedRouting
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.exact.transport import Transport
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.forward_pass import Autocast, check_model, forward, run_head
from moe_search.training.lowering.frozen import as_written, frozen
from moe_search.training.lowering.losses import (
    IGNORED,
    Loss,
    NonFiniteLossError,
    at_least_single,
    each_loss,
    mean_and_error,
    sample_losses,
    sequence_losses,
)
from moe_search.training.lowering.process_group import ranks_of
from moe_search.training.lowering.tasks import Tasks
from moe_search.training.saved_state import require_keys
from moe_search.training.search.verification import Verification

Phase: TypeAlias = Literal["assignment", "competition"]

STATE = ("step", "check", "other", "other_optimizer")


@dataclass(frozen=True)
class SpecializationStep:
    """What one step of `ExpertSpecialization` did.

    Parameters
    ----------
    phase : {"assignment", "competition"}
        How the expert of a row was decided.
    loads : tuple of float
        The rows that every expert was given, in multiples of the mean load: by the assignment, or by the sum of the
        posterior probabilities of competition.
    agreement : float
        Share of the rows whose largest gate probability is that of the expert they were given.
    loss, mixture_loss : float
        The mean loss of the rows under the experts they were given, and that of the model as it is.

    Examples
    --------
    >>> import moe_search as ms
    >>> step = ms.SpecializationStep("competition", loads=(0.5, 1.5), agreement=0.75, loss=1.0, mixture_loss=1.2)
    >>> step.metrics()["specialization/load_max"]
    1.5
    """

    phase: Phase
    loads: tuple[float, ...]
    agreement: float
    loss: float
    mixture_loss: float

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a logger takes."""
        return {
            "specialization/load_max": max(self.loads),
            "specialization/agreement": self.agreement,
            "specialization/loss": self.loss,
            "specialization/mixture_loss": self.mixture_loss,
        }


@dataclass(frozen=True)
class SpecializationCheck:
    """A comparison of the run with specialization and the same steps without, on samples held out.

    Parameters
    ----------
    verification : Verification
        The loss without minus the loss with: the gain of specialization, and its paired standard error.
    kept : bool
        Whether training goes on with what specialization made of the model.
    seconds : float
        What the steps without it and the comparison took.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> optimizer = torch.optim.Adam(moe.parameters())
    >>> specialization = ms.ExpertSpecialization(
    ...     moe, moe, loss=torch.nn.functional.mse_loss, optimizer=optimizer, until=1, assigned=0, check_after=0,
    ...     held_out=[(torch.randn(32, 8), torch.randn(32, 3))],
    ... )
    >>> specialization.loss(torch.randn(32, 8), torch.randn(32, 3)).backward()
    >>> optimizer.step()
    >>> specialization.step().verification.num_samples
    32
    """

    verification: Verification
    kept: bool
    seconds: float

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a logger takes."""
        return {"specialization/gain": self.verification.gain, "specialization/kept": float(self.kept)}


class ExpertSpecialization:
    """Decide which expert every sample trains in the first steps, by the loss that it has under each of them.

    Fresh experts are all alike, and a gate with one expert a sample learns from no other than the one it chose. Up to
    step `until`, experts compete, which is the likelihood of their mixture; in the first `assigned` of these steps, if
    any, the samples of a batch are assigned to experts instead, such that the sum of ``loss[b, e] - log g[b, e]`` is
    least and no expert has more than `load_limit` times its equal share:

    ===========  ==========================================================
    assignment   ``mean_b (loss[b, e_b] - log g[b, e_b])``, e_b as assigned
    competition  ``mean_b (-log sum_e g[b, e] exp(-loss[b, e]))``
    ===========  ==========================================================

    with g the probabilities of the gate over experts, before any is left out. After that, `loss` is the loss of the
    model as it is, and costs nothing else. It pays where samples are of groups with answers of their own. Where they
    are not, it gains nothing and assignment harms, so that mostly one need not use it; a check on samples held out
    tells.

    Parameters
    ----------
    model : Module
        The model that is trained, called as ``model(inputs)``, or ``model(inputs, ids=ids)`` where ids are given; it
        may be in a `DistributedDataParallel`.
    moe : MixtureOfExperts
        The layer, with a gate that has parameters. Its rows are samples or, where it takes [B, T, features] and the
        model returns an output for each, tokens: then all tokens of a sequence are tried under the same expert.
    loss : callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the rows. Rows of padding and rows whose
        target is the integer -100 count nowhere.
    until : int, default 300
        The last step with specialization.
    assigned : int, default 0
        Steps with assignment before those with competition: `until` for assignment alone.
    load_limit : float, optional
        The most rows that an expert is assigned, in multiples of its equal share, at least 1; by default 1, and None
        for no limit.
    optimizer : Optimizer, optional
        That of the loop, which `held_out` needs.
    held_out : iterable of (inputs, targets) or (inputs, targets, ids)
        Batches that are not trained on, for a check: from the same first weights, the same batches also train a copy of
        weights and optimizer without specialization, up to `check_after` steps beyond `until`. Then the losses of both
        on these batches are compared. Where the gain of specialization does not exceed `confidence` standard errors,
        training goes on with the copy, as if there had been no specialization. Without them there is no check.
    check_after : int, default 100
        Steps from `until` to the check, in which both are trained alike. In its first steps specialization raises the
        loss also where it pays in the end: an early check would always refuse it.
    confidence : float, default 1.0
        See `held_out`; at least 0.
    process_group : ProcessGroup, optional
        The ranks that train the model together, the default one if `torch.distributed` is initialized. Each assigns the
        rows of its own batch; checks are of the samples of all.

    Attributes
    ----------
    last : SpecializationStep or None
        What the last step did.
    check : SpecializationCheck or None
        What the check found; None before.

    Notes
    -----
    A step runs all experts on all rows and what is behind the layer n times, on one batch of n copies of each sample:
    what is before the layer runs n + 1 times. Nothing is drawn: the same batches and weights give the same steps.

    The check takes the memory of a second set of weights and optimizer states, and the time of as many plain steps,
    which `step` makes: it swaps the weights of the model, and the states of the optimizer, for those of the copy, takes
    its step and swaps them back. The steps of the copy minimize the loss and the penalty of the gate alone, whatever
    else the loop adds or does to gradients, with the learning rate and under the autocast of the call of `loss` (not in
    float16, which takes a scaler). Call `step` when the optimizer's step is done: it leaves no gradients. A model that
    is compiled runs uncompiled in the steps with specialization.

    References
    ----------
    Jacobs, Jordan, Nowlan and Hinton (1991), Adaptive mixtures of local experts, for competition; Lewis et al. (2021),
    BASE layers, for balanced assignment, there by the score of the gate alone.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> optimizer = torch.optim.Adam(moe.parameters())
    >>> specialization = ms.ExpertSpecialization(moe, moe, loss=torch.nn.functional.mse_loss, until=3, assigned=2)
    >>> for x, y in zip(torch.randn(4, 32, 8), torch.randn(4, 32, 3)):
    ...     loss = specialization.loss(x, y)  # in place of that of the model
    ...     loss.backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     specialization.step()
    ...     print(specialization.phase)
    assignment
    competition
    None
    None
    """

    def __init__(
        self,
        model: nn.Module,
        moe: MixtureOfExperts,
        *,
        loss: Loss,
        until: int = 300,
        assigned: int = 0,
        load_limit: float | None = 1.0,
        optimizer: torch.optim.Optimizer | None = None,
        held_out: Iterable[Sequence[Any]] = (),
        check_after: int = 100,
        confidence: float = 1.0,
        process_group: Any = None,
    ) -> None:
        if not isinstance(moe, MixtureOfExperts):
            raise TypeError(f"moe must be a MixtureOfExperts, got {type(moe).__name__}")
        check_model(model, moe)
        if not any(parameter.requires_grad for parameter in moe.gate.parameters()):
            raise ValueError(
                f"the gate of moe must have parameters to train, got a {type(moe.gate).__name__} with none"
            )
        self._tasks = Tasks.of(moe, loss)
        self._until = require_integer("until", until)
        self._assigned = require_integer("assigned", assigned, 0)
        if self._assigned > self._until:
            raise ValueError(f"assigned must be at most until, {until}, got {assigned}")
        self._load_limit = math.inf if load_limit is None else require_number("load_limit", load_limit, 1.0)
        self._held_out = [Batch(*batch) for batch in held_out]
        if self._held_out and optimizer is None:
            raise ValueError("optimizer must be given for held_out, got None")
        self._optimizer = optimizer
        self._check_at = self._until + require_integer("check_after", check_after, 0)
        self._confidence = require_number("confidence", confidence)
        self._model = model
        self._moe = moe
        self._loss = loss
        self._ranks = ranks_of(process_group, self._tasks.device)
        self._step = 0
        self._tried = False
        self._batches: list[Batch] = []
        # What the loop had set at the last batch: the steps of the run without specialization take it over.
        self._device, self._autocast = self._tasks.device(), Autocast.here(self._tasks.device())
        self._settings: list[dict[str, Any]] = []
        self._seconds = 0.0
        # Weights and states of the run without specialization, while there are two.
        self._other: list[Tensor] | None = None
        self._other_optimizer: defaultdict[Tensor, Any] = defaultdict(dict)
        self.last: SpecializationStep | None = None
        self.check: SpecializationCheck | None = None

    @property
    def phase(self) -> Phase | None:
        """What the next step does; None once specialization has ended."""
        if self._step >= self._until:
            return None
        return "assignment" if self._step < self._assigned else "competition"

    def loss(self, inputs: Tensor, targets: Tensor, ids: Tensor | None = None, **keywords: Tensor) -> Tensor:
        """Return what to minimize in this step, with the penalty of the gate, `MixtureOfExperts.regularization`.

        Parameters
        ----------
        inputs, targets, ids
            The batch, as model and loss take it.
        **keywords : Tensor
            What else the model takes, such as a mask.

        Raises
        ------
        ValueError
            If the loss is not the mean over the rows, or outputs or targets have no entry for each row of the layer.
        """
        batch = Batch(inputs, targets, ids, keywords=keywords or None)
        phase = self.phase
        if self._held_out and self.check is None and self._model.training:
            assert self._optimizer is not None
            self._device, self._autocast = inputs.device, Autocast.here(inputs.device)
            # A schedule may step before `step` is called.
            self._settings = [copy.deepcopy(_settings_of(group)) for group in self._optimizer.param_groups]
            self._batches.append(batch.detach())
            if self._step == 0 and self._other is None:
                # What is wrong with the samples held out is known before they are needed.
                self._held_out_losses()
                self._begin_other()
        if phase is None or not self._model.training:
            return self._plain(batch)
        losses, log_gate, mixture_loss = self._under_all_experts(batch)
        penalty = self._moe.regularization()
        if phase == "assignment":
            experts = self._assignment(losses, log_gate)
            given = torch.nn.functional.one_hot(experts, losses.shape[1]).to(losses.dtype)
            total = (given * (losses - log_gate)).sum(1).mean()
        else:
            joint = log_gate - losses
            given = joint.detach().softmax(1)
            total = -joint.logsumexp(1).mean()
        self._note(phase, given, losses.detach(), log_gate.detach(), mixture_loss)
        return total + penalty

    def step(self) -> SpecializationCheck | None:
        """Count a step of the optimizer, and return the check if that was made."""
        if self._step >= self._check_at:
            return None
        self._step += 1
        batches, self._batches = self._batches, []
        if self._other is None:
            return None
        began = time.perf_counter()
        self._train_other(batches)
        if self._step == self._check_at:
            verification, kept = self._compare()
            self._seconds += time.perf_counter() - began
            self.check = SpecializationCheck(verification, kept, self._seconds)
            return self.check
        self._seconds += time.perf_counter() - began
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on as if it had not stopped."""
        other, states = None, None
        if self._other is not None:
            other = [tensor.clone() for tensor in self._other]
            states = [copy.deepcopy(self._other_optimizer.get(parameter, {})) for parameter in self._parameters()]
        return {
            "step": self._step,
            "check": None if self.check is None else asdict(self.check),
            "other": other,
            "other_optimizer": states,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was saved."""
        require_keys("state", state, STATE)
        with_check = state["other"] is not None
        if with_check != bool(self._held_out) and (with_check or (state["step"] > 0 and state["check"] is None)):
            given, saved = ("with" if each else "without" for each in (self._held_out, with_check))
            raise ValueError(f"state must be that of a run {given} samples held out, got one {saved}")
        if with_check and [each.shape for each in state["other"]] != [each.shape for each in self._tensors()]:
            raise ValueError("state must be that of a model of the same shapes, got one of others")
        self._step, self._batches = state["step"], []
        check = state["check"]
        if check is not None:
            check = SpecializationCheck(**{**check, "verification": Verification(**check["verification"])})
        self.check = check
        self._other, self._other_optimizer = None, defaultdict(dict)
        if state["other"] is not None:
            self._other = [
                saved.to(here, copy=True) for saved, here in zip(state["other"], self._tensors(), strict=True)
            ]
            self._other_optimizer = self._states_taken_up(state["other_optimizer"])

    def _plain(self, batch: Batch) -> Tensor:
        return self._loss(forward(self._model, batch), batch.targets) + self._moe.regularization()

    def _under_all_experts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses of all rows under all experts and the log of their probabilities, [R, n], and the loss."""
        seen: list[tuple[Tensor, SlotWeights, Autocast]] = []

        def listen(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mixture: Tensor) -> None:
            inputs = inspect.signature(self._moe.forward).bind(*args, **kwargs).arguments["inputs"]
            assert self._moe.routing is not None
            # A model may enter autocast on its way to the layer.
            seen.append((inputs, self._moe.routing, Autocast.here(inputs.device)))

        hook = self._moe.register_forward_hook(listen, with_kwargs=True)
        try:
            with as_written():
                outputs = forward(self._model, batch)
        finally:
            hook.remove()
        if len(seen) != 1:
            raise ValueError(f"moe must run exactly once in a forward of model, it was seen {len(seen)} times")
        inputs, routing, autocast = seen[0]
        leading = inputs.shape[:-1]
        for what, tensor in (("outputs", outputs), ("targets", batch.targets)):
            if tensor.shape[: len(leading)] != leading:
                raise ValueError(
                    f"{what} must have an entry for each row of moe, shape {tuple(leading)}, "
                    f"got shape {tuple(tensor.shape)}"
                )
        axes = len(leading)
        rows = rows_of(inputs, routing.mask)
        with autocast.again():
            of_experts = self._moe.expert_outputs(rows)
            shared = self._moe.shared_outputs(rows)
        if shared is not None:
            of_experts = of_experts + shared.unsqueeze(1)
        n = of_experts.shape[1]
        mixtures = like_rows(of_experts, inputs, routing.mask).movedim(axes, 1).flatten(0, 1)
        with as_written():
            answers = run_head(self._model, self._tasks, batch.repeat(n), mixtures)
        answers = answers.unflatten(0, (len(batch), n)).movedim(1, axes).flatten(0, axes - 1)  # type: ignore[no-untyped-call]
        targets = batch.targets.flatten(0, axes - 1)
        log_gate = _log_probabilities(routing, self._moe)
        counted = torch.ones(len(targets), dtype=torch.bool, device=targets.device)
        if routing.mask is not None:
            counted &= routing.mask
        if targets.ndim == 1 and not targets.is_floating_point():
            counted &= targets != IGNORED
        if not bool(counted.all()):
            answers, targets, log_gate = answers[counted], targets[counted], log_gate[counted]
            outputs = outputs.flatten(0, axes - 1)[counted]
        else:
            outputs = outputs.flatten(0, axes - 1)
        if not self._tried and len(targets):
            sample_losses(self._loss, outputs, targets)
            self._tried = True
        losses = each_loss(self._loss, at_least_single(answers).flatten(0, 1), targets.repeat_interleave(n, 0))
        return losses.unflatten(0, (-1, n)), log_gate, self._loss(outputs.detach(), targets)  # type: ignore[no-untyped-call]

    def _assignment(self, losses: Tensor, log_gate: Tensor) -> Tensor:
        """Return the expert of every row, the sum of ``losses - log_gate`` being least within the load limit."""
        cost = (losses - log_gate).detach()
        rows, n = cost.shape
        if rows == 0 or self._load_limit >= n:
            return cost.argmin(1)
        capacity = math.ceil(self._load_limit * rows / n - 1e-9)
        problem = BalancedRouting(cost.double().cpu().numpy(), capacity=max(capacity, -(-rows // n)))
        result = Transport().solve(problem, MaxRuntime(math.inf))
        if result.status == "interrupted":
            raise KeyboardInterrupt
        return torch.from_numpy(np.asarray(result.solution)[:, 0].copy()).to(cost.device)

    def _note(self, phase: Phase, given: Tensor, losses: Tensor, log_gate: Tensor, mixture_loss: Tensor) -> None:
        rows, n = given.shape
        agreement = (given.argmax(1) == log_gate.argmax(1)).double().mean()
        self.last = SpecializationStep(
            phase,
            tuple((given.sum(0).double() * n / max(rows, 1)).tolist()),
            float(agreement),
            float((given * losses).sum(1).mean()),
            float(mixture_loss),
        )

    def _parameters(self) -> list[Tensor]:
        assert self._optimizer is not None
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _states_taken_up(self, states: Sequence[Any]) -> defaultdict[Tensor, Any]:
        """Return the states of all parameters as the optimizer has its own, on the devices of these."""
        assert self._optimizer is not None
        own, groups = self._optimizer.state, self._optimizer.state_dict()["param_groups"]
        try:
            self._optimizer.load_state_dict({"state": dict(enumerate(copy.deepcopy(states))), "param_groups": groups})
            return self._optimizer.state
        finally:
            self._optimizer.state = own

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    def _begin_other(self) -> None:
        assert self._optimizer is not None
        self._other = [tensor.data.clone() for tensor in self._tensors()]
        self._other_optimizer = defaultdict(dict)
        for parameter, state in self._optimizer.state.items():
            self._other_optimizer[parameter] = copy.deepcopy(state)

    def _swap(self) -> None:
        """Give the model and the optimizer what the other run has, and the other way round."""
        assert self._optimizer is not None
        assert self._other is not None
        for i, tensor in enumerate(self._tensors()):
            tensor.data, self._other[i] = self._other[i], tensor.data
        self._optimizer.state, self._other_optimizer = self._other_optimizer, self._optimizer.state

    def _train_other(self, batches: list[Batch]) -> None:
        """Take a step of the run without specialization."""
        assert self._optimizer is not None
        devices = {tensor.device for tensor in self._model.parameters() if tensor.device.type != "cpu"}
        kind = next((device.type for device in devices), "cuda")
        routing, autocast = self._moe.routing, self._autocast
        if autocast.dtype == torch.float16:
            # Gradients of half precision vanish without the scaler of the loop.
            autocast = replace(autocast, enabled=False)
        groups = self._optimizer.param_groups
        settings = [_settings_of(group) for group in groups]
        for group, then in zip(groups, self._settings, strict=False):
            group.update(then)
        self._swap()
        with torch.random.fork_rng([device.index or 0 for device in devices], device_type=kind):
            self._optimizer.zero_grad()
            for batch in batches:
                with autocast.again():
                    loss = self._plain(batch)
                torch.autograd.backward(loss / len(batches))
            if self._ranks.group is not None:
                self._average_gradients()
            self._optimizer.step()
            self._optimizer.zero_grad()
        self._swap()
        for group, now in zip(groups, settings, strict=True):
            group.update(now)
        self._moe.routing = routing

    def _average_gradients(self) -> None:
        # What a wrapper of the model has done already is done again for nothing; Lightning's is not called here.
        size = torch.distributed.get_world_size(self._ranks.group)
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad, group=self._ranks.group)
                parameter.grad /= size

    def _compare(self) -> tuple[Verification, bool]:
        """Compare both runs, stay with the better one, and return whether that is the one with specialization."""
        with_it, counts = self._held_out_losses()
        self._swap()
        without, _ = self._held_out_losses()
        of_ranks = self._ranks.collect((with_it, without, counts))
        with_it, without, counts = (np.concatenate(each) for each in zip(*of_ranks, strict=True))
        if np.isfinite(with_it).all() and np.isfinite(without).all():
            verification = Verification(*mean_and_error(without - with_it, counts))
        else:
            # A run that diverged is the worse one, and ends no training.
            gain = math.inf if np.isfinite(with_it).all() else -math.inf
            verification = Verification(gain, 0.0, len(counts))
        kept = verification.confirmed(self._confidence)
        if kept:
            self._swap()
        self._other, self._other_optimizer = None, defaultdict(dict)
        return verification, kept

    def _held_out_losses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the loss of every sample held out, NaN for those of a batch with one, and what it counts."""
        of_batches = []
        with frozen(self._model), self._autocast.again():
            for batch in self._held_out:
                given = batch.to(self._device)
                try:
                    of_batches.append(sequence_losses(self._loss, forward(self._model, given), given.targets))
                except NonFiniteLossError:
                    of_batches.append((np.full(len(batch), np.nan), np.ones(len(batch))))
        losses, counts = (np.concatenate(each) for each in zip(*of_batches, strict=True))
        return losses, counts


def _settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an optimizer has set for a group of parameters, such as the learning rate."""
    return {name: value for name, value in group.items() if name != "params"}


def _log_probabilities(routing: SlotWeights, moe: MixtureOfExperts) -> Tensor:
    """Return the log of the probabilities that a gate gives to experts, shape [R, n], before any is left out."""
    probabilities = routing.weights
    # Gates with a distribution of their own make their weights of it, the others leave out slots of a softmax.
    if routing.logits is not None and routing.probabilities is None:
        probabilities = at_least_single(routing.logits).flatten(1).softmax(1).view_as(routing.logits)
    of_experts = moe.gate.expert_map(probabilities)
    return of_experts.clamp(min=torch.finfo(of_experts.dtype).tiny).log()
