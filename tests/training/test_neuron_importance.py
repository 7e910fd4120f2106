import pytest
import torch
from torch import nn

from moe_search.training.neuron_importance import neuron_importance


def naive(model, pairs, losses, batches):
    """The definition: one sample, one backward pass, one product of weights and their gradients at a time."""
    scores = [torch.zeros(first.out_features, dtype=torch.float64) for first, _ in pairs]
    for batch in batches:
        for b in range(len(batch)):
            model.zero_grad()
            losses(batch[b : b + 1]).sum().backward()
            for score, (first, second) in zip(scores, pairs, strict=True):
                score += ((first.weight * first.weight.grad).sum(1) + (second.weight * second.weight.grad).sum(0)).abs()
    return scores


class Tokens(nn.Module):
    """Two feed-forward layers, one after the other, on every token, the tokens mixed between."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (
            nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 3)]),
            nn.ModuleList([nn.Linear(3, 4, bias=False), nn.Linear(4, 3)]),
        )

    def forward(self, x):
        for a, b in (self.first, self.second):
            x = x + b(nn.functional.gelu(a(x)))
            x = x + x.mean(-2, keepdim=True)
        return x

    def pairs(self):
        return [tuple(self.first), tuple(self.second)]


def test_importance_by_hand():
    first, second = nn.Linear(1, 2), nn.Linear(2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.copy_(torch.tensor([0.0, 0.5]))
        second.weight.copy_(torch.tensor([[3.0, 1.0]]))
        second.bias.zero_()
    # At x = 2 the neurons are 2 and -1.5 and the output 4.5. With half the squared distance from 2.5, dL/dy = 2:
    # neuron 0: 3 * 2 * 2 out and 1 * 2 * 3 * 2 in; neuron 1: 1 * -1.5 * 2 out and -1 * 2 * 1 * 2 in.
    # At x = 0 they are 0 and 0.5, the output 0.5, dL/dy = -2: 0, and 1 * 0.5 * -2 out.
    (score,) = neuron_importance(
        [(first, second)], lambda x: 0.5 * (second(first(x))[:, 0] - 2.5).square(), [torch.tensor([[2.0], [0.0]])]
    )
    assert score.tolist() == [24.0, 8.0]


@pytest.mark.parametrize("frozen", [False, True])
def test_importance_of_tokens_by_its_definition(frozen):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tokens().double()
        batches = [torch.randn(size, 6, 3, dtype=torch.float64) for size in (4, 3)]

    def losses(batch):
        return model(batch).square().sum(2).amax(1)

    expected = naive(model, model.pairs(), losses, batches)
    model.requires_grad_(not frozen)
    found = neuron_importance(model.pairs(), losses, batches)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_cannot_be_scored():
    model = Tokens()
    batch = torch.randn(2, 6, 3)
    with pytest.raises(ValueError, match="layers must hold at least one pair, got none"):
        neuron_importance([], lambda x: model(x).sum((1, 2)), [batch])
    with pytest.raises(ValueError, match="batches must hold at least one, got none"):
        neuron_importance(model.pairs(), lambda x: model(x).sum((1, 2)), [])
    with pytest.raises(ValueError, match=r"must return shape \(2,\), one loss a sample, got \(\)"):
        neuron_importance(model.pairs(), lambda x: model(x).sum(), [batch])
    with pytest.raises(ValueError, match="call every layer once, got 2 calls of its first map and 2 of its second"):
        neuron_importance(model.pairs(), lambda x: model(model(x)).sum((1, 2)), [batch])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
