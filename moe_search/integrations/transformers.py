"""Permutation search, and specialization of experts, as callbacks of the Trainer of Hugging Face."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_search.huggingface.mixture_layers import MoELayer
from moe_search.huggingface.selection import require_layers
from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.training.lowering.losses import Loss
from moe_search.training.lowering.process_group import ranks_of
from moe_search.training.lowering.tasks import TaskLoss
from moe_search.training.search.candidate_map import SearchRecord
from moe_search.training.search.permutation_search import PermutationSearch
from moe_search.training.specialization import ExpertSpecialization

try:
    from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError('the callback of Transformers takes pip install "moe-search[transformers]"') from error


ALL = "all"
"""What stands for all mixture layers of a model of Transformers."""


class TransformersSearch(TrainerCallback):
    """Search the expert map of a mixture layer while a `transformers.Trainer` trains the model.

    It calls `PermutationSearch.step` after every optimizer step, with what the model was first given in training mode
    in that step (in the last part of it, where gradients are accumulated), and `PermutationSearch.finish` at the end.
    The `SearchRecord.metrics` of each search are an entry of the Trainer's ``log_history``, and go to the callbacks
    behind this one with what is logged next; in front of ``trainer.callback_handler.callbacks``, it serves those of
    ``report_to`` too.

    With every checkpoint, each process saves its state in the checkpoint's folder, as
    ``permutation_search-LAYER-RANK.pt``, LAYER being the name of the layer in the model, or of the first of several. A
    run that resumes from a checkpoint takes up the state in its folder, wherever that is. Where none is, as the
    run was without a search, or of fewer processes, the search begins afresh, with a warning. Every trial of
    ``Trainer.hyperparameter_search`` begins afresh and has its states among its own checkpoints.

    Parameters
    ----------
    moe : MixtureOfExperts, MultiGateMixtureOfExperts or str, or a sequence
        The layer, a submodule of the model that is trained, or its name there: with ``model_init`` the Trainer makes a
        model of its own at every start. Several layers whose rows are tokens, of this package or of
        ``ms.moe_layers(model)``, are searched one after the other; ``"all"`` stands for the latter.
    loss : callable, or sequence of callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples; with several gates the loss of a
        task, as `PermutationSearch` takes it.
    inputs, targets : str
        Names under which the model is given its inputs and its targets. What other tensors it is given for the samples,
        such as a mask, it is given by the search too.
    outputs : str
        Name under which it returns its outputs, also where it is given no targets.
    **options
        Further arguments of `PermutationSearch`.

    Attributes
    ----------
    search : PermutationSearch or None
        The search; None before training.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> from moe_search.integrations import TransformersSearch
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=2))
    >>> callback = TransformersSearch(moe, torch.nn.functional.cross_entropy, inputs="features")
    >>> callback.history  # one record a search, once Trainer(callbacks=[callback]) trains
    []
    """

    def __init__(
        self,
        moe: Any,
        loss: TaskLoss,
        *,
        inputs: str = "input_ids",
        targets: str = "labels",
        outputs: str = "logits",
        **options: Any,
    ) -> None:
        self._moe = moe
        self._loss = loss
        self._names = (inputs, targets)
        self._outputs = outputs
        self._options = options
        self._batch: tuple[Tensor, Tensor, dict[str, Tensor]] | None = None
        self._hook: Any = None
        self._layer = ""
        self._metrics: dict[str, float] = {}
        self.search: PermutationSearch | None = None

    @property
    def history(self) -> list[SearchRecord]:
        """One record for every search; see `PermutationSearch`."""
        return [] if self.search is None else self.search.history

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or go on from the checkpoint of the present step; process groups exist only now."""
        model = kwargs["model"]
        self._forget()
        self._batch, self._metrics = None, {}  # of a run before, such as another trial
        self._layer, moe = _named_layer(model, self._moe)
        outputs_only = _OutputsOnly(model, self._names[0], self._outputs)
        search = self.search = PermutationSearch(outputs_only, moe, loss=self._loss, **self._options)
        if state.global_step > 0:
            path = _folder_resumed_from(args, state) / self._file(args)
            ranks = ranks_of(self._options.get("process_group"), lambda: next(model.parameters()).device)
            # Ranks with a state and ranks without would wait for each other.
            if all(ranks.collect(path.exists())):
                ranks.agree(lambda: search.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")))
            else:
                warnings.warn(
                    f"there is no state of a search in {path}: it begins afresh at step {state.global_step} of the run",
                    stacklevel=2,
                )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Watch what the model is given next."""
        # The hook leaves when it has seen it, and is put anew each time: nothing tells of a training that raises.
        self._forget()
        self._hook = kwargs["model"].register_forward_pre_hook(self._remember, with_kwargs=True)

    on_substep_end = on_step_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count an optimizer step, and search if it is time."""
        batch, self._batch = self._batch, None
        if self.search is not None and batch is not None:
            inputs, targets, keywords = batch
            self._log(state, self.search.step(inputs, targets, **keywords))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what the last search did since the log before."""
        if logs is not None:
            logs.update(self._metrics)
            self._metrics = {}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state of the search beside that of the Trainer."""
        if self.search is not None:
            path = _folder(args, state) / self._file(args)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.search.state_dict(), path)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide on a search under way."""
        self._forget()
        if self.search is not None:
            self._log(state, self.search.finish())

    def _log(self, state: TrainerState, record: SearchRecord | None) -> None:
        if record is not None:
            self._metrics = record.metrics()
            state.log_history.append({**self._metrics, "epoch": state.epoch or 0.0, "step": state.global_step})

    def _file(self, args: TrainingArguments) -> str:
        layer = f"{self._layer}-" if self._layer else ""
        return f"permutation_search-{layer}{args.process_index}.pt"

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _remember(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not model.training:
            return  # an evaluation, or the search's own forward
        self._forget()
        self._batch = _batch_given(kwargs, self._names)


class TransformersSpecialization(TrainerCallback):
    """Decide which expert every sample trains in the first steps while a `transformers.Trainer` trains the model.

    The Trainer must ask it for the loss of a training step::

        class SpecializingTrainer(transformers.Trainer):
            loss_is_scaled_for_ga = False  # it is a mean: where gradients are accumulated, the Trainer divides it

            def compute_loss(self, model, inputs, return_outputs=False, **keywords):
                if return_outputs or not model.training:
                    return super().compute_loss(model, inputs, return_outputs, **keywords)
                return callback.loss(model, inputs)

    It calls `ExpertSpecialization.step` after every optimizer step, adds the numbers of the last step and of the check
    to the entries of the log, and saves its state in the checkpoints' folders as ``specialization-RANK.pt``.

    Parameters
    ----------
    moe : MixtureOfExperts
        The layer, a submodule of the model that is trained.
    loss : callable
        ``loss(outputs, targets)``, as `ExpertSpecialization` takes it.
    inputs, targets : str
        Names under which the model is given its inputs and its targets; what other tensors it is given go along.
    outputs : str
        Name under which it returns its outputs, also where it is given no targets.
    **options
        Further arguments of `ExpertSpecialization`, such as `held_out`.

    Attributes
    ----------
    specialization : ExpertSpecialization or None
        What it calls; None before the first step.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> from moe_search.integrations import TransformersSpecialization
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> callback = TransformersSpecialization(moe, torch.nn.functional.cross_entropy, inputs="features")
    >>> callback.specialization is None
    True
    """

    def __init__(
        self,
        moe: MixtureOfExperts,
        loss: Loss,
        *,
        inputs: str = "input_ids",
        targets: str = "labels",
        outputs: str = "logits",
        **options: Any,
    ) -> None:
        self._moe = moe
        self._loss = loss
        self._names = (inputs, targets)
        self._outputs = outputs
        self._options = options
        self._optimizer: Any = None
        self._state: Mapping[str, Any] | None = None
        self.specialization: ExpertSpecialization | None = None

    def loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
        """Return what to minimize in this step, from what `Trainer.compute_loss` is given."""
        if self.specialization is None:
            # The Trainer may wrap the model after training has begun.
            self.specialization = ExpertSpecialization(
                _OutputsOnly(model, self._names[0], self._outputs),
                self._moe,
                loss=self._loss,
                optimizer=self._optimizer,
                **self._options,
            )
            if self._state is not None:
                self.specialization.load_state_dict(self._state)
        batch, targets, keywords = _batch_given(inputs, self._names)
        return self.specialization.loss(batch, targets, **keywords)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, or go on from the checkpoint of the present step."""
        optimizer = kwargs["optimizer"]
        # Accelerate wraps it.
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self.specialization, self._state = None, None
        if state.global_step > 0:
            path = _folder_resumed_from(args, state) / _specialization_file(args)
            if path.exists():
                self._state = torch.load(path, weights_only=True, map_location="cpu")
            else:
                warnings.warn(f"there is no state of a specialization in {path}: it begins afresh", stacklevel=2)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count an optimizer step."""
        if self.specialization is not None:
            self.specialization.step()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what the last step, and the check, found."""
        if logs is not None and self.specialization is not None:
            for found in (self.specialization.last, self.specialization.check):
                logs.update({} if found is None else found.metrics())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save the state beside that of the Trainer."""
        if self.specialization is not None:
            path = _folder(args, state) / _specialization_file(args)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self.specialization.state_dict(), path)


def _batch_given(given: Mapping[str, Any], names: tuple[str, str]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return inputs, targets and what other tensors of the samples a model is given."""
    for name in names:
        if not isinstance(given.get(name), Tensor):
            raise ValueError(f"the model must be given a tensor named {name}, got {', '.join(sorted(given))}")
    inputs, targets = (given[name].detach() for name in names)
    others = {
        name: value.detach()
        for name, value in given.items()
        if name not in names and isinstance(value, Tensor) and value.shape[:1] == inputs.shape[:1]
    }
    return inputs, targets, others


