import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import moe_search as ms
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.losses import NonFiniteLossError, sequence_losses
from moe_search.training.lowering.token_lowering import gains_of_maps, maps_nearby, scaled
from moe_search.training.search.verification import verify_tokens

TOKENS, WIDTH, CLASSES = 6, 5, 7


class TokenModel(nn.Module):
    """Two mixtures of tokens, between and after which tokens are mixed; dropout would show that it was not frozen."""

    def __init__(self, gate, experts=4, dropout=0.3):
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(
            ms.MixtureOfExperts(ms.StackedExperts(experts, WIDTH, WIDTH, hidden_features=6), gate()) for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs):
        hidden = self.embedding(inputs)
        for layer in self.layers:
            # In place, as some heads are.
            hidden = layer(hidden.flatten(0, 1)).unflatten(0, inputs.shape).add_(hidden)
            hidden = self.dropout(hidden.cumsum(1).tanh())
        return self.head(hidden)


GATES = {
    "top 1": lambda: ms.TopK(WIDTH, 4, k=1),
    "top 2 of 8 slots": lambda: ms.TopK(WIDTH, 4, k=2, num_slots=8),
    "COMET": lambda: ms.COMET(WIDTH, 4, k=2),
}


def token_loss(outputs, targets):
    return cross_entropy(outputs.flatten(0, -2), targets.flatten())


def made(name, seed=0, sequences=9):
    torch.manual_seed(seed)
    model = TokenModel(GATES[name]).double()
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(11, (sequences, TOKENS), generator=generator)
    targets = torch.randint(CLASSES, (sequences, TOKENS), generator=generator)
    targets[0, 2:] = -100
    targets[1] = -100
    for layer in model.layers:
        layer.gate.expert_map.scramble(generator)
    return model, inputs, targets


def other_maps(expert_map, seed, count=4):
    rows, m = expert_map.experts.shape
    rng = np.random.default_rng(seed)
    return [np.concatenate([t * m + rng.permutation(m) for t in range(rows)]) for _ in range(count)]


@pytest.mark.parametrize("name", GATES)
def test_problems_and_forecast_are_those_of_the_definition(name):
    model, inputs, targets = made(name)
    model.eval()
    lowerings = ms.lower_tokens(model, model.layers, inputs, targets, token_loss, chunk_size=2 * TOKENS)
    counted = int((targets != -100).sum())
    for index, (layer, lowering) in enumerate(zip(model.layers, lowerings, strict=True)):
        # The naive way: every output of the layer is a variable of its own.
        taken = {}

        def take(module, args, output, taken=taken):
            taken["inputs"], taken["output"] = args[0], output
            output.retain_grad()
            return output.clone()

        handle = layer.register_forward_hook(take)
        loss = token_loss(model(inputs), targets)
        (loss * counted).backward()
        handle.remove()
        model.zero_grad()
        gradients, present = taken["output"].grad, taken["output"].detach()
        counts = gradients.abs().amax(1) > 0
        mean_square = gradients.T @ gradients / counts.sum()
        inverse = torch.linalg.pinv(mean_square, hermitian=True, rtol=1e-6)
        shares = torch.einsum("td,de,te->t", gradients, inverse, gradients) / lowering.outputs.shape[2]
        assert lowering.loss == pytest.approx(loss.item(), rel=1e-9)
        assert lowering.num_rows == int(counts.sum())
        assert lowering.num_samples == len(inputs)
        kept = layer.gate.expert_map.experts.clone()
        weights = layer.gate(taken["inputs"]).weights
        assert lowering.slot_loads.sum() == int((weights[counts] > 0).sum())
        for permutation in other_maps(layer.gate.expert_map, index):
            layer.gate.expert_map.assign_permutation(permutation)
            with torch.no_grad():
                change = layer(taken["inputs"]) - present
            layer.gate.expert_map.assign(kept)
            first = float((gradients * change).sum()) / counted
            second = float((((change @ mean_square) * change).sum(1) * shares)[counts].sum()) / counted
            for curvature in (0.5, 2.0):
                expected = first + curvature / 2 * second
                assert lowering.forecast(permutation, curvature) == pytest.approx(expected, rel=1e-4, abs=1e-9)
                problem = lowering.quadratic(curvature)
                difference = problem.value(permutation) - problem.value(lowering.initial)
                assert difference == pytest.approx(expected, rel=1e-4, abs=1e-8)
            if lowering.first_order is not None:
                difference = lowering.first_order.value(permutation) - lowering.first_order.value(lowering.initial)
                assert difference == pytest.approx(first, rel=1e-6, abs=1e-9)
        assert (lowering.first_order is None) == (name == "COMET")


