import pytest
import torch
from torch import nn

from moe_search.layers.cluster_neurons import cluster_neurons
from moe_search.layers.mixture_of_experts import MixtureOfExperts
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
        (nn.Linear(4, 6), nn.Linear(5, 3), [[0]], "second must take the 6 neurons of first, got 5 in_features"),
        (nn.Linear(4, 6), nn.Linear(6, 3), [[0, 6]], r"neurons must be in 0 .. 5, got 0 .. 6"),
        (nn.Linear(4, 6), nn.Linear(6, 3), [0, 1], r"neurons must have shape \[n, d\], got \(2,\)"),
        (nn.Linear(4, 6), nn.Linear(6, 3), [[0, 0], [1, 2]], "neurons must have no neuron twice in an expert"),
        (nn.Linear(4, 6), nn.Linear(6, 3), [[0.0]], r"neurons must be a tensor of integers, got torch\.float32"),
    ],
    ids=["no fit", "no such neuron", "one axis", "twice", "no integers"],
)
def test_layers_that_cannot_be_split(first, second, neurons, message):
    with pytest.raises((TypeError, ValueError), match=message):
        split_feed_forward(first, second, nn.GELU, torch.tensor(neurons))


def rows(count=40):
    return torch.randn(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def made(gated, bias, h=8):
    """Return the affine maps of a layer, the second one into the neurons for gated ones, and what its neurons give."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        first, second, gated_by = nn.Linear(4, h, bias), nn.Linear(h, 3, bias), nn.Linear(4, h, bias)
    first, second, gated_by = first.double(), second.double(), gated_by.double() if gated else None

    def hidden(x):
        return nn.functional.silu(gated_by(x)) * first(x) if gated else nn.functional.silu(first(x))

    return first, second, gated_by, hidden


@pytest.mark.parametrize("router", ["ridge", "oracle", "train"])
@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False), (True, True), (False, False)])
def test_skipped_neurons_give_their_mean_and_shared_ones_are_never_skipped(gated, bias, router):
    first, second, gated_by, hidden = made(gated, bias)
    neurons = torch.tensor([[1, 0, 7], [1, 2, 3], [1, 5, 4]])  # 1 is shared, 6 is in none
    x = rows()
    for mean in (True, False):
        experts, gate = split_feed_forward(
            first, second, nn.SiLU, neurons, router, active=2, inputs=x, mean=mean, gated_by=gated_by
        )
        values = hidden(x)
        means = values.mean(0) if mean else torch.zeros(8, dtype=x.dtype)
        run = gate(x).weights[:, 0] > 0
        assert run.sum(1).tolist() == [2] * len(x)
        kept = torch.zeros(len(x), 8, dtype=torch.bool)
        for e, own in enumerate(neurons.tolist()):
            kept[:, own] |= run[:, e, None]
        expected = second(torch.where(kept, values, means))
        assert torch.allclose(MixtureOfExperts(experts, gate)(x), expected, rtol=0, atol=1e-12)
        if router == "oracle":
            lost = ((values - means) * second.weight.norm(dim=0)).square()
            mass = torch.stack([lost[:, own[1:]].sum(1) for own in neurons.tolist()], 1)
            assert torch.equal(run, torch.zeros_like(run).scatter(1, mass.topk(2).indices, True))
        # Its parameters, the maps of experts and the gate's, all can be trained on.
        assert all(each.requires_grad for each in experts.parameters())


def test_routers_learn_what_the_oracle_sees():
    # The sign of a feature says which half of the neurons is at work.
    first, second = nn.Linear(4, 8, bias=False), nn.Linear(8, 3)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]).repeat_interleave(4, 0))
        second.weight.fill_(1.0)
    x = rows(200).float()
    neurons = torch.arange(8).view(2, 4)
    oracle, ridge, train = (
        split_feed_forward(first, second, nn.ReLU, neurons, router, active=1, inputs=x, mean=False)[1](x).weights
        for router in ("oracle", "ridge", "train")
    )
    assert (oracle == ridge).float().mean() > 0.9
    assert (oracle == train).float().mean() > 0.9
    with torch.inference_mode():
        gate = split_feed_forward(first, second, nn.ReLU, neurons, "train", active=1, inputs=x.clone(), mean=False)[1]
        assert torch.equal(gate(x).weights, train)


@pytest.mark.slow
def test_clustered_neurons_are_those_that_work_together():
    hidden = torch.randperm(24, generator=torch.Generator().manual_seed(0)).view(4, 6)
    generator = torch.Generator().manual_seed(1)
    on = torch.rand(100, 4, generator=generator).argsort(1) < 2
    values = torch.rand(100, 24, generator=generator)
    for e, own in enumerate(hidden):
        values[:, own] *= on[:, e, None]
    found = cluster_neurons(values, torch.eye(24), 4, 2, mean=False)
    assert {tuple(sorted(own.tolist())) for own in found} == {tuple(sorted(own.tolist())) for own in hidden}
    for neuron, shift in ((hidden[0, 0], 9.0), (hidden[1, 0], 9 * torch.randn(100, generator=generator))):
        values[:, neuron] += shift
    for mean, strongest in ((True, hidden[1:2, 0]), (False, hidden[:2, 0])):
        found = cluster_neurons(values, torch.ones(24), 2, 1, shared=2, mean=mean)
        assert set(strongest.tolist()) <= set(found[0, :2].tolist())
        assert torch.equal(found[0, :2], found[1, :2])
        assert sorted(found[:, 2:].flatten().tolist() + found[0, :2].tolist()) == list(range(24))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": "linear"}, "router must be one of ridge, oracle, train, got 'linear'"),
        ({"active": None}, "active and inputs must be given with a router"),
        ({"active": 3}, "active must be at most the number of experts, 2, got 3"),
        ({"inputs": torch.zeros(5, 3)}, r"inputs must have shape \[rows, 4\], one row at least, got \(5, 3\)"),
        ({"inputs": torch.zeros(0, 4)}, r"inputs must have shape \[rows, 4\], one row at least, got \(0, 4\)"),
        ({"inputs": torch.full((5, 4), torch.nan)}, "inputs must be finite"),
        ({"gated_by": nn.Linear(4, 5)}, r"gated_by must have the shape of first, \(6, 4\), got \(5, 4\)"),
    ],
)
def test_routers_that_cannot_be_made(changes, message):
    given = {"router": "ridge", "active": 1, "inputs": torch.zeros(5, 4)} | changes
    with pytest.raises(ValueError, match=message):
        split_feed_forward(nn.Linear(4, 6), nn.Linear(6, 3), nn.ReLU, torch.arange(6).view(2, 3), **given)
    with pytest.raises(ValueError, match="neurons must have each neuron in one expert, in all or in none"):
        split_feed_forward(
            nn.Linear(4, 6),
            nn.Linear(6, 3),
            nn.ReLU,
            torch.tensor([[0], [0], [1]]),
            "ridge",
            active=1,
            inputs=rows().float(),
        )


@pytest.mark.parametrize(
    ("activations", "weights", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"activations must have shape \[rows, h\], got \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2), r"output_weights must have shape \[out, 3\] or \[3\], got \(2,\)"),
    ],
)
def test_neurons_that_cannot_be_clustered(activations, weights, message):
    with pytest.raises(ValueError, match=message):
        cluster_neurons(activations, weights, 2, 1)
