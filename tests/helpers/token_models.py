"""A model whose mixtures see tokens, which the loss couples."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import moe_search as ms
from moe_search.training.lowering.batch import Batch

WIDTH, TOKENS, CLASSES, EXPERTS = 6, 5, 4, 4


class Teacher(nn.Module):
    """Two mixtures whose experts differ, with tokens mixed between and after them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            ms.MixtureOfExperts(ms.StackedExperts(EXPERTS, WIDTH, WIDTH), ms.TopK(WIDTH, EXPERTS, k=2))
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        hidden = inputs
        for layer in self.layers:
            hidden = hidden + layer(hidden.flatten(0, 1)).unflatten(0, inputs.shape[:2])
            hidden = (hidden + hidden.roll(1, 1)) / 2
        return self.head(hidden)


def token_loss(outputs, targets):
    return cross_entropy(outputs.flatten(0, 1), targets.flatten())


def taught(seed=0, sequences=120):
    """Return a model, and sequences whose targets it foretells well under its present maps."""
    torch.manual_seed(seed)
    model = Teacher().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
        inputs = torch.randn(sequences, TOKENS, WIDTH)
        targets = model(inputs).argmax(2)
    targets[:, 0] = -100
    return (
        model,
        Batch(inputs[: sequences // 2], targets[: sequences // 2]),
        Batch(inputs[sequences // 2 :], targets[sequences // 2 :]),
    )