def test_forecasts_are_scaled_by_what_comes_of_some_maps():
    model, inputs, targets = made("top 1", sequences=60)
    model.eval()
    options = model, model.layers, inputs, targets, token_loss
    for layer, small, large in zip(
        model.layers, ms.lower_tokens(*options, tried=0), ms.lower_tokens(*options, tried=5), strict=True
    ):
        assert small.curvature == 1.0
        kept = layer.gate.expert_map.experts.clone()
        foretold, true = [], []
        for permutation in maps_nearby(layer.gate.expert_map, 5):
            layer.gate.expert_map.assign_permutation(permutation)
            with torch.no_grad():
                true.append(token_loss(model(inputs), targets).item() - large.loss)
            layer.gate.expert_map.assign(kept)
            foretold.append(large.forecast(permutation))
            change = small.forecast(permutation) - small.forecast(permutation, 0.0)
            assert foretold[-1] == pytest.approx(small.forecast(permutation, 0.0) + large.curvature * change)
        if large.curvature > 0.1:
            assert sum(foretold) == pytest.approx(sum(true), rel=1e-6)
        else:  # the loss falls by more than to first order
            assert sum(foretold) > sum(true)
        assert torch.equal(layer.gate.expert_map.experts, kept)


@pytest.mark.parametrize("least", [1, 5])
def test_maps_under_which_the_loss_is_not_finite_scale_no_forecast(least):
    model, inputs, targets = made("top 1", sequences=60)
    expert_map = model.layers[1].gate.expert_map
    kept, tried = expert_map.permutation(), maps_nearby(expert_map, 5)
    finite = [p for i, p in enumerate(tried) if i % 2 >= least or (p == kept).all()]

    def loss(outputs, targets):
        # As where a probability is rounded to 0.
        known = any((expert_map.permutation() == p).all() for p in [kept, *finite])
        return token_loss(outputs, targets) + (0.0 if known else float("inf"))

    options = model, model.layers[1:], inputs, targets
    [small], [large] = ms.lower_tokens(*options, token_loss, tried=0), ms.lower_tokens(*options, loss, tried=5)
    gains = gains_of_maps(model, expert_map, token_loss, finite, [Batch(inputs, targets)], 4096)
    assert large.curvature == scaled(small, finite, gains).curvature
    assert (large.curvature == 1.0) == (least == 5)
    with pytest.raises(NonFiniteLossError, match="loss must be finite, got NaN or infinity for a sequence"):
        verify_tokens(model, expert_map, loss, tried, [Batch(inputs, targets)], 4096)


def test_the_forecast_is_the_derivative_and_a_part_of_the_rows_is_close():
    model, inputs, targets = made("top 2 of 8 slots", sequences=40)
    model.eval()
    [whole] = ms.lower_tokens(model, model.layers[1:], inputs, targets, token_loss)
    [part] = ms.lower_tokens(model, model.layers[1:], inputs, targets, token_loss, max_rows=120, chunk_size=24)
    assert len(part.outputs) == 120 < len(whole.outputs) == whole.num_rows
    for permutation in other_maps(model.layers[1].gate.expert_map, 3):
        assert part.forecast(permutation) == pytest.approx(whole.forecast(permutation), rel=0.5, abs=0.02)


def test_nothing_of_it_is_left_in_the_model():
    model, inputs, targets = made("top 1")
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    first = ms.lower_tokens(model, model.layers, inputs, targets, token_loss)
    again = ms.lower_tokens(model, model.layers, inputs, targets, token_loss)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.outputs, other.outputs)


