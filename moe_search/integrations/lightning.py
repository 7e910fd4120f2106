"""Permutation search as a callback of Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from moe_search.training.lowering.tasks import Layer, TaskLoss
from moe_search.training.search.candidate_map import SearchRecord
from moe_search.training.search.permutation_search import PermutationSearch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError('the callback of Lightning takes pip install "moe-search[lightning]"') from error


class LightningSearch(Callback):
    """Search the expert map of a mixture layer while Lightning trains the model.

    It calls `PermutationSearch.step` after every optimizer step, with the batch (the last one, where gradients are
    accumulated), and `PermutationSearch.finish` at the end. The state of the search is in Lightning's checkpoints;
    those of a distributed run hold the batches kept by the first rank.

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
        **options: Any,
    ) -> None:
        super().__init__()
        self._moe = moe
        self._loss = loss
        self._batch = batch
        self._model = model
        self._options = options
        self._state: Mapping[str, Any] | None = None
        self._global_step = 0
        self.search: PermutationSearch | None = None

    @property
    def history(self) -> list[SearchRecord]:
        """One record for every search; see `PermutationSearch`."""
        return [] if self.search is None else self.search.history

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on from a checkpoint; process groups exist only now."""
        model = pl_module if self._model is None else self._model
        self.search = PermutationSearch(model, self._moe, loss=self._loss, **self._options)
        if self._state is not None:
            self.search.load_state_dict(self._state)
            self._state = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the optimizer steps made before."""
        self._global_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count an optimizer step, and search if it is time."""
        if trainer.global_step > self._global_step and self.search is not None:
            self._global_step = trainer.global_step
            self.search.step(*self._batch(batch))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide on a search under way."""
        if self.search is not None:
            self.search.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the search, for Lightning's checkpoint."""
        return {} if self.search is None else self.search.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint when `fit` begins."""
        self._state = state_dict or None
