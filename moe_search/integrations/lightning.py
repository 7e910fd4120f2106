"""Permutation search, and specialization of experts, as callbacks of Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from moe_search.layers.mixture_of_experts import MixtureOfExperts
from moe_search.training.lowering.losses import Loss
from moe_search.training.lowering.tasks import Layer, TaskLoss
from moe_search.training.search.candidate_map import SearchRecord
from moe_search.training.search.permutation_search import PermutationSearch
from moe_search.training.specialization import ExpertSpecialization

try:
    from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
except ImportError as error:
    raise ImportError('the callback of Lightning takes pip install "moe-search[lightning]"') from error

_AVERAGING = getattr(callbacks, "WeightAveraging", ())  # since Lightning 2.6


class LightningSearch(Callback):
    """Search the expert map of a mixture layer while Lightning trains the model.

    It calls `PermutationSearch.step` after every optimizer step, with the batch (the last one, where gradients are
    accumulated), and `PermutationSearch.finish` at the end. Each search is logged: the `SearchRecord.metrics` of it are
    among the trainer's metrics, and all its loggers get them, whatever ``log_every_n_steps`` is. The state of the
    search is in Lightning's checkpoints; those of a distributed run hold the batches kept by the first rank. A run that
    resumes from a checkpoint without one, as the run was without a search, begins the search afresh, with a warning.

    Parameters
    ----------
    moe : MixtureOfExperts or MultiGateMixtureOfExperts
        The layer, a submodule of the module that is trained.
    loss : callable, or sequence of callable
        ``loss(outputs, targets)``, a scalar tensor that is the mean over the samples, without penalties; with several
        gates the loss of a task, as `PermutationSearch` takes it.
    batch : callable, optional
        Makes (inputs, targets) or (inputs, targets, ids) of a batch of the data loader; by default it is such a one.
    model : Module, optional
        What is called as ``model(inputs)``; by default the Lightning module.
    name : str
        Tells callbacks apart where several layers have one each: in checkpoints, and in front of the metrics.
    **options
        Further arguments of `PermutationSearch`.

    Attributes
    ----------
    search : PermutationSearch or None
        The search; None before `fit`.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> from moe_search.integrations import LightningSearch
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=2))
    >>> callback = LightningSearch(moe, torch.nn.functional.cross_entropy, period=100)  # Trainer(callbacks=[callback])
    >>> callback.history
    []
    """

    def __init__(
        self,
        moe: Layer,
        loss: TaskLoss,
        *,
        batch: Callable[[Any], Sequence[Tensor]] = tuple,
        model: nn.Module | None = None,
        name: str = "",
        **options: Any,
    ) -> None:
        super().__init__()
        self._moe = moe
        self._loss = loss
        self._batch = batch
        self._model = model
        self._name = name
        self._options = options
        self._state: Mapping[str, Any] | None = None
        self._global_step = 0
        self.search: PermutationSearch | None = None

    @property
    def history(self) -> list[SearchRecord]:
        """One record for every search; see `PermutationSearch`."""
        return [] if self.search is None else self.search.history

    @property
    def state_key(self) -> str:
        """What the state is called in checkpoints."""
        return f"{super().state_key}-{self._name}" if self._name else super().state_key

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on from a checkpoint; process groups exist only now."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            # There is no public way to ask.
            if isinstance(callback, _AVERAGING) and getattr(callback, "_use_buffers", False):
                raise ValueError(
                    f"{type(callback).__name__} must have use_buffers=False, or it makes of two expert maps a mean, "
                    "which is none; it then takes over buffers as they are"
                )
        model = pl_module if self._model is None else self._model
        self.search = PermutationSearch(model, self._moe, loss=self._loss, **self._options)
        if self._state is not None:
            self.search.load_state_dict(self._state)
            self._state = None
        elif trainer.ckpt_path is not None:
            warnings.warn(f"there is no state of a search in {trainer.ckpt_path}: it begins afresh", stacklevel=2)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the optimizer steps made before."""
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count an optimizer step, and search if it is time."""
        if trainer.global_step > self._global_step and self.search is not None:
            self._global_step = trainer.global_step
            record = self.search.step(*self._batch(batch))
            if record is not None:
                pl_module.log_dict(self._metrics(record), logger=False)
                self._log(trainer, record)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide on a search under way."""
        record = None if self.search is None else self.search.finish()
        if record is not None:
            self._log(trainer, record)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the search, for Lightning's checkpoint."""
        return {} if self.search is None else self.search.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint when `fit` begins."""
        self._state = state_dict or None

    def _metrics(self, record: SearchRecord) -> dict[str, float]:
        prefix = f"{self._name}/" if self._name else ""
        return {prefix + name: value for name, value in record.metrics().items()}

    def _log(self, trainer: Trainer, record: SearchRecord) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(self._metrics(record), step=trainer.global_step)


class LightningSpecialization(Callback):
    """Decide which expert every sample trains in the first steps while Lightning trains the model.

    The module's ``training_step`` returns what `loss` of the callback returns, in place of the loss of the model. The
    callback calls `ExpertSpecialization.step` after every optimizer step, logs the numbers of the step and of the check
    with the trainer's metrics, and keeps its state in Lightning's checkpoints. The optimizer is the trainer's first.

    Parameters
    ----------
    moe : MixtureOfExperts
        The layer, a submodule of the module that is trained.
    loss : callable
        ``loss(outputs, targets)``, as `ExpertSpecialization` takes it.
    model : Module, optional
        What is called as ``model(inputs)``; by default the Lightning module.
    **options
        Further arguments of `ExpertSpecialization`, such as `held_out`.

    Attributes
    ----------
    specialization : ExpertSpecialization or None
        What it calls; None before `fit`.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> from moe_search.integrations import LightningSpecialization
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 3), ms.TopK(8, 4, k=1))
    >>> callback = LightningSpecialization(moe, torch.nn.functional.mse_loss)  # Trainer(callbacks=[callback])
    >>> callback.specialization is None  # training_step returns callback.loss(x, y)
    True
    """

    def __init__(self, moe: MixtureOfExperts, loss: Loss, *, model: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self._moe = moe
        self._loss = loss
        self._model = model
        self._options = options
        self._state: Mapping[str, Any] | None = None
        self._global_step = 0
        self.specialization: ExpertSpecialization | None = None

    def loss(self, inputs: Tensor, targets: Tensor, ids: Tensor | None = None, **keywords: Tensor) -> Tensor:
        """Return what to minimize in this step; see `ExpertSpecialization.loss`."""
        if self.specialization is None:
            raise ValueError("fit must have begun before the loss is asked for: the callback is not the trainer's")
        return self.specialization.loss(inputs, targets, ids, **keywords)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on from a checkpoint."""
        model = pl_module if self._model is None else self._model
        self.specialization = ExpertSpecialization(
            model, self._moe, loss=self._loss, optimizer=trainer.optimizers[0], **self._options
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the state of a checkpoint: the optimizer has its own only now."""
        self._global_step = trainer.global_step
        if self._state is not None and self.specialization is not None:
            self.specialization.load_state_dict(self._state)
            self._state = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count an optimizer step."""
        if trainer.global_step > self._global_step and self.specialization is not None:
            self._global_step = trainer.global_step
            if self.specialization.phase is not None and self.specialization.last is not None:
                pl_module.log_dict(self.specialization.last.metrics())
            check = self.specialization.step()
            if check is not None:
                pl_module.log_dict(check.metrics())

    def state_dict(self) -> dict[str, Any]:
        """Return the state for Lightning's checkpoint."""
        return {} if self.specialization is None else self.specialization.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint when training begins."""
        self._state = state_dict or None
