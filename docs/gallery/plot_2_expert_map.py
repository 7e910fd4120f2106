"""
The expert map, before and after a search
=========================================

Eight experts that fit their slots, a map that was scrambled, and one search
that puts every expert back. The samples of a Top-1 gate have one slot each, so
that the problem is a linear assignment, solved to optimality.
"""

import matplotlib.pyplot as plt
import torch

import moe_search as ms
from moe_search.plotting import MapPanel, NamedMap, expert_maps

torch.manual_seed(0)
moe = ms.MixtureOfExperts(
    ms.StackedExperts(8, in_features=16, out_features=4),
    ms.TopK(16, num_experts=8, k=1),
)
inputs = torch.randn(512, 16)
targets = moe(inputs).detach()

expert_map = moe.gate.expert_map
intact = expert_map.experts[0].clone()
expert_map.scramble(torch.Generator().manual_seed(3))
scrambled = expert_map.experts[0].clone()

loss_fn = torch.nn.functional.mse_loss
search = ms.PermutationSearch(moe, moe, loss=loss_fn, period=2)
for x, y in zip(inputs.split(256), targets.split(256), strict=True):
    record = search.step(x, y)
print(f"{record.problem}: {record.outcome}")
print(f"mean loss {record.value_before:.3f} -> {record.value_found:.3f}")

# %%
# A column is a slot, a number its expert.

rows = (
    NamedMap("intact", intact.numpy()),
    NamedMap("scrambled", scrambled.numpy()),
    NamedMap("after search", expert_map.experts[0].numpy()),
)
panel = MapPanel("A Top-1 gate of eight slots", rows)
plt.figure(expert_maps([panel], num_experts=8))
