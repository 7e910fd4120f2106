"""What tokens of a text meet in the mixture layers of a language model, and what the model loses by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moe_search.huggingface.mixture_layers import MoELayer, TokenRows
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.losses import IGNORED, mean_and_error
from moe_search.training.lowering.token_layers import listen_to, watched

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LayerRows:
    """What some tokens meet in a layer, a row each.

    Parameters
    ----------
    hidden : Tensor, shape [rows, features]
        What router and experts are given.
    logits : Tensor, shape [rows, n]
        What the router says of all experts.
    weights : Tensor, shape [rows, n]
        The weights of all experts, by their numbers in the router.
    outputs : Tensor of float32, shape [rows, features]
        What the experts make of a row, together.
    gradients : Tensor of float32, shape [rows, features]
        The gradient of the summed loss of all targets by these outputs.
    """

    hidden: Tensor
    logits: Tensor
    weights: Tensor
    outputs: Tensor
    gradients: Tensor


@dataclass(frozen=True, eq=False)
class SequenceLosses:
    """Losses of sequences, which are the samples.

    Parameters
    ----------
    sums : ndarray of float64, shape (sequences,)
        The sum of the losses of the targets of a sequence.
    targets : ndarray of float64, shape (sequences,)
        How many targets it has.
    """

    sums: npt.NDArray[np.float64]
    targets: npt.NDArray[np.float64]

    @property
    def mean(self) -> float:
        """The mean loss of a target."""
        return float(self.sums.sum() / self.targets.sum())

    def increase(self, other: SequenceLosses) -> tuple[float, float]:
        """Return by how much the mean loss of another model on the same sequences is larger, and its standard error."""
        mean, error, _ = mean_and_error((other.sums - self.sums) / np.maximum(self.targets, 1), self.targets)
        return mean, error


def checked_batches(name: str, batches: Iterable[Any]) -> list[Batch]:
    """Return batches as mappings with ``input_ids``, or raise an error that says what was expected."""
    found: list[Batch] = []
    for batch in batches:
        given = {"input_ids": batch} if isinstance(batch, Tensor) else batch
        ids = given.get("input_ids") if isinstance(given, Mapping) else None
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise TypeError(
                f"{name} must hold tensors of token ids, [sequences, tokens], or mappings with such input_ids,"
                f" got {type(batch).__name__}"
            )
        found.append(given)
    if not found:
        raise ValueError(f"{name} must hold at least one batch, got none")
    return found


def targets_of(batch: Batch) -> Tensor:
    """Return what is to be foretold, [sequences, tokens - 1]: labels, or tokens; no padding, nor what follows it."""
    targets = batch.get("labels", batch["input_ids"])[:, 1:]
    mask = batch.get("attention_mask")
    return targets if mask is None else targets.masked_fill((mask[:, 1:] == 0) | (mask[:, :-1] == 0), IGNORED)


def batch_losses(model: Any, batch: Batch) -> Tensor:
    """Return the losses of the targets [sequences, tokens - 1], 0 where there is none."""
    device = next(model.parameters()).device
    given: dict[str, Any] = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    if getattr(model.config, "output_router_logits", False):
        # With these comes a loss of balance, which counts experts that a smaller router does not know.
        given["output_router_logits"] = False
    logits = model(**given, use_cache=False).logits[:, :-1]
    targets = targets_of(batch).to(logits.device)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(targets.shape)


def sequence_losses(model: nn.Module, batches: Sequence[Batch]) -> SequenceLosses:
    """Return the losses of a model, in eval mode, by sequence."""
    sums, targets = [], []
    with frozen(model):
        for batch in batches:
            sums.append(batch_losses(model, batch).double().sum(1).cpu().numpy())
            targets.append((targets_of(batch) != IGNORED).double().sum(1).cpu().numpy())
    found = SequenceLosses(np.concatenate(sums), np.concatenate(targets))
    if not found.targets.sum():
        raise ValueError("batches must have targets, tokens that follow another one, got none")
    return found


def record_rows(
    model: nn.Module, batches: Sequence[Batch], layers: Sequence[MoELayer], rows: int, seed: int
) -> tuple[list[LayerRows], float]:
    """Run batches forward and backward, once, and keep what a random part of the tokens meets in every layer.

    Returns
    -------
    list of LayerRows
        One for each layer, all of the same tokens, at most `rows`.
    float
        How many rows of all tokens one of these stands for, over the number of targets: sums over rows times this are
        means over targets.
    """
    generator = torch.Generator().manual_seed(seed)
    per_batch = -(-rows // len(batches))
    kept: list[list[tuple[Tensor, ...]]] = [[] for _ in layers]
    tokens, counted, taken, targets = TokenRows(), 0, 0, 0
    with frozen(model), ExitStack() as entered:
        wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        entered.callback(lambda: [parameter.requires_grad_(was) for parameter, was in wanted])
        # No parameter asks for a gradient: the graph begins at the first layer.
        model.requires_grad_(False)
        entered.callback(model.register_forward_pre_hook(tokens.see, with_kwargs=True).remove)
        for batch in batches:
            with torch.enable_grad(), watched(partial(listen_to, layer) for layer in layers) as seen:
                loss = batch_losses(model, batch).sum()
            gradients = torch.autograd.grad(loss, [last.outputs for *_, last in seen])
            of_tokens = tokens.of(seen[0][-1].inputs).cpu().nonzero().flatten()
            chosen = of_tokens[torch.randperm(len(of_tokens), generator=generator)[:per_batch].sort().values]
            for store, layer, (*_, last), gradient in zip(kept, layers, seen, gradients, strict=True):
                index = chosen.to(last.inputs.device)
                hidden = last.inputs[index]
                outputs, slopes = (each.detach().flatten(0, -2)[index].float() for each in (last.outputs, gradient))
                store.append((hidden, layer.router(hidden)[0], last.slot_weights[index, 0], outputs, slopes))
            counted += len(of_tokens)
            taken += len(chosen)
            targets += int((targets_of(batch) != IGNORED).sum())
    if not targets or not taken:
        raise ValueError("batches must have targets, tokens that follow another one, got none")
    return [LayerRows(*map(torch.cat, zip(*store, strict=True))) for store in kept], counted / taken / targets
