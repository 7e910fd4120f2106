"""Lowering of layers whose rows are tokens, which the loss couples: what a map changes, by first and second order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_search.checks import require_integer
from moe_search.gates.expert_map import ExpertMap
from moe_search.problems.linear import LinearAssignment
from moe_search.problems.mixture import MixtureAssignment
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.forward_pass import Autocast, forward
from moe_search.training.lowering.frozen import frozen
from moe_search.training.lowering.losses import (
    Loss,
    NonFiniteLossError,
    as_numpy,
    at_least_single,
    losses_where,
    sequence_losses,
)
from moe_search.training.lowering.lowering import Lowering, ProblemKind
from moe_search.training.lowering.process_group import ALONE, Ranks
from moe_search.training.lowering.token_layers import TokenLayer, token_layer, watched

CURVATURES = (0.3, 1.0, 3.0, 10.0)
"""Factors of the quadratic term, which at 1 is the mean outer product of gradients: more or less than the curvature."""

MAX_ROWS = 4096
"""Tokens that a quadratic problem keeps, by default."""

RANK = 1e-6
"""Directions of the outputs whose gradients have less than this part of the largest mean square are left out, and so is
what a token counts below this part of the mean."""

TRIED_SWAPS = (1, 2, 4, 8)
"""Swaps of the maps by whose true loss a forecast is scaled."""

LEAST_CURVATURE = 0.1
"""What the scale of the quadratic term is at least, also where the loss falls by more than to first order."""


@dataclass(frozen=True, eq=False)
class LayerRows:
    """What one forward and backward showed of a layer, R rows.

    Parameters
    ----------
    inputs : Tensor
        Shape [R, ...].
    slot_weights : Tensor
        Shape [R, map rows, m].
    gradients : Tensor
        The derivative of the summed loss by the outputs of the layer, shape [R, d].
    autocast : Autocast
        The state of autocast that the layer ran in.
    """

    inputs: Tensor
    slot_weights: Tensor
    gradients: Tensor
    autocast: Autocast

    def counting(self) -> LayerRows:
        """Return the rows that some loss depends on: not those of padding, nor of targets that are ignored."""
        some = self.gradients.abs().amax(1) > 0
        return LayerRows(self.inputs[some], self.slot_weights[some], self.gradients[some], self.autocast)


@dataclass(frozen=True, eq=False)
class TokenLowering:
    """The search problems of a layer whose rows are tokens: how its map changes the loss, in two approximations.

    With y_t the output of the layer for token t, d_t its change by another map, and g_t the derivative of the summed
    loss by y_t, the loss changes by ``sum_t <g_t, d_t>`` to first order. The second problem adds
    ``c / 2 sum_t s_t d_t' M d_t`` with the mean M of ``g_t g_t'`` over the tokens, which for the logarithm of a
    probability is the Fisher information, what token t has of it, ``s_t = g_t' M^-1 g_t / r`` in r directions, and a
    factor c. To second order c is 1, but experts that change places change outputs by as much as these are: how the
    loss rises then, some maps tell by true forwards. Near the optimum the first problem is blind and does harm; both
    are only right up to a true forward.

    Parameters
    ----------
    first_order : LinearAssignment or None
        The first problem, up to a constant; None for maps of several rows, which it cannot hold.
    slot_weights, outputs, drift : ndarray
        What `quadratic` is made of, for the rows kept: weights [R, map rows, m], outputs of the experts in the metric
        M, shape [R, n, r], and gradients in its inverse, shape [R, r].
    shares : ndarray
        What of the metric a row has, shape [R].
    unit : float
        What a row counts in the mean loss.
    initial : ndarray of int64
        The permutation of the present map.
    loss : float
        The mean loss of the batch under it, per sample, or per target that is not ignored.
    num_samples, num_rows : int
        The sequences, and the tokens that the loss depends on.
    slot_loads : ndarray of int64
        Number of these tokens with weight on every slot.
    curvature : float
        The factor c by default.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 8), ms.TopK(8, 4, k=2))
    >>> inputs, targets = torch.randn(16, 5, 8), torch.randn(16, 5, 8)
    >>> [lowering] = ms.lower_tokens(moe, [moe], inputs, targets, torch.nn.functional.mse_loss)
    >>> best = ms.Hungarian().solve(lowering.first_order, ms.MaxIterations(1)).permutation
    >>> lowering.forecast(best, curvature=0.0) <= 0.0  # to first order it is never worse
    True
    """

    first_order: LinearAssignment | None
    slot_weights: NDArray[Any]
    outputs: NDArray[Any]
    drift: NDArray[Any]
    shares: NDArray[Any]
    unit: float
    initial: NDArray[np.int64]
    loss: float
    num_samples: int
    num_rows: int
    slot_loads: NDArray[np.int64]
    curvature: float = 1.0

    def quadratic(self, curvature: float | None = None) -> MixtureAssignment:
        """Return the second problem: squared error in the metric M, of which the linear term is a shift of the targets.

        A constant apart, which is the same under all maps, its value is the change of the mean loss.
        """
        curved = (self.curvature if curvature is None else curvature) * self.shares
        targets = self._present - self.drift / curved[:, None]
        return MixtureAssignment(self.slot_weights, self.outputs, targets, "squared", self.unit / 2 * curved)

    def lowerings(self, kind: ProblemKind) -> list[Lowering]:
        """Return what a search tries: the first problem if it is to be linear, else the second for some curvatures."""
        problems: list[LinearAssignment | MixtureAssignment]
        if kind == "linear":
            assert self.first_order is not None
            problems = [self.first_order]
        else:
            problems = [self.quadratic(curvature) for curvature in CURVATURES]
        return [
            Lowering(problem, self.initial, True, self.loss, self.num_samples, None, self.slot_loads)
            for problem in problems
        ]

    def forecast(self, permutation: NDArray[np.int64], curvature: float | None = None) -> float:
        """Return the change of the mean loss that the second problem foretells for a map."""
        change = self._mixtures(permutation) - self._present
        curved = (self.curvature if curvature is None else curvature) * self.shares
        return float(self.unit * (np.vdot(change, self.drift) + (change**2).sum(1) @ curved / 2))

    @cached_property
    def _present(self) -> NDArray[Any]:
        return self._mixtures(self.initial)

    def _mixtures(self, permutation: NDArray[np.int64]) -> NDArray[Any]:
        rows, m = self.slot_weights.shape[1:]
        n = self.outputs.shape[1]
        experts = permutation % m // (m // n)
        of_experts = np.zeros((len(self.outputs), n))
        flat = self.slot_weights.reshape(len(self.outputs), -1)
        for slot in range(rows * m):
            of_experts[:, experts[slot]] += flat[:, slot]
        return np.matmul(of_experts[:, None, :], self.outputs)[:, 0]


@dataclass(frozen=True, eq=False)
class OpenedTokens:
    """A model run forwards and backwards on some batches.

    Parameters
    ----------
    first : int
        Number of the first layer that was opened.
    rows : list of LayerRows
        Those of all layers from that on.
    total : float
        The loss summed over what is counted.
    units : float
        What is counted: samples, or targets that are not ignored.
    num_samples : int
        Number of sequences.
    """

    first: int
    rows: list[LayerRows]
    total: float
    units: float
    num_samples: int


def open_tokens(
    model: nn.Module,
    layers: Sequence[TokenLayer],
    loss: Loss,
    batches: Iterable[Batch],
    chunk_size: int,
    first: int = 0,
) -> OpenedTokens:
    """Run a model forwards and backwards, at most ``chunk_size`` tokens at once; open its layers from `first` on."""
    parts: list[list[LayerRows]] = [[] for _ in layers[first:]]
    total = units = 0.0
    num_samples = 0
    for batch in batches:
        for part in batch.parts(max(1, chunk_size // tokens_of(batch))):
            seen, losses, counts = _open_part(model, layers[first:], loss, part)
            for known, new in zip(parts, seen, strict=True):
                known.append(new)
            total += float(losses @ counts)
            units += float(counts.sum())
            num_samples += len(part)
    return OpenedTokens(first, [_joined(of_layer) for of_layer in parts], total, units, num_samples)


def rows_are_tokens(model: nn.Module, layer: TokenLayer, batch: Batch) -> bool:
    """Return whether the rows of a mixture of ours are others than the samples; no for one that does not run."""
    seen: list[bool] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # An axis of tokens is one, be there a single token.
        seen.append((args[0] if args else kwargs["inputs"]).shape[:-1] != (len(batch),))

    handle = layer.module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with frozen(model):
            forward(model, batch)
    finally:
        handle.remove()
    # A layer that does not run once is refused by what lowers it.
    return any(seen[:1])


def tokens_of(batch: Batch) -> int:
    """Return how many rows a sample has, going by its inputs."""
    return batch.inputs.shape[1] if batch.inputs.ndim > 1 else 1


def _open_part(
    model: nn.Module, layers: Sequence[TokenLayer], loss: Loss, batch: Batch
) -> tuple[list[LayerRows], NDArray[np.float64], NDArray[np.float64]]:
    with torch.enable_grad(), watched(layer.listen for layer in layers) as seen:
        outputs = forward(model, batch)
        losses, counts = sequence_losses(loss, outputs.detach(), batch.targets)
        # The mean over no target is NaN.
        summed = loss(outputs, batch.targets) * counts.sum() if counts.any() else 0 * outputs.sum()
    for index, calls in enumerate(seen):
        if len(calls) != 1:
            raise ValueError(
                f"every layer must run exactly once in a forward of model, layer {index} was seen {len(calls)} times"
            )
    once = [calls[0] for calls in seen]
    if not summed.requires_grad:
        raise ValueError("the loss must depend on the outputs of every layer by differentiable operations, it does not")
    gradients = torch.autograd.grad(summed, [each.outputs for each in once], allow_unused=True)
    rows = []
    for index, (each, gradient) in enumerate(zip(once, gradients, strict=True)):
        if gradient is None:
            raise ValueError(
                "the loss must depend on the outputs of every layer by differentiable operations, "
                f"it does not on those of layer {index}: a torch.utils.checkpoint around it needs use_reentrant=False"
            )
        flat = at_least_single(gradient).reshape(len(each.slot_weights), -1)
        if not bool(flat.isfinite().all()):
            raise NonFiniteLossError(f"the gradients of the loss must be finite, got others at layer {index}")
        rows.append(LayerRows(each.inputs, at_least_single(each.slot_weights), flat, each.autocast).counting())
    return rows, losses, counts


def _joined(parts: Sequence[LayerRows]) -> LayerRows:
    if len(parts) == 1:
        return parts[0]
    return LayerRows(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.slot_weights for part in parts]),
        torch.cat([part.gradients for part in parts]),
        parts[0].autocast,
    )


@torch.no_grad()
def lower_rows(
    layer: TokenLayer, opened: OpenedTokens, index: int, max_rows: int, chunk_size: int, ranks: Ranks = ALONE
) -> TokenLowering | None:
    """Return the problems of a layer from the rows of all ranks; None on all ranks but the first.

    Parameters
    ----------
    max_rows : int
        The most rows of a rank that the quadratic problem keeps, n r numbers for each, drawn evenly; the metric and the
        linear problem are those of all.
    chunk_size : int
        The most rows that go through every expert at once.
    """
    rows = opened.rows[index - opened.first]
    expert_map, gradients = layer.expert_map, rows.gradients.double()
    map_rows, m = expert_map.experts.shape
    n = expert_map.num_experts
    counted = opened.total, opened.units, opened.num_samples, len(gradients)
    total, units, samples, count = ranks.sum(np.array(counted)).tolist()
    if not count:
        raise ValueError("the loss must depend on a token at least, by a target that counts, it depends on none")
    mean_square = torch.from_numpy(ranks.sum((gradients.T @ gradients).cpu().numpy())).to(gradients) / count
    values, vectors = torch.linalg.eigh(mean_square)
    some = values > RANK * values.max()
    root = vectors[:, some] * values[some].sqrt()
    whitened = gradients @ (vectors[:, some] / values[some].sqrt())
    shares = whitened.square().mean(1).clamp(min=RANK)
    kept = torch.linspace(0, len(gradients) - 1, min(max_rows, len(gradients)), device=gradients.device).round().long()
    is_kept = torch.zeros(len(gradients), dtype=torch.bool, device=gradients.device).index_fill(0, kept, True)
    costs = np.zeros((map_rows * m, n))
    loads = np.zeros(map_rows * m, dtype=np.int64)
    outputs = []
    for chunk in torch.split(torch.arange(len(gradients), device=gradients.device), chunk_size):
        with rows.autocast.again():
            answers = layer.expert_outputs(rows.inputs[chunk])
        answers = at_least_single(answers).flatten(2).double()
        if not bool(answers.isfinite().all()):
            raise NonFiniteLossError("the outputs of every expert must be finite, got NaN or infinite ones")
        weights = rows.slot_weights[chunk].flatten(1).double()
        slopes = torch.einsum("bd,bnd->bn", gradients[chunk], answers)
        costs += (weights.T @ slopes).cpu().numpy()
        loads += (weights > 0).sum(0).cpu().numpy()
        outputs.append((answers[is_kept[chunk]] @ root).cpu().numpy())
    costs, loads = ranks.sum(costs) / units, ranks.sum(loads)
    arrays = (
        as_numpy(rows.slot_weights[is_kept]).astype(np.float64),
        np.concatenate(outputs) if outputs else np.empty((0, n, int(some.sum()))),
        as_numpy(whitened[is_kept]),
        as_numpy(shares[is_kept]),
    )
    of_ranks = ranks.gather(arrays)
    if ranks.index > 0:
        return None
    slot_weights, in_metric, drift, shares = (np.concatenate(parts) for parts in zip(*of_ranks, strict=True))
    return TokenLowering(
        LinearAssignment(costs) if map_rows == 1 else None,
        slot_weights,
        in_metric,
        drift,
        shares,
        count / len(drift) / units,
        expert_map.permutation(),
        total / units,
        int(samples),
        int(count),
        loads,
    )


def gains_of_maps(
    model: nn.Module,
    expert_map: ExpertMap,
    loss: Loss,
    permutations: Sequence[NDArray[np.int64]],
    batches: Iterable[Batch],
    chunk_size: int,
) -> NDArray[np.float64]:
    """Return what sequences count, and by how much the loss of each falls under some maps, by true forwards.

    Shape [1 + maps, sequences], not finite where the loss under a map is not; the layer keeps its map.
    """
    kept = expert_map.experts.clone()
    found = []
    with frozen(model):
        for batch in batches:
            for part in batch.parts(max(1, chunk_size // tokens_of(batch))):
                before, counts = sequence_losses(loss, forward(model, part), part.targets)
                after = []
                try:
                    for permutation in permutations:
                        expert_map.assign_permutation(permutation)
                        after.append(losses_where(counts > 0, loss, forward(model, part), part.targets))
                finally:
                    expert_map.assign(kept)
                found.append(np.stack([counts, *(before - each for each in after)]))
    return np.concatenate(found, axis=1) if found else np.empty((len(permutations) + 1, 0))


def maps_nearby(expert_map: ExpertMap, count: int) -> list[NDArray[np.int64]]:
    """Return permutations some swaps away from the present one, always the same."""
    rng, (rows, m) = np.random.default_rng(0), expert_map.experts.shape
    found = []
    for number in range(count):
        permutation = expert_map.permutation()
        for _ in range(TRIED_SWAPS[number % len(TRIED_SWAPS)]):
            pair = m * rng.integers(rows) + rng.choice(m, 2, replace=False)
            permutation[pair] = permutation[pair[::-1]]
        found.append(permutation)
    return found


def scaled(
    lowering: TokenLowering, permutations: Sequence[NDArray[np.int64]], gains: NDArray[np.float64]
) -> TokenLowering:
    """Return a lowering whose forecasts for some maps sum up to what comes of them, as of `gains_of_maps`.

    Maps under which the loss is not finite are left out: no forecast comes near it.
    """
    counts, *of_maps = gains
    tried = [(p, gain) for p, gain in zip(permutations, of_maps, strict=True) if np.isfinite(gain).all()]
    risen = -sum(gain @ counts for _, gain in tried) / counts.sum()
    first = sum(lowering.forecast(permutation, 0.0) for permutation, _ in tried)
    second = sum(lowering.forecast(permutation, 1.0) for permutation, _ in tried) - first
    if second <= 0:
        return lowering
    return replace(lowering, curvature=max(float((risen - first) / second), LEAST_CURVATURE))


def lower_tokens(
    model: nn.Module,
    layers: Sequence[Any],
    inputs: Tensor,
    targets: Tensor,
    loss: Loss,
    *,
    max_rows: int = MAX_ROWS,
    chunk_size: int = 4096,
    tried: int = 8,
    **keywords: Tensor,
) -> list[TokenLowering]:
    """Make the search problems of layers whose rows are tokens, by one forward and one backward of the model.

    Where the loss of a sequence is made by a model that mixes tokens after the layer, as attention does, no sample has
    a loss of its own for each of its slots, and `lower` cannot take the layer. What is left is the derivative of the
    loss by the outputs of the layer, for each token, which one backward gives for all layers.

    Parameters
    ----------
    model : Module
        Called as ``model(inputs)``, in eval mode and left as it was.
    layers : sequence of MixtureOfExperts
        Submodules of `model`, each of which runs once in a forward.
    inputs, targets : Tensor
        Shape [B, ...], B sequences.
    loss : callable
        ``loss(outputs, targets)``, a scalar: the mean over the sequences, or, for targets of integers, over all that
        are not -100, as `torch.nn.functional.cross_entropy` has it.
    max_rows : int, default 4096
        The most tokens that the quadratic problem keeps, n d numbers for each.
    chunk_size : int, default 4096
        The most tokens that go through the model, and through every expert, at once.
    tried : int, default 8
        How many maps of each layer, of one to eight swaps, the scale of its forecasts is measured by, with a forward
        for each; 0 leaves it at 1, that of small changes. A map under which the loss is not finite tells nothing.
    **keywords : Tensor
        What else the model takes, such as ``attention_mask``; shape [B, ...] each.

    Returns
    -------
    list of TokenLowering
        One for each layer.

    Raises
    ------
    ValueError
        If a layer does not run once, the loss does not depend on it, or is no such mean.
    NonFiniteLossError
        If the loss, a gradient, or what an expert answers, is NaN or infinite.

    References
    ----------
    The metric of the quadratic term is that of natural gradients: S. Amari, Neural Computation 10 (1998), 251-276.

    Examples
    --------
    >>> import torch
    >>> import moe_search as ms
    >>> _ = torch.manual_seed(0)
    >>> moe = ms.MixtureOfExperts(ms.StackedExperts(4, 8, 8), ms.TopK(8, 4, k=2))
    >>> class Tokens(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.moe, self.head = moe, torch.nn.Linear(8, 3)
    ...     def forward(self, inputs):
    ...         rows = self.moe(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
    ...         return self.head(rows.mean(1))  # one answer for a sequence
    >>> inputs, targets = torch.randn(16, 5, 8), torch.randint(3, (16,))
    >>> [lowering] = ms.lower_tokens(Tokens(), [moe], inputs, targets, torch.nn.functional.cross_entropy)
    >>> lowering.num_samples, lowering.num_rows, lowering.forecast(lowering.initial)
    (16, 80, 0.0)
    """
    seen, batches = [token_layer(layer) for layer in layers], [Batch(inputs, targets, keywords=keywords)]
    require_integer("tried", tried, 0)
    batches[0].require(1)
    lowerings = []
    with frozen(model):
        opened = open_tokens(model, seen, loss, batches, chunk_size)
        for index, layer in enumerate(seen):
            lowering = lower_rows(layer, opened, index, max_rows, chunk_size)
            assert lowering is not None
            if tried and layer.expert_map.num_slots > 1:
                maps = maps_nearby(layer.expert_map, tried)
                gains = gains_of_maps(model, layer.expert_map, loss, maps, batches, chunk_size)
                lowering = scaled(lowering, maps, gains)
            lowerings.append(lowering)
    return lowerings