def test_what_a_sequence_counts():
    outputs = torch.randn(4, 3, 5, dtype=torch.float64)
    targets = torch.tensor([[1, 2, -100], [0, 0, 4], [-100, -100, -100], [-100, 3, -100]])
    losses, counts = sequence_losses(token_loss, outputs, targets)
    assert counts.tolist() == [2, 3, 0, 1]
    assert losses @ counts / counts.sum() == pytest.approx(token_loss(outputs, targets).item())
    # One whose targets are real numbers, and one that says that sequences count alike.
    assert sequence_losses(mse_loss, outputs, outputs + 1)[1].tolist() == [1, 1, 1, 1]

    # One that shifts targets against outputs leaves the first out, and the sequence with it that has no other.
    targets[3] = torch.tensor([2, -100, -100])
    shifted = sequence_losses(lambda o, t: token_loss(o[:, :-1], t[:, 1:]), outputs, targets)
    assert shifted[1].tolist() == [1, 2, 0, 0]
    assert shifted[0][3] == 0
    targets[3] = torch.tensor([-100, 3, -100])

    def of_sequences(outputs, targets):
        each = cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1)
        return (each / (targets != -100).sum(1).clamp(min=1)).sum() / (targets != -100).any(1).sum()

    losses, counts = sequence_losses(of_sequences, outputs, targets)
    assert counts.tolist() == [2, 2, 0, 2]
    assert losses.tolist()[2] == 0
    # One that computes in single precision.
    assert sequence_losses(lambda o, t: of_sequences(o.float(), t), outputs, targets)[1].tolist() == [2, 2, 0, 2]
    with pytest.raises(ValueError, match="mean over the sequences, or over the targets that are not -100"):
        sequence_losses(lambda o, t: 2 * token_loss(o, t) + 1 + o.mean(), outputs, targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.layers.append(model.layers[0]), "layer 0 was seen 2 times"),
        (
            lambda model: model.layers.__setitem__(0, nn.Identity()),
            "moe must be a MixtureOfExperts or .* got Identity",
        ),
    ],
)
def test_what_a_layer_must_be(change, message):
    model, inputs, targets = made("top 1")
    change(model)
    with pytest.raises((TypeError, ValueError), match=message):
        ms.lower_tokens(model, list(model.layers)[:2], inputs, targets, token_loss)


def test_a_loss_that_is_not_finite_or_not_differentiable():
    model, inputs, targets = made("top 1")
    with pytest.raises(ValueError, match="finite"):
        ms.lower_tokens(model, model.layers, inputs, targets, lambda o, t: token_loss(o, t) * float("nan"))
    with pytest.raises(ValueError, match="differentiable"):
        ms.lower_tokens(model, model.layers, inputs, targets, lambda o, t: token_loss(o.detach(), t))
    with pytest.raises(ValueError, match="by a target that counts"):
        ms.lower_tokens(model, model.layers, inputs, torch.full_like(targets, -100), token_loss)
    with pytest.raises(ValueError, match=r"inputs must hold at least one sample, got 0"):
        ms.lower_tokens(model, model.layers, inputs[:0], targets[:0], token_loss)


def test_the_solved_problem_has_the_best_forecast_of_all_maps():
    model, inputs, targets = made("top 1", sequences=60)
    model.eval()
    [lowering] = ms.lower_tokens(model, model.layers[1:], inputs, targets, token_loss)
    result = ms.solve(lowering.quadratic(1.0), seed=0)
    best = min(lowering.forecast(np.array(p)) for p in itertools.permutations(range(4)))
    assert lowering.forecast(result.permutation) == pytest.approx(best, abs=1e-9)


def test_what_a_batch_counts_does_not_hang_on_chance():
    # Without the first targets, the mean over many tokens is nearly the same.
    generator = torch.Generator().manual_seed(3)
    for _ in range(60):
        outputs = torch.randn(64, 64, 32, generator=generator)
        targets = torch.randint(32, (64, 64), generator=generator)
        targets[torch.arange(64) >= torch.randint(1, 65, (64, 1), generator=generator)] = -100
        _, counts = sequence_losses(token_loss, outputs, targets)
        assert counts.tolist() == (targets != -100).sum(1).tolist()