def _specialization_file(args: TrainingArguments) -> str:
    return f"specialization-{args.process_index}.pt"


class _OutputsOnly(nn.Module):
    """A model of Transformers as one whose inputs are its first argument, and which returns a tensor."""

    def __init__(self, model: nn.Module, inputs: str, outputs: str) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, inputs: Tensor, **keywords: Tensor) -> Tensor:
        answer = self.model(**{self.inputs: inputs}, **keywords)
        if not isinstance(answer, Mapping) or self.outputs not in answer:
            raise ValueError(f"the model must return a dict with the key {self.outputs}, got {type(answer).__name__}")
        return answer[self.outputs]


def _named_layer(model: nn.Module, moe: Any) -> tuple[str, Any]:
    """Return the name of a layer, or of the first of several, and what a search takes for it."""
    if isinstance(moe, str) and moe == ALL:
        moe = require_layers(model)
    if isinstance(moe, str):
        return moe, model.get_submodule(moe)
    if isinstance(moe, Sequence | nn.ModuleList) and len(moe):
        layers = [_named_layer(model, layer) for layer in moe]
        return layers[0][0], [layer for _, layer in layers]
    module_of_layer = moe.block if isinstance(moe, MoELayer) else moe
    for name, module in model.named_modules():
        if module is module_of_layer:
            return name, moe
    raise ValueError(
        "moe must be a layer of the model that is trained, or its name there, as it must where the Trainer makes the "
        f"model by model_init; got one that {type(model).__name__} does not contain"
    )


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    # The Trainer has its checkpoint of this step there, that of a trial in the trial's folder. No callback is told
    # which: the Trainer that is calling is asked.
    run_folder = str(args.output_dir)
    for names in _names_of_callers():
        if isinstance(trainer := names.get("self"), Trainer):
            run_folder = trainer._get_output_dir(trainer._trial)
            break
    return Path(run_folder) / f"checkpoint-{state.global_step}"


def _folder_resumed_from(args: TrainingArguments, state: TrainerState) -> Path:
    # It is an argument of Trainer.train, which tells it to no callback: it is read from the call that is under way.
    for names in _names_of_callers():
        if isinstance(folder := names.get("resume_from_checkpoint"), (str, os.PathLike)):
            return Path(folder)
    return _folder(args, state)


def _names_of_callers() -> Iterator[Mapping[str, Any]]:
    frame = inspect.currentframe()
    while frame is not None:
        yield frame.f_locals
        frame = frame.f_back
