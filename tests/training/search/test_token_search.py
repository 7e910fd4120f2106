import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import moe_search as ms
from moe_search.training.lowering.batch import Batch
from moe_search.training.lowering.process_group import ALONE
from moe_search.training.lowering.token_lowering import token_layer
from moe_search.training.search.token_search import TokenSearch
from moe_search.training.search.verification import verify_tokens

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


def searching(model, **options):
    given = {"solver": None, "load_limit": None, "confidence": 1.0, "max_rows": 4096, "chunk_size": 64, "ranks": ALONE}
    return TokenSearch(model, [token_layer(layer) for layer in model.layers], token_loss, **given | options)


def stop(_start):
    return ms.MaxIterations(3000)


def mean_loss(model, batch):
    with torch.no_grad():
        return float(token_loss(model(batch.inputs), batch.targets))


def test_scrambled_maps_are_found_again_and_good_ones_left_alone():
    model, searched, verified = taught()
    intact = mean_loss(model, verified)
    records = list(searching(model).search([searched], [verified], stop, seed=0, step=1))
    assert {record.outcome for record in records} <= {"refused", "no improvement"}
    assert mean_loss(model, verified) == intact

    for t, layer in enumerate(model.layers):
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(t))
    scrambled = mean_loss(model, verified)
    assert scrambled > intact + 0.2
    for _ in range(2):
        before = mean_loss(model, verified)
        records = list(searching(model).search([searched], [verified], stop, seed=0, step=7))
        assert [(record.layer, record.step, record.num_samples) for record in records] == [(0, 7, 60), (1, 7, 60)]
        gains = sum(record.verified_gain for record in records if record.new_map)
        # Every record says what a true forward of the verified sequences says.
        assert before - mean_loss(model, verified) == pytest.approx(gains, abs=1e-5)
    assert mean_loss(model, verified) < intact + 0.5 * (scrambled - intact)


def test_the_same_seed_finds_the_same_and_the_order_of_chunks_does_not_matter():
    found = []
    for chunk_size in (64, 64, 1000):
        model, searched, verified = taught()
        for layer in model.layers:
            layer.gate.expert_map.scramble(torch.Generator().manual_seed(3))
        list(searching(model, chunk_size=chunk_size).search([searched], [verified], stop, seed=5, step=1))
        found.append([layer.gate.expert_map.experts.tolist() for layer in model.layers])
    assert found[0] == found[1] == found[2]


def test_verification_is_that_of_a_ratio_of_sums_over_sequences():
    model, _, verified = taught(sequences=24)
    expert_map = model.layers[0].gate.expert_map
    permutation = np.array([1, 0, 3, 2])
    targets = verified.targets.clone()
    targets[:4, 2:] = -100
    targets[4] = -100
    batch = Batch(verified.inputs, targets)
    [found] = verify_tokens(model, expert_map, token_loss, [permutation], [batch], chunk_size=10)
    each = []
    for _ in range(2):
        with torch.no_grad():
            outputs = model(batch.inputs)
        each.append(cross_entropy(outputs.transpose(1, 2), targets, reduction="none").sum(1).numpy())
        expert_map.assign_permutation(permutation)
    counts = (targets != -100).sum(1).numpy()
    gain = (each[0] - each[1]).sum() / counts.sum()
    assert found.gain == pytest.approx(gain, abs=1e-6)
    assert found.num_samples == 11
    # The jackknife over sequences is another estimate of the same standard error.
    without = [np.arange(12) != b for b in range(12) if counts[b]]
    alone = [(each[0] - each[1])[others].sum() / counts[others].sum() for others in without]
    jackknife = np.sqrt(10 / 11 * ((np.array(alone) - np.mean(alone)) ** 2).sum())
    assert found.standard_error == pytest.approx(jackknife, rel=0.15)
    with pytest.raises(ValueError, match="at least 2 sequences"):
        verify_tokens(model, expert_map, token_loss, [permutation], [batch.part(5, 6)], chunk_size=10)


def test_a_load_limit_is_kept():
    torch.manual_seed(0)
    model, searched, verified = taught()
    for layer in model.layers:
        layer.gate = ms.TopK(WIDTH, EXPERTS, k=2, num_slots=4 * EXPERTS)
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    records = list(searching(model, load_limit=1.3).search([searched], [verified], stop, seed=0, step=1))
    for record in records:
        assert record.load_limit is not None
        assert record.max_load <= max(record.load_limit, 1.3) + 1e-9
