"""
A map that spreads the load
===========================

A gate with four slots an expert sends most samples to few of its slots, and
these stand at few experts. A map cannot change what a slot bears, but it can
deal the crowded slots to different experts: a search under a load limit does.
"""

import matplotlib.pyplot as plt
import torch

import moe_search as ms

torch.manual_seed(0)
moe = ms.MixtureOfExperts(
    ms.StackedExperts(6, 16, 4), ms.TopK(16, num_experts=6, k=1, num_slots=24)
)
with torch.no_grad():
    # The first slots, of the first experts, are crowded.
    moe.gate.linear.bias += torch.linspace(0.5, -0.5, 24)
inputs, targets = torch.randn(2048, 16), torch.randn(2048, 4)


def load():
    statistics = ms.RoutingStatistics()
    with statistics.watch(moe), torch.no_grad():
        moe(inputs)
    return statistics.summary().load


before = load()
loss_fn = torch.nn.functional.mse_loss
search = ms.PermutationSearch(moe, moe, loss=loss_fn, period=2, load_limit=1.25)
for x, y in zip(inputs.split(1024), targets.split(1024), strict=True):
    record = search.step(x, y)
after = load()
print(f"{record.outcome}: the most that an expert bears of 2048 samples")
print(f"falls from {before.max()} to {after.max()}")

# %%
# The dashed line is an even share.

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
places = torch.arange(6)
axis.bar(places - 0.2, before, 0.38, color="0.7", label="before")
axis.bar(places + 0.2, after, 0.38, color="#0072B2", label="after")
axis.axhline(2048 / 6, linestyle="--", color="0.3", linewidth=1)
axis.set_xlabel("expert")
axis.set_ylabel("samples")
axis.set_title("Load of the experts", loc="left")
axis.legend(frameon=False)
