"""Permutation search in the middle of training: every so many steps, find a better expert map."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields, replace
from itertools import chain, islice
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moe_search.checks import require_choice, require_integer, require_number
from moe_search.gates.gate import Gate
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.layers.multi_gate_mixture_of_experts import MultiGateMixtureOfExperts
from moe_search.solvers.engine.result import Result
from moe_search.solvers.engine.solver import Solver
from moe_search.solvers.engine.stop import MaxRuntime, StoppingCriterion, require_criterion
from moe_search.training.lowering.batch import Batch, concatenate
from moe_search.training.lowering.forward_pass import check_model
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.losses import NonFiniteLossError, RecognizedLoss
from moe_search.training.lowering.lowering import (
    CHUNK_SIZE,
    Lowering,
    ProblemKind,
    TooManySlotsError,
    lower_batches,
)
from moe_search.training.lowering.process_group import ranks_of
from moe_search.training.lowering.tasks import Layer, TaskLoss, Tasks
from moe_search.training.lowering.token_layers import LayerMap, TokenLayer, lay_out, token_layer
from moe_search.training.lowering.token_lowering import CURVATURES, MAX_ROWS, rows_are_tokens
from moe_search.training.saved_state import require_keys
from moe_search.training.search.candidate_map import (
    CandidateMap,
    Outcome,
    SearchRecord,
    Underway,
    at_once,
    enough_to_tell_the_dead,
    experts_without_a_sample,
    find_candidate,
    on_thread,
)
from moe_search.training.search.load_limit import LoadLimit, require_load_limit
from moe_search.training.search.search_summary import FRUITLESS, SearchSummary, Settings, fruitless_for_the_first_time
from moe_search.training.search.token_search import TokenSearch
from moe_search.training.search.verification import Verification, verify

OnSearch: TypeAlias = Callable[[SearchRecord, Lowering, Result], None]

Samples: TypeAlias = Batch | Sequence[Any]
"""A batch: (inputs, targets) and, if need be, ids, groups and a dict of keywords, each of which may be None."""

SHARE = 0.07
"""What a search may take of the time since the last one, by default; verification comes on top."""

LEAST_SECONDS, MOST_SECONDS = 0.001, 0.05
"""What the solver gets at least and at most, by default."""

TRIED = 64
"""The most samples of the first batch that model and loss are tried on."""

OnError: TypeAlias = Literal["raise", "warn"]

logger = logging.getLogger("moe_search")

STATE = (
    "step",
    "searches",
    "seed",
    "seconds",
    "history",
    "retained",
    "put_off",
    "recognized",
    "underway",
    "map",
    "orders",
)


class PermutationSearch:
    """Search the expert map of a mixture layer while its model is trained.

    Call `step` after every optimizer step. Every ``period`` steps, up to step ``until``, it lowers the layer to a
    search problem on the last batches before the present one, solves it, and verifies the map it found on the present
    batch by true forwards: the map is committed to the gate if the mean loss decreases by more than `confidence` times
    the standard error of that decrease, and refused otherwise. Only the map ever changes: experts, gate and optimizer
    stay as they are. The map is no parameter: a gate whose parameters are frozen is searched all the same.

    `search_batches` does the same at once on batches of one's own, such as a whole data set: a table of many slots, one
    for every user or word, needs more samples than some batches hold.

    Parameters
    ----------
    model : Module
        The model that is trained, called as ``model(inputs)``, or ``model(inputs, ids=ids)`` where ids are given. It
        returns a tensor, or what has one by the key ``logits``, as models of Transformers do. It
        may be in a `DistributedDataParallel`; a compiled one is searched without its compiled code.
    moe : MixtureOfExperts or MultiGateMixtureOfExperts, or sequence of MixtureOfExperts
        The layer to search, a submodule of `model` or `model` itself. One of several gates must share their map, which
        is then searched for the summed loss of all tasks; else search ``moe.task(t)``. Several layers are searched one
        after the other, as is one whose rows are tokens of the samples: see the notes.
    loss : callable, or sequence of callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples. Any for gates with one or two
        slots a sample; squared error, binary cross-entropy or cross-entropy for the others. With several gates, where
        outputs and targets have shape [B, tasks, ...], the loss of a task, one for all or one for each (see `lower`).
    period : int, default 100
        Steps from one search to the next.
    until : int, default 1000
        Last step at which a search may begin, at least `period`. Afterwards `step` only counts.
    batches : int, default 1
        Number of batches to search on: references to them are kept, from the steps just before a search, so they must
        not be overwritten in place.
    solver : Solver, optional
        By default `Hungarian` for a linear problem without a load limit, which it solves to optimality, and
        ``LocalSearch(neighborhood="swap", restarts=True)`` from the present map for the others.
    stop : StoppingCriterion, optional
        When the solver stops. By default such that lowering and solving take at most 7 % of the time since the last
        search, but never before 1 ms or after 50 ms of solving. A run that must be repeatable needs `MaxIterations`.
    seed : int, default 0
        The i-th search draws its own seed from (seed, i).
    on_search : callable, optional
        Called as ``on_search(record, lowering, result)`` after every search that a solver ran in, once its map is
        decided: on the first rank of a process group only, and not for a map found before the state was saved.
    problem : {"auto", "linear", "mixture", "pairwise"}
        The class of the problem, as in `lower`.
    max_samples : int, optional
        The most samples that a step searches on, the last of those kept. In a process group, those of every rank.
    max_rows : int, default 4096
        Of layers whose rows are tokens, the most tokens that a problem holds, as in `lower_tokens`.
    chunk_size : int, default 1024
        The most samples that go through the model at once, as in `lower`; tokens, where these are the rows.
    asynchronous : bool, default False
        Whether the solver runs on a thread while training goes on. Its map is verified on the batch of a later step,
        the first after the solver ended, and committed only if it is an improvement there. One search is under way at a
        time: where the next one is due, training waits for the last. Which map is found depends on the seed as ever;
        at which step it is committed depends on the clock, unless `finish` is called. Not for rows that are tokens.
    process_group : ProcessGroup, optional
        The processes that train the model together, by default all of `torch.distributed` where that is initialized.
        They call `step` together, each with its part of the batch. The problem is that of the samples of all ranks
        (costs are summed, the arrays of a mixture gathered on the first rank), solved on the first rank, verified on
        the samples of all, and its map the same on all. What fails on one rank is raised on all.
    load_limit : float or sequence of n floats, optional
        The most that an expert may bear, in multiples of the mean load: one number for all, at least 1, or one for
        each, at least 1 in the mean. Its load is the number of samples searched on with weight on one of its slots
        (once for each such slot, and task). No map that breaks the limit is committed, however good. While the present
        map breaks it there, the best map found that keeps it is taken whether it lowers the loss or not, and recorded
        as ``"enforced"`` where no gain is confirmed. Where no map can keep it, because few slots have most of the
        samples, the limit of this search is raised to the lowest, or limits of their own to the lowest multiple, that a
        map was found for; the record says to what.
    confidence : float, default 1.0
        How many of its standard errors the decrease of the mean loss on the second batch must exceed, at least 0. On
        random labels, where no map is better than another, 15 to 16 % of the maps found were committed at 1.0 and 2 %
        at 2.0 (4000 searches), as of normal deviates. Of layers whose rows are tokens, where the best of several maps
        is verified, it must exceed more, such that chance does so as rarely (Sidak's correction): 1.8 and 2.6. The more
        it is, the larger a batch must be to confirm a gain.
    on_error : {"raise", "warn"}
        Whether what is wrong with model and loss, which the first step tells, and what the solver raises end the run by
        an error, or are only warned of. What is wrong with a batch never ends it: such a search is recorded as
        ``"skipped"``, with one warning a run.

    Notes
    -----
    Where a layer sees the tokens of a sequence and the loss couples them, as in a transformer, no slot of a sample has
    a loss of its own. One forward and one backward of the batch then tell the derivative of the loss by the outputs of
    all layers (see `lower_tokens`). For one layer after the other, a map is proposed by the first-order problem, solved
    to optimality, and, where it is refused, maps by quadratic ones of several curvatures; they are tried by true
    forwards of the present batch, and the best is committed, if its gain exceeds `confidence` standard errors, which
    are those of sequences, never of tokens. Each layer has a record of its own. Samples count in the mean loss by their
    targets that are not -100 where these are integers for every token.

    Attributes
    ----------
    history : list of SearchRecord
        One record for every search, and layer, whose map is decided.
    seconds : float
        Time that training waited for searches, verification included.

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
    >>> for x, y in zip(inputs.split(32), targets.split(32)):
    ...     _ = search.step(x, y)  # after the optimizer's step
    >>> search.history[0].outcome, search.history[0].problem
    ('committed', 'LinearAssignment')
    """

    def __init__(
        self,
        model: nn.Module,
        moe: Layer | Sequence[Any] | nn.ModuleList,
        *,
        loss: TaskLoss,
        period: int = 100,
        until: int = 1000,
        batches: int = 1,
        solver: Solver | None = None,
        stop: StoppingCriterion | None = None,
        seed: int = 0,
        on_search: OnSearch | None = None,
        problem: ProblemKind = "auto",
        max_samples: int | None = None,
        max_rows: int = MAX_ROWS,
        chunk_size: int = CHUNK_SIZE,
        asynchronous: bool = False,
        process_group: Any = None,
        load_limit: LoadLimit | None = None,
        confidence: float = 1.0,
        on_error: OnError = "raise",
    ) -> None:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        tasks, layers = _searched(model, moe, loss)
        self._period = require_integer("period", period)
        self._until = require_integer("until", until)
        self._batches = require_integer("batches", batches)
        self._chunk_size = require_integer("chunk_size", chunk_size)
        self._max_samples = None if max_samples is None else require_integer("max_samples", max_samples)
        if until < period:
            raise ValueError(f"until must be at least period, or no search begins, got until={until}, period={period}")
        if solver is not None and not callable(getattr(solver, "solve", None)):
            raise TypeError(f"solver must have a method solve, got {type(solver).__name__}")
        if stop is not None:
            require_criterion(stop)
        self._seed = require_integer("seed", seed, 0)
        if on_search is not None and not callable(on_search):
            raise TypeError(f"on_search must be a callable (record, lowering, result), got {type(on_search).__name__}")
        require_choice("problem", problem, get_args(ProblemKind))
        self._maps = [layer.expert_map for layer in layers] if tasks is None else [tasks.expert_map]
        if load_limit is not None:
            for expert_map in self._maps:
                require_load_limit(load_limit, expert_map.num_experts)
        self._max_rows = require_integer("max_rows", max_rows)
        self._model = model
        self._tasks = tasks
        self._layers = layers
        self._loss = loss
        self._solver = solver
        self._stop = stop
        self._on_search = on_search
        self._problem: ProblemKind = problem
        self._asynchronous = bool(asynchronous)
        self._load_limit: LoadLimit | None = tuple(load_limit) if isinstance(load_limit, Sequence) else load_limit
        self._confidence = require_number("confidence", confidence)
        require_choice("on_error", on_error, get_args(OnError))
        self._on_error = on_error
        self._tried = False
        self._ranks = ranks_of(process_group, self._device)
        # Whether the rows of a single layer are tokens is known from the first batch.
        self._tokens = self._token_search() if tasks is None else None
        self._step = 0
        self._searches = 0
        self._retained: list[Batch] = []
        self._put_off = False
        self._recognized: tuple[RecognizedLoss, ...] | None = None
        self._underway: Underway | None = None
        self._last_search: float | None = None
        self.history: list[SearchRecord] = []
        self.seconds = 0.0

    def step(
        self, inputs: Tensor, targets: Tensor, ids: Tensor | None = None, **keywords: Tensor
    ) -> SearchRecord | None:
        """Count a training step, and search if one is due.

        The first call lowers some samples of its batch, so that what no search of this model and loss can get around
        is known before hours have passed. A search that is due on too few samples (of less than 2 to verify on, or 3 if
        no earlier batch was kept, as with ``period=1``: the first half is then searched and the second verifies) is
        recorded as skipped and put off to the next batch of enough. One that is due on samples of another shape than
        those kept is skipped.

        Parameters
        ----------
        inputs, targets : Tensor
            The batch of this step, shape [B, ...]; in a process group, this rank's part of it.
        ids : Tensor, optional
            Shape [B], for gates that route by id.
        **keywords : Tensor
            What else the model takes, such as ``attention_mask``; shape [B, ...] each.

        Returns
        -------
        SearchRecord or None
            What the search did whose map was decided at this step; None if there was none.

        Raises
        ------
        Exception
            At the first step, whatever `lower` raises, unless it is for a loss that is not finite, or for too many
            slots a sample where the gate comes down to fewer. Later, whatever the solver raises. With
            ``on_error="warn"`` neither. The map is then as it was.
        """
        step = self._step + 1
        if step > self._until and self._underway is None:
            self._step = step
            return None
        if self._last_search is None:
            self._last_search = time.perf_counter()
        due = step <= self._until and (self._put_off or step % self._period == 0)
        if due or not self._tried or self._underway is not None:
            batch = self._ranks.agree(lambda: self._fitting(Batch(inputs, targets, ids, None, keywords)))
        else:
            batch = self._fitting(Batch(inputs, targets, ids, None, keywords))
        if not self._tried:
            self._try(batch)

        self._step = step
        record = None
        if (underway := self._underway) is not None:
            if len(batch) > 1:
                underway.batch = batch
            if due or self._ranks.from_first(lambda: underway.done):
                record = self.finish()
        if due:
            record = self._search(batch) or record
        self._retain(batch)
        return record

    def finish(self) -> SearchRecord | None:
        """Wait for the search under way, if there is one, and decide on its map by the batch of the last step.

        In a process group, all ranks call it together.

        Returns
        -------
        SearchRecord or None
            What the search did; None if none was under way.

        Raises
        ------
        Exception
            What the solver raised on its thread, unless ``on_error="warn"``. The map is then as it was.
        """
        underway, self._underway = self._underway, None
        if underway is None:
            return None
        searched = SearchRecord(
            step=underway.step, outcome="failed", num_samples=underway.num_samples, seconds=underway.seconds
        )
        return self._decide(underway.found, [underway.batch], searched, in_step=True)

    def search_batches(self, batches: Iterable[Samples], *, verify: Iterable[Samples]) -> SearchRecord:
        """Search on all of some batches now, such as those of a whole data set, whatever step it is.

        Batches are looked at one after another, and the costs of a problem that is linear or pairwise are added up:
        memory is bounded by a batch, with a weight of every slot for every sample of it, and the costs, however many
        batches there are. A mixture holds arrays of all samples, see `lower`. The first batch decides the class of the
        problem, which all others must fit.

        Batches are drawn with the model in eval mode and gradients off, so that an iterable may compute them by parts
        of the model as it goes. The search is recorded as one of the present step. One that is under way on a thread
        is decided first; this one waits for its solver.

        Parameters
        ----------
        batches : iterable of (inputs, targets), up to (inputs, targets, ids, groups, keywords)
            What to search on: a `DataLoader`, say, or a generator. Tensors are as in `step`, keywords a dict; all but
            inputs and targets may be left out or None. In a
            process group, all ranks call this together, each with its own batches, as many as it has.
        verify : iterable of the same
            Other samples, which decide as the batch of a step does. With ``groups``, integers of shape [B], samples of
            the same number in any of these batches are of one user or one sequence, and depend on each other: their
            gains are added up, and the standard error is that of groups. In `batches` they mean nothing.

        Notes
        -----
        By default the solver has 50 ms, or 7 % of what lowering took if that is more. It takes two samples, or groups,
        to verify.

        Examples
        --------
        A table from 40 users to 4 experts, each of which holds ten of them:

        >>> import torch
        >>> import moe_search as ms
        >>> _ = torch.manual_seed(0)
        >>> gate = ms.HashRouting(num_experts=4, num_slots=40, table=range(40))
        >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, in_features=8, out_features=1), gate)
        >>> users, inputs = torch.arange(40).repeat(30), torch.randn(1200, 8)
        >>> with torch.no_grad():
        ...     targets = moe.eval()(inputs, users)  # under the map that the search is to find again
        >>> gate.expert_map.scramble(torch.Generator().manual_seed(0))
        >>> samples = torch.utils.data.TensorDataset(inputs, targets, users, users)  # users as ids and as groups
        >>> first, second = torch.utils.data.random_split(samples, [800, 400])
        >>> search = ms.PermutationSearch(moe, moe, loss=torch.nn.MSELoss())
        >>> record = search.search_batches(
        ...     torch.utils.data.DataLoader(first, batch_size=100),
        ...     verify=torch.utils.data.DataLoader(second, batch_size=100),
        ... )
        >>> record.outcome, record.problem, record.num_samples
        ('committed', 'LinearAssignment', 800)
        """
        self.finish()
        start, searched = time.perf_counter(), self._given(batches)
        with frozen(self._model):
            first = self._ranks.agree(lambda: list(islice(searched, 1)))
        self._look_at_rows(first)
        record = self._search_on(chain(first, searched), self._given(verify), start, in_step=False)
        assert record is not None
        return record

    def summary(self) -> SearchSummary:
        """Return what came of all searches so far, and what to try where few maps are committed; print it.

        The logger ``moe_search`` has this as a warning, once a run: when ten searches in a row are refused, or none of
        the first ten changes the map.

        Examples
        --------
        Experts that are copies of one another:

        >>> import torch
        >>> import moe_search as ms
        >>> _ = torch.manual_seed(0)
        >>> one = torch.nn.Linear(4, 1)
        >>> moe = ms.MixtureOfExperts([one, one, one], ms.TopK(in_features=4, num_experts=3, k=1))
        >>> search = ms.PermutationSearch(moe, moe, loss=torch.nn.MSELoss(), period=2)
        >>> for _ in range(2):
        ...     record = search.step(torch.randn(20, 4), torch.randn(20, 1))
        >>> summary = search.summary()
        >>> summary.searches, summary.found, summary.advice[0][:18]
        (1, 0, 'Experts are alike:')
        """
        settings = Settings(
            step=self._step,
            period=self._period,
            until=self._until,
            batches=self._batches,
            max_samples=self._max_samples,
            confidence=self._confidence,
            load_limit=self._load_limit,
            k=max((getattr(gate, "k", 0) for gate in self._gates()), default=0) or None,
        )
        return SearchSummary.of(self.history, self.seconds, settings)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on as if the run had never stopped: plain numbers, strings and tensors.

        ``torch.load(weights_only=True)`` reads them, and so does `load_state`. The expert map itself is in the state
        dict of the model; that of layers of Transformers, whose experts are there in its order, is in this one. So are
        the batches kept for the next search: a state saved just before one is as large as they are. In a process group
        they are those of this rank, and every rank saves its own.

        A search under way is waited for, but not decided on: the map found is in the state, and the next step decides,
        in this run as in one that loads the state. If the solver raised, it is the error that comes at the next step of
        this run; one that loads the state goes on without, and records the search as ``"failed"``.
        """
        known = self._recognized
        return {
            "step": self._step,
            "searches": self._searches,
            "seed": self._seed,
            "seconds": self.seconds,
            "history": [record.to_dict() for record in self.history],
            "retained": [dict(batch.named()) for batch in self._retained],
            "put_off": self._put_off,
            "recognized": None if known is None else [[one.name, one.scale, one.classes_first] for one in known],
            "underway": None if self._underway is None else self._underway.state_dict(),
            "map": self._map_sizes(),
            "orders": [layer.expert_map.experts[0].tolist() for layer in self._of_transformers()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state of `state_dict`, after that of the model.

        The experts of layers of Transformers are put where they lay, as the state of the optimizer has them.

        Raises
        ------
        ValueError, TypeError
            If the state is not one of a `PermutationSearch`, or of one whose expert map has other sizes. Nothing is
            taken up then.
        """
        require_keys("state", state, STATE)
        for name in STATE[:3]:
            require_integer(name, state[name], 0)
        if dict(state["map"]) != (sizes := self._map_sizes()):
            raise ValueError(
                f"state must be that of a search of {format_sizes(sizes)}, got {format_sizes(state['map'])}"
            )
        device = self._device()
        history = [SearchRecord.from_dict(values) for values in state["history"]]
        retained = [Batch.of(tensors).to(device) for tensors in state["retained"]]
        underway = None if state["underway"] is None else Underway.from_state_dict(state["underway"], device)
        recognized = None
        if state["recognized"] is not None:
            recognized = tuple(
                RecognizedLoss(name, scale, np.empty(0), classes_first)
                for name, scale, classes_first in state["recognized"]
            )
        self.seconds = float(state["seconds"])
        self._step, self._searches, self._seed = state["step"], state["searches"], state["seed"]
        self.history, self._retained, self._put_off = history, retained, bool(state["put_off"])
        self._recognized, self._underway = recognized, underway
        for layer, order in zip(self._of_transformers(), state["orders"], strict=True):
            lay_out(layer.module, order)

    def _of_transformers(self) -> list[TokenLayer]:
        """Return the layers whose experts a checkpoint of the model has in another order than that of their weights."""
        return [layer for layer in self._layers if isinstance(layer.expert_map, LayerMap)]

    def _map_sizes(self) -> dict[str, int]:
        expert_map = self._maps[0]
        rows = len(expert_map.experts)
        sizes = {"experts": expert_map.num_experts, "rows": rows, "slots of a row": expert_map.num_slots}
        if self._tasks is not None and self._tasks.count > 1:
            sizes |= {"tasks": self._tasks.count}
        return sizes if len(self._maps) == 1 else sizes | {"layers": len(self._maps)}

    def _device(self) -> torch.device:
        return self._maps[0].experts.device

    def _gates(self) -> list[Gate]:
        return [] if self._tasks is None else self._tasks.gates

    def _token_search(self) -> TokenSearch:
        """Return the search of layers whose rows are tokens."""
        if self._asynchronous:
            raise ValueError("asynchronous must be False for layers whose rows are tokens, got True")
        if not callable(self._loss):
            raise TypeError(f"loss must be a callable (outputs, targets) -> scalar, got {type(self._loss).__name__}")
        return TokenSearch(
            self._model,
            self._layers,
            self._loss,
            self._problem,
            self._solver,
            self._load_limit,
            self._confidence,
            self._max_rows,
            self._chunk_size,
            self._ranks,
        )

    def _look_at_rows(self, batches: Sequence[Batch]) -> None:
        """Find out by the first batch whether the rows of a single layer are samples or tokens."""
        if self._tasks is None or self._tokens is not None or not self._layers:
            return
        [layer] = self._layers
        here = self._ranks.agree(lambda: [rows_are_tokens(self._model, layer, batch.part(0, 2)) for batch in batches])
        if any(tokens for of_rank in self._ranks.collect(here) for tokens in of_rank):
            self._tokens = self._token_search()

    def _try(self, batch: Batch) -> None:
        """Find out by some samples what no search can get around; nothing of it is kept."""
        some = batch.part(0, min(len(batch), TRIED))
        if not any(self._ranks.collect(len(some))):
            return
        self._tried = True

        def lower_some() -> None:
            if not len(some):
                return
            try:
                if self._tokens is not None:
                    self._tokens.open([some])
                else:
                    assert self._tasks is not None
                    lower_batches(self._model, self._tasks, [some], self._problem, self._chunk_size)
            except NonFiniteLossError:
                pass
            except TooManySlotsError:
                # Some gates have fewer slots a sample in the end than at the start.
                most = 1 if self._problem == "linear" else 2
                if any(getattr(gate, "k", most + 1) > most for gate in self._gates()):
                    raise

        try:
            self._look_at_rows([some] if len(some) else [])
            self._ranks.agree(lower_some)
        except Exception as error:
            if self._on_error == "raise":
                raise
            warnings.warn(f"no search of this model and loss can run: {error}", RuntimeWarning, stacklevel=3)

    def _retain(self, batch: Batch) -> None:
        if self._put_off and self._step < self._until:
            return
        due = (self._step // self._period + 1) * self._period
        if due <= self._until and due - self._step <= self._batches:
            self._retained = [*self._retained, *([batch] if len(batch) else [])][-self._batches :]
        else:
            self._retained = []

    def _given(self, batches: Iterable[Samples]) -> Iterator[Batch]:
        # A generator: an iterable that draws random numbers, as a shuffling loader does, begins within the search.
        for samples in batches:
            given = samples
            if isinstance(given, (tuple, list)) and 2 <= len(given) <= len(fields(Batch)):
                given = Batch(*given)
            if not isinstance(given, Batch):
                raise TypeError(
                    "a batch must be (inputs, targets), (inputs, targets, ids), (inputs, targets, ids, groups) or "
                    "(inputs, targets, ids, groups, keywords), "
                    f"got {type(samples).__name__}"
                )
            given.require(1)
            yield self._fitting(given)

    def _fitting(self, batch: Batch) -> Batch:
        batch = batch.detach()
        batch.check_device(self._model)
        if self._tasks is not None:
            self._tasks.rows("targets", batch.targets)
        return batch

    def _search(self, batch: Batch) -> SearchRecord | None:
        start, again = time.perf_counter(), self._put_off
        self._put_off = any(self._ranks.collect(len(batch) < self._least()))
        if self._put_off and again and self._step % self._period:
            return None
        try:
            searched, verified = self._ranks.agree(lambda: self._parts(batch))
        except Exception as error:
            return self._give_up(SearchRecord(step=self._step, outcome="skipped", num_samples=0), error, start)
        return self._search_on(searched, [verified], start, in_step=True)

    def _least(self) -> int:
        """Return how many samples of the present batch a search takes."""
        return 2 if self._retained else 3

    def _parts(self, batch: Batch) -> tuple[list[Batch], Batch]:
        """Return the samples to search on and those that verify."""
        if self._retained:
            batch.require(self._least(), " to verify a search")
            if self._tokens is not None and self._max_samples is None:
                # Sequences of a batch are as long as its longest.
                return self._retained, batch
            searched, verified = concatenate(self._retained), batch
        else:
            batch.require(self._least(), " to be searched and verified by halves, no earlier batch being kept")
            half = len(batch) // 2
            searched, verified = batch.part(0, half), batch.part(half, len(batch))
        return [searched if self._max_samples is None else searched.last(self._max_samples)], verified

    def _search_on(
        self, searched: Iterable[Batch], verified: Iterable[Batch], start: float, *, in_step: bool
    ) -> SearchRecord | None:
        seed = int(np.random.SeedSequence(self._seed, spawn_key=(self._searches,)).generate_state(1)[0])
        self._searches += 1
        step, num_samples = self._step, 0

        def counted() -> Iterator[Batch]:
            nonlocal num_samples
            for batch in searched:
                num_samples += len(batch)
                yield batch

        def record(outcome: Outcome) -> SearchRecord:
            seconds = time.perf_counter() - start
            return SearchRecord(step=step, outcome=outcome, num_samples=num_samples, seconds=seconds)

        if self._tokens is not None:
            return self._search_tokens(self._tokens, counted(), verified, seed, record, in_step)
        assert self._tasks is not None
        try:
            lowering, recognized = lower_batches(
                self._model,
                self._tasks,
                counted(),
                self._problem,
                self._chunk_size,
                self._recognized,
                self._ranks,
            )
        except NonFiniteLossError as error:
            return self._give_up(record("not finite"), error)
        except Exception as error:
            # The first step told what is wrong with model and loss: it is the batch.
            if not in_step:
                raise
            return self._give_up(record("skipped"), error)
        if recognized is not None:
            # The targets are those of the first batch, and not kept.
            self._recognized = tuple(replace(one, targets=np.empty(0)) for one in recognized)
        found: Future[CandidateMap] | None = None
        asynchronous = self._asynchronous and in_step
        if lowering is not None:
            stop = self._stop or MaxRuntime(self._solving_seconds(start, in_step))
            run = on_thread if asynchronous else at_once
            found = run(lambda: find_candidate(lowering, self._solver, stop, seed, step, self._load_limit))
        if asynchronous:
            [batch] = verified
            self._underway = Underway(batch, step, num_samples, time.perf_counter() - start, found)
            return None
        return self._decide(found, verified, record("failed"), in_step)

    def _search_tokens(
        self,
        tokens: TokenSearch,
        searched: Iterable[Batch],
        verified: Iterable[Batch],
        seed: int,
        given_up: Callable[[Outcome], SearchRecord],
        in_step: bool,
    ) -> SearchRecord:
        """Search all layers, and return the record of the last."""
        last: SearchRecord | None = None

        def stop(start: float) -> StoppingCriterion:
            # Several problems share the time of a layer.
            return self._stop or MaxRuntime(self._solving_seconds(start, in_step) / (1 + len(CURVATURES)))

        try:
            both = self._ranks.agree(lambda: (_of_sequences(searched), _of_sequences(verified)))
            for last, chosen in tokens.search(*both, stop, seed, self._step):
                self._record(last)
                if self._on_search is not None and chosen is not None:
                    assert chosen.lowering is not None
                    assert chosen.result is not None
                    self._on_search(last, chosen.lowering, chosen.result)
        except NonFiniteLossError as error:
            return self._give_up(given_up("not finite"), error)
        except Exception as error:
            if not in_step:
                raise
            return self._give_up(given_up("skipped"), error)
        assert last is not None
        return last

    def _solving_seconds(self, start: float, in_step: bool) -> float:
        lowering = time.perf_counter() - start
        if not in_step:
            return max(MOST_SECONDS, SHARE * lowering)
        if self._asynchronous or self._last_search is None:
            return MOST_SECONDS
        return min(max(SHARE * (start - self._last_search) - lowering, LEAST_SECONDS), MOST_SECONDS)

    def _decide(
        self, found: Future[CandidateMap] | None, batches: Iterable[Batch], searched: SearchRecord, in_step: bool
    ) -> SearchRecord:
        """Decide on the map that was found, None on ranks that wait for the first, by the losses of other samples.

        ``searched`` is the record if the solver failed.
        """
        start = time.perf_counter()
        try:
            candidate = self._ranks.from_first(lambda: _answer(found).bare())
        except Exception as error:
            if self._on_error == "raise":
                raise
            return self._give_up(searched, error)
        permutation = candidate.permutation
        verification: Verification | None = None
        outcome, reason = candidate.record.outcome, candidate.record.reason
        if permutation is not None:
            assert self._tasks is not None
            try:
                verification = verify(self._model, self._tasks, permutation, batches, self._chunk_size, self._ranks)
                if verification.confirmed(self._confidence):
                    outcome = "committed"
                elif outcome != "enforced":
                    outcome = "refused"
            except Exception as error:
                finite = not isinstance(error, NonFiniteLossError)
                if finite and not in_step:
                    raise
                outcome, reason = "skipped" if finite else "not finite", str(error)
                self._warn(outcome, reason)
        record = replace(
            candidate.record,
            outcome=outcome,
            reason=reason,
            verified_gain=None if verification is None else verification.gain,
            standard_error=None if verification is None else verification.standard_error,
        )
        if record.new_map:
            assert permutation is not None
            assert self._tasks is not None
            self._tasks.expert_map.assign_permutation(permutation)
            record = replace(record, loads=candidate.loads)
        if record.loads:
            dead = experts_without_a_sample(enough_to_tell_the_dead([*self.history, record]))
            record = replace(record, dead_experts=dead)
        record = replace(record, seconds=searched.seconds + time.perf_counter() - start)
        self._record(record)
        if self._on_search is not None and found is not None:
            whole = found.result()
            if whole.lowering is not None and whole.result is not None:
                self._on_search(record, whole.lowering, whole.result)
        return record

    def _record(self, record: SearchRecord) -> SearchRecord:
        self.history.append(record)
        self.seconds += record.seconds
        if not self._put_off:
            self._last_search = time.perf_counter()
        if self._ranks.index == 0 and fruitless_for_the_first_time(self.history):
            logger.warning("the last %d searches left the expert map as it was\n%s", FRUITLESS, self.summary())
        return record

    def _give_up(self, record: SearchRecord, error: Exception, start: float | None = None) -> SearchRecord:
        reason = str(error) or type(error).__name__
        self._warn(record.outcome, reason)
        seconds = record.seconds if start is None else time.perf_counter() - start
        return self._record(replace(record, reason=reason, seconds=seconds))

    def _warn(self, outcome: Outcome, reason: str) -> None:
        # It warns once a run: a loss that is not finite mostly stays so, and the last batch of an epoch comes again.
        if all(record.outcome != outcome for record in self.history):
            warnings.warn(
                f"the search at step {self._step} was given up and the expert map left as it is: {reason} "
                f"(later searches that end as {outcome!r} do so without a warning, see their records)",
                RuntimeWarning,
                stacklevel=5,
            )


def _searched(model: nn.Module, moe: Any, loss: Any) -> tuple[Tasks | None, list[TokenLayer]]:
    """Return the tasks of a layer whose rows may be samples, and the layers whose rows may be tokens."""
    if isinstance(moe, MixtureOfExperts | MultiGateMixtureOfExperts):
        check_model(model, moe)
        return Tasks.of(moe, loss), [token_layer(moe)] if isinstance(moe, MixtureOfExperts) else []
    if not isinstance(moe, Sequence | nn.ModuleList):
        moe = [moe]
    if not len(moe):
        raise ValueError("moe must hold at least one layer, got none")
    layers = [token_layer(layer) for layer in moe]
    modules = {id(module) for module in model.modules()}
    for index, layer in enumerate(layers):
        if id(layer.module) not in modules:
            raise ValueError(
                f"moe must hold submodules of model, got one, number {index}, that {type(model).__name__} does not have"
            )
    return None, layers


def _of_sequences(batches: Iterable[Batch]) -> list[Batch]:
    given = list(batches)
    if any(batch.groups is not None for batch in given):
        raise ValueError("groups must be None for layers whose rows are tokens: what is compared is sequences")
    return given


def _answer(found: Future[CandidateMap] | None) -> CandidateMap:
    assert found is not None
    return found.result()


def format_sizes(sizes: Mapping[str, int]) -> str:
    """Return counts and what they count as text."""
    return ", ".join(f"{count} {name}" for name, count in sizes.items())
