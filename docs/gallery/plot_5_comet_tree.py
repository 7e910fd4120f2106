"""
How a COMET tree routes
=======================

A COMET gate is a tree: every split sends a part of a sample to the left, the
rest to the right, and a leaf is a slot. With a small width ``gamma`` of the
smooth steps, most samples reach few leaves. The expert map says which expert
stands at a leaf.
"""

import matplotlib.pyplot as plt
import torch

import moe_search as ms

torch.manual_seed(0)
gate = ms.COMET(in_features=2, num_experts=4, k=1, gamma=0.5)
side = torch.linspace(-2, 2, 121)
inputs = torch.cartesian_prod(side, side)
with torch.no_grad():
    probabilities = gate(inputs).probabilities[:, 0]
experts = gate.expert_map.experts[0].tolist()
reached = (probabilities > 0).float().sum(1)
print(f"{reached.mean():.2f} of 4 leaves a sample, on the average")

# %%
# The probability of every leaf over the plane of two features.

figure, axes = plt.subplots(
    1, 4, figsize=(9, 2.6), layout="constrained", sharey=True
)
for slot, axis in enumerate(axes):
    image = axis.imshow(
        probabilities[:, slot].view(121, 121).T,
        origin="lower",
        extent=(-2, 2, -2, 2),
        vmin=0,
        vmax=1,
        cmap="Blues",
    )
    axis.set_title(f"slot {slot}: expert {experts[slot]}", fontsize=10)
figure.colorbar(image, ax=axes, label="probability")
