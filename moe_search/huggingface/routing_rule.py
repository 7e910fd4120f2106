"""By which rule a router goes from its logits to experts and weights: found by trying, and tested on fewer experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moe_search.huggingface.calibration import LayerRows
from moe_search.huggingface.mixture_layers import MoELayer
from moe_search.huggingface.selection import smaller_router
from moe_search.problems.expert_subset import ExpertSubset, Share, routed_weights

MOST_TESTED = 256
"""Rows that a rule is tested on."""

AGREEING = 0.99
"""The part of them that must agree: equal scores in low precision may be taken in another order."""


@dataclass(frozen=True, eq=False)
class RoutingRule:
    """What a row's experts and weights come from.

    Parameters
    ----------
    scores, strengths : ndarray, shape (rows, n)
        As in `ExpertSubset`.
    scale : float
        What all weights are multiplied by in the end.
    groups : dict
        The arguments of `ExpertSubset` that tell of groups.
    share : str
        As in `ExpertSubset`.
    """

    scores: npt.NDArray[np.float32]
    strengths: npt.NDArray[np.float32]
    share: Share
    scale: float
    groups: dict[str, Any]

    def problem(
        self, gram: npt.NDArray[Any], products: npt.NDArray[Any], energies: npt.NDArray[Any], keep: int, k: int
    ) -> ExpertSubset:
        """Return the problem of a layer with this rule."""
        return ExpertSubset(
            self.scores,
            self.strengths,
            # The scale of weights is one of outputs.
            gram * np.float32(self.scale**2),
            products * np.float32(self.scale),
            energies,
            keep=keep,
            k=k,
            share=self.share,
            **self.groups,
        )

    def weights(self, kept: npt.NDArray[Any], k: int, rows: int) -> npt.NDArray[np.float64]:
        """Return the weights of the first rows where some experts are kept only."""
        told = routed_weights(kept, self.scores[:rows], self.strengths[:rows], k, self.share, **self.groups)
        return self.scale * told


@torch.no_grad()
def routing_rule(layer: MoELayer, rows: LayerRows, keep: int, seed: int = 0) -> RoutingRule | None:
    """Return the rule of a router, or None if it follows none of those that are known.

    Known are softmax before or after the choice of the k highest, or sigmoids, shared out or not, scaled, with a bias
    of sigmoids in the choice, among all experts or those of the best groups. What is found gives the weights of the
    layer, and those of a router that was cut down to some random experts.
    """
    count = min(len(rows.logits), MOST_TESTED)
    n, rng = layer.num_experts, np.random.default_rng(seed)
    size, stay = n // layer.num_groups, keep // layer.num_groups
    subset = np.sort(
        np.concatenate([g * size + rng.choice(size, stay, replace=False) for g in range(layer.num_groups)])
    ).astype(np.int64)
    every = np.arange(n)
    seen = rows.weights[:count].cpu().double().numpy()
    _, weights, index, *_ = smaller_router(layer, subset)(rows.hidden[:count])
    anew = np.zeros_like(seen)
    np.put_along_axis(anew, subset[index.cpu().numpy()], weights.double().cpu().numpy(), axis=1)
    tolerance = 1e-4 if rows.weights.dtype in (torch.float32, torch.float64) else 2e-2
    for rule in _candidates(layer, rows):
        told = rule.weights(every, layer.top_k, count)
        given = told > 0
        if not given.any():
            continue
        scale = float(np.median(seen[given] / told[given]))
        scaled = replace(rule, scale=scale)
        if _agree(scale * told, seen, tolerance) and _agree(
            scaled.weights(subset, layer.top_k, count), anew, tolerance
        ):
            return scaled
    return None


def _agree(told: npt.NDArray[np.float64], seen: npt.NDArray[np.float64], tolerance: float) -> bool:
    near = np.abs(told - seen) <= tolerance * np.abs(seen).max()
    return bool(near.all(axis=1).mean() >= AGREEING)


def _candidates(layer: MoELayer, rows: LayerRows) -> list[RoutingRule]:
    """Return all rules that are known, on the logits of some rows."""
    logits = rows.logits.float().cpu()
    raised = (logits - logits.max(1, keepdim=True).values).exp().numpy()
    sigmoids = logits.sigmoid().numpy()
    limits: list[dict[str, Any]] = [{}]
    opened = getattr(layer.router, "topk_group", None)
    if layer.num_groups > 1:
        limits = [{"num_groups": layer.num_groups}]
        if opened is not None and opened < layer.num_groups:
            limits += [{**limits[0], "open_groups": opened, "group_depth": depth} for depth in (1, 2)]
    shares: tuple[Share, Share] = ("chosen", "kept")
    # Groups are judged by probabilities, which a row's largest logit does not change the order of.
    found = [RoutingRule(raised, raised, share, 1.0, groups) for groups in limits for share in shares]
    shares = ("chosen", "none")
    for bias in (None, *_vectors(layer.router, layer.num_experts)):
        scores = sigmoids if bias is None else sigmoids + bias.float().cpu().numpy()
        found += [RoutingRule(scores, sigmoids, share, 1.0, groups) for groups in limits for share in shares]
    return found


def _vectors(router: nn.Module, n: int) -> list[Tensor]:
    """Return the parameters and buffers of a router with one number an expert."""
    return [each.flatten() for each in (*router.parameters(), *router.buffers()) if each.numel() == n]
