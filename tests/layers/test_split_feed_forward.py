import pytest
import torch
from torch import nn

from moe_search.layers.split_feed_forward import deal_neurons, split_feed_forward


def layer(h=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, h).double(), nn.Linear(h, 3).double()


def inputs():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_most_important_neurons_are_shared_and_the_rest_dealt_round():
    importance = torch.tensor([0.1, 0.9, 0.3, 0.3, 0.8, 0.2, 0.7, 0.0])
    # The order of importance is 1, 4, 6, 2, 3, 5, 0, 7.
    assert deal_neurons(importance, 2, 4, 2).tolist() == [[1, 4, 6, 3], [1, 4, 2, 5]]
    assert deal_neurons(importance, 3, 2, 0).tolist() == [[1, 2], [4, 3], [6, 5]]
    assert deal_neurons(importance, 2, 3, 3).tolist() == [[1, 4, 6]] * 2
    assert sorted(deal_neurons(importance, 1, 8, 5)[0].tolist()) == list(range(8))


@pytest.mark.parametrize("shared", [0, 4, 6])
def test_one_expert_with_all_neurons_is_the_layer(shared):
    first, second = layer()
    neurons = deal_neurons(torch.rand(6, generator=torch.Generator().manual_seed(2)), 1, 6, shared)
    experts = split_feed_forward(first, second, nn.GELU, neurons)
    expected = second(nn.functional.gelu(first(inputs())))
    assert torch.allclose(experts(inputs())[:, 0], expected, rtol=0, atol=1e-14)


def test_experts_add_up_to_the_layer_but_for_the_bias_of_each():
    first, second = layer()
    experts = split_feed_forward(first, second, nn.GELU, torch.tensor([[5, 0], [1, 3], [2, 4]]))
    expected = second(nn.functional.gelu(first(inputs())))
    assert torch.allclose(experts(inputs()).sum(1) - 2 * second.bias, expected, rtol=0, atol=1e-14)


def test_weights_are_copies_and_no_random_number_is_taken():
    first, second = layer()
    before = torch.get_rng_state()
    experts = split_feed_forward(first, second, nn.ReLU, torch.tensor([[0, 1], [2, 0]]))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(experts.weights[0][1, 0], first.weight[2])
    with torch.no_grad():
        experts.weights[0].zero_()
    assert bool((first.weight != 0).all())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3), 1, 1, 0), ValueError, r"importance must be finite and of shape \[h\], got shape \(2, 3\)"),
        ((torch.tensor([1.0, float("nan")]), 1, 1, 0), ValueError, "importance must be finite"),
        ((torch.zeros(6), 2, 2, 3), ValueError, "shared must be 0 .. 2, the neurons of an expert, got 3"),
        ((torch.zeros(6), 3, 3, 1), ValueError, "must have 7 neurons for 3 experts of 3 with 1 in common, .* of 6"),
        ((torch.zeros(6), 2.0, 3, 1), TypeError, "num_experts must be an integer, got 2.0"),
        ((torch.zeros(6), 2, 0, 0), ValueError, "neurons must be an integer >= 1, got 0"),
    ],
)
def test_neurons_that_cannot_be_dealt(arguments, error, message):
    with pytest.raises(error, match=message):
        deal_neurons(*arguments)


@pytest.mark.parametrize(
    ("first", "second", "neurons", "message"),
    [
        (nn.Linear(4, 6, bias=False), nn.Linear(6, 3), [[0]], "must have a bias, got one without"),
        (nn.Linear(4, 6), nn.Linear(5, 3), [[0]], "second must take the 6 neurons of first, got 5 in_features"),
        (nn.Linear(4, 6), nn.Linear(6, 3), [[0, 6]], r"hold neurons 0 .. 5, got shape \(1, 2\) and \[\[0, 6\]\]"),
        (nn.Linear(4, 6), nn.Linear(6, 3), [0, 1], r"neurons must be of shape \[n, d\]"),
    ],
    ids=["no bias", "no fit", "no such neuron", "one axis"],
)
def test_layers_that_cannot_be_split(first, second, neurons, message):
    with pytest.raises(ValueError, match=message):
        split_feed_forward(first, second, nn.GELU, torch.tensor(neurons))
