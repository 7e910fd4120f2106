"""How EPLB's algorithm is packed elsewhere: the same map, but for precision, in another time.

`moe_search.serving.greedy_eplb` packs all layers at once; vLLM's policy one layer after the other, and EPLB itself
tensors, element by element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moe_search.serving.greedy_eplb import Ints, one_each


def packed_by_layer(weight: npt.NDArray[Any], packs: int) -> tuple[Ints, Ints]:
    """Return what `packed` does, item by item of one layer after the other."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return one_each(rows, items)
    pack, rank = np.empty((rows, items), dtype=np.int64), np.empty((rows, items), dtype=np.int64)
    for row, order in enumerate(np.argsort(-weight, axis=1, kind="stable")):
        borne, held = np.zeros(packs), np.zeros(packs, dtype=np.int64)
        for item in order:
            chosen = int(np.argmin(borne))
            pack[row, item], rank[row, item] = chosen, held[chosen]
            held[chosen] += 1
            borne[chosen] = np.inf if held[chosen] == room else borne[chosen] + weight[row, item]
    return pack, rank


def packed_by_element(weight: npt.NDArray[Any], packs: int) -> tuple[Ints, Ints]:
    """Return what `packed` does in single precision, by elements of tensors."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return one_each(rows, items)
    weights = torch.from_numpy(np.ascontiguousarray(weight)).float()
    pack, rank = torch.empty(rows, items, dtype=torch.int64), torch.empty(rows, items, dtype=torch.int64)
    for row, order in enumerate(weights.sort(dim=1, descending=True, stable=True).indices):
        borne: list[Any] = [0.0] * packs
        held = [0] * packs
        for item in order:
            chosen = min((each for each in range(packs) if held[each] < room), key=borne.__getitem__)
            pack[row, item], rank[row, item] = chosen, held[chosen]
            held[chosen] += 1
            borne[chosen] = borne[chosen] + weights[row, item]
    return pack.numpy(), rank.numpy()
