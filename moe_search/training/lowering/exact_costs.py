"""Costs that are exact under any loss and through any head: of one slot, and of a pair of slots."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from moe_search.training.lowering.forward_pass import Opened

PAIRWISE_BYTES = 1 << 30
"""What the arrays of a pairwise problem may take."""

COPIES = 3
"""Its costs are there three times: the sums made here, the problem's own, and its coupling."""


def slot_costs(opened: Opened) -> NDArray[np.float64]:
    """Return ``cost[s, e]``, the summed loss of the rows of slot s when expert e answers; shape (m, n).

    Every row, a sample and a task, must give weight to one slot.
    """
    m, n = opened.num_slots, opened.tasks.expert_map.num_experts
    cost = np.zeros((m, n))
    for chunk in opened.chunks:
        weights, at = chunk.slot_weights[:, 0].max(1)
        slots = at.cpu().numpy()
        answers = opened.expert_outputs(chunk)
        answers = answers * weights.to(answers.dtype).reshape(-1, *[1] * (answers.ndim - 1))
        for experts in opened.alternatives(chunk, n):
            np.add.at(cost[:, experts], slots, opened.losses_of(chunk, answers[:, experts]))
    return cost


def pair_costs(opened: Opened) -> NDArray[np.float64]:
    """Return ``cost[s, t, e, f]``, the summed loss of the rows of slots s and t under e and f; shape (m, m, n, n).

    No row, a sample and a task, may give weight to more than two slots. One with a slot s alone counts in
    ``cost[s, s, e, e]``, one with two in that of its first slot and its second, s < t.
    """
    m, n = opened.num_slots, opened.tasks.expert_map.num_experts
    size = 8 * COPIES * (m * n) ** 2
    if size > PAIRWISE_BYTES:
        raise ValueError(
            f"a PairwiseAssignment must take at most {PAIRWISE_BYTES / 2**30:.3g} GiB, that of {m} slots and {n} "
            f"experts takes {size / 2**30:.3g}: search under a loss that a mixture knows, or with fewer slots"
        )
    cost = np.zeros((m * m, n * n))
    first, second = (index.flatten() for index in np.divmod(np.arange(n * n), n))
    for chunk in opened.chunks:
        # A slot more, of weight 0: there may be only one.
        weights, slots = torch.nn.functional.pad(chunk.slot_weights.flatten(1), (0, 1)).topk(2, dim=1)
        # The second of a row with one slot has weight 0 and may be any: let it be the first.
        slots = torch.where(weights > 0, slots, slots[:, :1])
        order = slots.argsort(dim=1, stable=True)
        weights, slots = weights.gather(1, order), slots.gather(1, order)
        pairs = (slots[:, 0] * m + slots[:, 1]).cpu().numpy()
        answers = opened.expert_outputs(chunk)
        shape = (-1, 1) + (1,) * (answers.ndim - 2)
        g, h = (w.to(answers.dtype).reshape(shape) for w in (weights[:, 0], weights[:, 1]))
        for some in opened.alternatives(chunk, n * n):
            mixtures = g * answers[:, first[some]] + h * answers[:, second[some]]
            np.add.at(cost[:, some], pairs, opened.losses_of(chunk, mixtures))
    of_pairs = cost.reshape(m, m, n, n)
    # What a slot costs beside itself is kept with one expert only: no map gives it two.
    s, e = np.arange(m), np.arange(n)
    kept = of_pairs[s[:, None], s[:, None], e, e].copy()
    of_pairs[s, s] = 0.0
    of_pairs[s[:, None], s[:, None], e, e] = kept
    return of_pairs
