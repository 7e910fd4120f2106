"""
Training with a search that wins
================================

Sixteen specialists came in another order than the gate expects, as after
loading them from elsewhere. Gradient alone has to train gate and experts around
the wrong order; a search finds the right one, and training goes on from there.
"""

import copy

import matplotlib.pyplot as plt
import torch

import moe_search as ms

torch.manual_seed(0)
intact = ms.MixtureOfExperts(ms.StackedExperts(16, 16, 4), ms.TopK(16, 16, k=2))
inputs = torch.randn(4096, 16)
targets = intact(inputs).detach() + 0.05 * torch.randn(4096, 4)
scrambled = copy.deepcopy(intact)
scrambled.gate.expert_map.scramble(torch.Generator().manual_seed(0))
loss_fn = torch.nn.functional.mse_loss


def train(with_search):
    model = copy.deepcopy(scrambled)
    optimizer = torch.optim.Adam(model.parameters())
    stop = ms.MaxIterations(20_000)
    search = ms.PermutationSearch(
        model, model, loss=loss_fn, period=20, until=100, stop=stop
    )
    losses = []
    for x, y in zip(inputs.split(32), targets.split(32), strict=True):
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if with_search:
            search.step(x, y)
    return losses, search.history


alone, _ = train(with_search=False)
searched, history = train(with_search=True)
for record in history:
    print(f"step {record.step}: {record.outcome}")

# %%
# The jumps are the committed maps; the dashed line is the noise in the targets,
# which no model gets below.

figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
axis.plot(alone, color="0.6", label="gradient alone")
axis.plot(searched, color="#0072B2", label="with search")
axis.axhline(0.05**2, linestyle="--", color="0.3", linewidth=1, label="noise")
axis.set_yscale("log")
axis.set_xlabel("step")
axis.set_ylabel("training loss")
axis.set_title("Specialists in the wrong order", loc="left")
axis.legend(frameon=False)
