"""Pruning: which experts of every layer to keep, what that will cost, and what it does cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moe_search.checks import require_choice, require_flag, require_integer, require_number
from moe_search.huggingface.calibration import (
    LayerRows,
    checked_batches,
    record_rows,
    sequence_losses,
)
from moe_search.huggingface.mixture_layers import MoELayer
from moe_search.huggingface.routing_rule import routing_rule
from moe_search.huggingface.selection import (
    keep_experts,
    kept_only,
    require_alike,
    require_layers,
    smaller_router,
    try_router,
)
from moe_search.plotting.table import Table
from moe_search.problems.expert_subset import Subset, best_of_groups
from moe_search.solvers.engine.stop import MaxRuntime
from moe_search.solvers.heuristic.subset_search import SubsetSearch

if TYPE_CHECKING:
    import rich.console

ERROR = "error"
SCORES = ("frequency", "gate sum", "EAN", "REAP", "REAP sum")
CRITERIA = (ERROR, *SCORES)
HELD_OUT_SHARE = 3
"""Every so manieth batch is held out where none are given."""

MOST_NUMBERS = 1 << 24
"""Outputs of experts that are held at a time."""


@dataclass(frozen=True)
class PruningCandidate:
    """The experts that one criterion keeps.

    Parameters
    ----------
    criterion : str
        Its name.
    kept : tuple of tuple of int
        The experts that stay, layer by layer.
    forecast : float
        By how much the loss will rise, in nats a target: from the calibration batches, without running the pruned
        model.
    increase, standard_error : float
        By how much it did rise on the held-out batches, and the standard error over sequences; NaN for one sequence.
    as_good : bool
        Whether it is within one standard error of the difference of the best.

    Examples
    --------
    >>> import moe_search as ms
    >>> ms.PruningCandidate("REAP", ((0, 2), (1, 3)), forecast=0.11, increase=0.12, standard_error=0.01)
    PruningCandidate(criterion='REAP', forecast=0.11, increase=0.12, standard_error=0.01)
    """

    criterion: str
    kept: tuple[tuple[int, ...], ...] = field(repr=False)
    forecast: float
    increase: float
    standard_error: float
    as_good: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class PruningPlan:
    """Which experts of every layer to keep.

    Parameters
    ----------
    layers : tuple of str
        The names of the layers.
    num_experts : int
        How many experts a layer has before.
    intact : float
        The loss of the intact model on the held-out batches, in nats a target.
    candidates : tuple of PruningCandidate
        What the criteria propose, the best first.
    unknown : tuple of str
        The layers whose routers follow no rule that is known, so that the error is no criterion.

    Examples
    --------
    >>> import moe_search as ms
    >>> found = ms.PruningCandidate("error", ((0, 2),), forecast=0.11, increase=0.12, standard_error=0.01)
    >>> plan = ms.PruningPlan(("layers.0.mlp",), num_experts=4, intact=2.5, candidates=(found,))
    >>> plan.criterion, plan.kept, round(plan.verified, 3)
    ('error', ((0, 2),), 2.62)
    """

    layers: tuple[str, ...] = field(repr=False)
    num_experts: int
    intact: float
    candidates: tuple[PruningCandidate, ...]
    unknown: tuple[str, ...] = ()

    @property
    def best(self) -> PruningCandidate:
        """What is kept."""
        return self.candidates[0]

    @property
    def criterion(self) -> str:
        """By which criterion."""
        return self.best.criterion

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """The experts that stay, layer by layer."""
        return self.best.kept

    @property
    def forecast(self) -> float:
        """By how much the loss will rise by the calibration batches, in nats a target."""
        return self.best.forecast

    @property
    def verified(self) -> float:
        """The loss of the pruned model on the held-out batches, in nats a target."""
        return self.intact + self.best.increase

    @property
    def standard_error(self) -> float:
        """The standard error of the rise of that loss, over sequences."""
        return self.best.standard_error

    def apply(self, model: nn.Module) -> Any:
        """Drop the other experts from a model, in place, and return it: then `save_pretrained`; see `keep_experts`."""
        return keep_experts(model, self.kept)

    def table(self) -> rich.console.Group:
        """Return forecast and measured rise of the loss by every criterion for the terminal."""
        return self.as_table().as_rich()

    def as_table(self) -> Table:
        """Return the table of all criteria, the one that is taken first."""
        rows = tuple(
            (
                each.criterion,
                f"{each.forecast:+.4f}",
                f"{each.increase:+.4f}",
                "-" if math.isnan(each.standard_error) else f"{each.standard_error:.4f}",
                f"{self.intact + each.increase:.4f}",
            )
            for each in self.candidates
        )
        note = (
            f"Nats a target; the intact model has {self.intact:.4f} on the held-out batches. Forecasts are of the"
            " calibration batches, standard errors over sequences. The first row is what is kept."
        )
        equals = [each.criterion for each in self.candidates[1:] if each.as_good]
        if equals:
            note += f" As good, within a standard error of the difference: {', '.join(equals)}."
        if self.unknown:
            note += f" The routers of {len(self.unknown)} layers follow no rule that is known: no exact error."
        title = f"{len(self.kept[0])} of {self.num_experts} experts in {len(self.layers)} layers"
        columns = ("kept by", "forecast", "measured", "standard error", "loss")
        return Table(title, columns, rows, rules=(0,) if len(rows) > 1 else (), note=note)


def prune_experts(
    model: nn.Module,
    batches: Iterable[Any],
    keep: float,
    *,
    held_out: Iterable[Any] | None = None,
    criteria: str | Sequence[str] = "auto",
    rows: int = 2048,
    seed: int = 0,
    display: bool = False,
) -> PruningPlan:
    """Choose the experts of every layer that a language model keeps, and tell what that costs.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model of transformers with mixture layers. It stays as it is; `PruningPlan.apply` changes it.
    batches : iterable
        Texts like those that the model is for: token ids [sequences, tokens], or mappings with ``input_ids`` and, if
        there are, ``attention_mask`` and ``labels``, as a tokenizer or a data collator of transformers returns them.
        Padding counts for nothing.
    keep : int or float
        How many experts of a layer stay, or the part of them, between 0 and 1.
    held_out : iterable, optional
        Batches by which the criterion is chosen and the loss is verified; by default every third of `batches`, which
        then are not calibrated with.
    criteria : str or sequence of str, default "auto"
        By what experts are chosen: all of the following, or some.

        ``error`` keeps those with which the layer comes nearest to what it computed, its rows routed among them:
        `SubsetSearch` on an `ExpertSubset`. The others keep the highest scores: ``frequency`` of the rows of an
        expert, ``gate sum`` of their weights, ``EAN`` the sum of the norms of the outputs, ``REAP`` the mean of these
        norms times the weights, and ``REAP sum`` its sum.
    rows : int, default 2048
        Tokens by which experts are judged, drawn from all of `batches`. A layer takes ``4 * rows * num_experts**2``
        bytes.
    seed : int, default 0
        Draws them.
    display : bool, default False
        Whether to show a progress bar on the standard error.

    Returns
    -------
    PruningPlan
        The experts of the criterion with the least loss on the held-out batches, and what all criteria propose.

    Raises
    ------
    TypeError, ValueError
        If the model has no mixture layers, too few experts would stay, or there is but one batch and none held out.

    Notes
    -----
    The forecast of a layer is the second order of the loss, ``sum_t <g, d> + (d' M d) / 2`` over tokens, with d the
    change of the layer's output, g the gradient of the loss by it and M the mean of g g'; that of the model is the sum
    over layers. The least loss of several criteria on the held-out batches flatters a little: a loss to report is to
    be taken on other texts.

    References
    ----------
    M. Lasby et al., "REAP the experts: why pruning prevails for one-shot MoE compression", 2025, for REAP and EAN.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> from transformers import MixtralConfig, MixtralForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> model = MixtralForCausalLM(MixtralConfig(vocab_size=32, num_hidden_layers=2, num_local_experts=4, **sizes))
    >>> texts = torch.randint(0, 32, (6, 4, 10))  # six batches of four sequences of ten tokens
    >>> plan = ms.prune_experts(model, texts, keep=0.75)
    >>> pruned = plan.apply(model)  # and pruned.save_pretrained(folder)
    >>> pruned.config.num_local_experts
    3
    """
    layers = require_layers(model)
    names = checked_criteria(criteria)
    stay = checked_keep(keep, layers)
    require_integer("rows", rows)
    require_integer("seed", seed, 0)
    require_flag("display", display)
    calibration = checked_batches("batches", batches)
    if held_out is not None:
        verification = checked_batches("held_out", held_out)
    else:
        if len(calibration) < 2:
            raise ValueError("batches must be at least two where none are held out, got one")
        first = min(HELD_OUT_SHARE, len(calibration)) - 1
        verification = calibration[first::HELD_OUT_SHARE]
        del calibration[first::HELD_OUT_SHARE]
    with _steps(2 + len(layers) + len(names), display) as step:
        step("calibration")
        recorded, share = record_rows(model, calibration, layers, rows, seed)
        kept: dict[str, list[Subset]] = {name: [] for name in names}
        forecasts = dict.fromkeys(names, 0.0)
        unknown = []
        for layer, met in zip(layers, recorded, strict=True):
            step(layer.name)
            chosen = _choose(layer, met, stay, names)
            for name in names:
                if name not in chosen:
                    unknown.append(layer.name)
                    continue
                kept[name].append(chosen[name])
                forecasts[name] += share * _forecast(layer, met, chosen[name])
        if unknown:
            if names == (ERROR,):
                raise ValueError(
                    f"criteria must hold a score, as the routers of {', '.join(unknown)} follow no rule that is known"
                )
            names = tuple(name for name in names if name != ERROR)
        step("intact model")
        intact = sequence_losses(model, verification)
        losses = {}
        for name in names:
            step(name)
            with kept_only(layers, kept[name]):
                losses[name] = sequence_losses(model, verification)
    least = min(losses.values(), key=lambda each: each.mean)
    candidates = []
    for name in names:
        behind, doubt = least.increase(losses[name])
        numbers = tuple(tuple(map(int, each)) for each in kept[name])
        rise = intact.increase(losses[name])
        candidates.append(PruningCandidate(name, numbers, forecasts[name], *rise, as_good=behind <= doubt))
    return PruningPlan(
        tuple(layer.name for layer in layers),
        layers[0].num_experts,
        intact.mean,
        tuple(sorted(candidates, key=lambda each: each.increase)),
        tuple(unknown),
    )


def checked_criteria(criteria: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of criteria."""
    names = (criteria,) if isinstance(criteria, str) else tuple(criteria)
    if not names:
        raise ValueError("criteria must hold at least one, got none")
    for name in names:
        require_choice("criteria", name, ("auto", *CRITERIA))
    return CRITERIA if "auto" in names else tuple(dict.fromkeys(names))


def checked_keep(keep: float, layers: Sequence[MoELayer]) -> int:
    """Return how many experts of a layer stay."""
    require_alike(layers)
    n, groups = layers[0].num_experts, layers[0].num_groups
    if isinstance(keep, float):
        if not 0 < require_number("keep", keep) < 1:
            raise ValueError(f"keep must be a part between 0 and 1, or a number of experts, got {keep:g}")
        stay = groups * max(round(keep * n / groups), 1)
    else:
        stay = require_integer("keep", keep)
    if stay >= n or stay % groups:
        of_groups = f" and a multiple of the {groups} groups" if groups > 1 else ""
        raise ValueError(f"keep must be less than the {n} experts of a layer{of_groups}, got {stay}")
    for layer in layers:
        if stay < layer.top_k:
            raise ValueError(f"keep must be at least the {layer.top_k} experts that a row takes, got {stay}")
    size = n // groups
    try_router(layers[0], np.concatenate([g * size + np.arange(stay // groups) for g in range(groups)]))
    return stay


def _choose(layer: MoELayer, met: LayerRows, stay: int, names: Sequence[str]) -> dict[str, Subset]:
    """Return what the criteria keep of a layer; without the error where the rule of its router is not known."""
    gram, products = inner_products(layer, met)
    energies = met.outputs.double().square().sum(1).cpu().numpy()
    scores = expert_scores(met.weights.float().cpu().numpy(), np.sqrt(np.einsum("tee->te", gram)))
    chosen = {}
    for name in names:
        if name == ERROR:
            rule = routing_rule(layer, met, stay)
            if rule is not None:
                problem = rule.problem(gram, products, energies, stay, layer.top_k)
                chosen[name] = SubsetSearch().solve(problem, MaxRuntime(math.inf)).solution.copy()
            continue
        chosen[name] = best_of_groups(scores[name], layer.num_groups, stay)
    return chosen


def expert_scores(weights: npt.NDArray[Any], norms: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    """Return the published scores of experts, by weights and norms of outputs of shape (rows, n)."""
    given = weights > 0
    rows = np.maximum(given.sum(0), 1)
    weighted = (weights.astype(np.float64) * norms).sum(0)
    numbers = (given.sum(0), weights.sum(0), (given * norms).sum(0), weighted / rows, weighted)
    return dict(zip(SCORES, (np.asarray(each, dtype=np.float64) for each in numbers), strict=True))


@torch.no_grad()
def inner_products(layer: MoELayer, met: LayerRows) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the inner products of the outputs of all experts, with each other and with that of the layer."""
    rows, width = met.outputs.shape
    n = layer.num_experts
    gram = np.empty((rows, n, n), dtype=np.float32)
    products = np.empty((rows, n), dtype=np.float32)
    length = max(MOST_NUMBERS // (n * width), 1)
    for start in range(0, rows, length):
        part = slice(start, start + length)
        hidden = met.hidden[part]
        outputs = hidden.new_empty(len(hidden), n, width, dtype=torch.float32)
        for e in range(n):
            outputs[:, e] = output_of_expert(layer, hidden, e)
        gram[part] = (outputs @ outputs.transpose(1, 2)).cpu().numpy()
        products[part] = torch.einsum("ted,td->te", outputs, met.outputs[part]).cpu().numpy()
    return gram, products


def output_of_expert(layer: MoELayer, hidden: Tensor, expert: int) -> Tensor:
    """Return what one expert makes of rows, whatever the layout of its weights."""
    index = torch.full((len(hidden), 1), expert, device=hidden.device)
    return layer.experts(hidden, index, hidden.new_ones(len(hidden), 1))


@torch.no_grad()
def _forecast(layer: MoELayer, met: LayerRows, kept: Subset) -> float:
    """Return by how much the summed loss of the recorded rows' part of a layer will rise, to the second order."""
    _, weights, index, *_ = smaller_router(layer, kept)(met.hidden)
    numbered = torch.from_numpy(kept).to(index.device)[index]
    change = layer.experts(met.hidden, numbered, weights).float() - met.outputs
    slope = (met.gradients * change).double().sum()
    metric = met.gradients.t() @ met.gradients / len(met.gradients)
    return float(slope + 0.5 * ((change @ metric) * change).double().sum())


@contextmanager
def _steps(total: int, display: bool) -> Iterator[Any]:
    """Yield a function that tells what is done next, on a progress bar if one is asked for."""
    if not display:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*bar, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total, completed=-1)
        yield lambda what: progress.update(task, advance=1, description=what)
        progress.update(task, completed=total, description="")
