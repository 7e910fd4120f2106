from dataclasses import replace

import pytest
import torch

from moe_search.bench.experiments import cardinality
from moe_search.bench.experiments.experiment import find_experiment

SETTINGS = find_experiment("cardinality-digits").smoke


@pytest.mark.parametrize("gate", ["COMET", "DSelect-k"])
def test_variants_start_alike_and_anneal_within_their_steps(gate):
    starts = []
    for variant in cardinality.VARIANTS:
        model, on_step = cardinality.fresh_model(SETTINGS.images, 0, gate, variant, 4)
        starts.append([parameter.detach().clone() for parameter in model.parameters()])
        for step in range(4 if on_step else 0):
            on_step(step)
        own = model.moe.gate if on_step is None else model.moe.gate.gate
        assert own.gamma == (1.0 if on_step is None else 0.01)
        assert own.entropy == (0.0 if variant == "annealed, no entropy" else 0.01)
    assert all(map(torch.equal, starts[0], starts[1]))
    assert all(map(torch.equal, starts[0], starts[2]))


def test_a_trial_tells_how_many_experts_a_sample_has():
    numbers = cardinality.run_trial(replace(SETTINGS, annealed=0.5), 0, "COMET", "annealed, no entropy")
    assert 0 < numbers["experts_per_sample"] <= cardinality.NUM_EXPERTS
    assert 0 <= numbers["more_than_k"] <= 1
    assert 1 <= numbers["experts_in_use"] <= cardinality.NUM_EXPERTS
    assert numbers["steps"] == [0, 7, 8, 9, 10, 11, 12]  # not before gamma is at its last
    with pytest.raises(ValueError, match="a variant must be one of defaults, annealed, annealed, no entropy, got 'x'"):
        cardinality.run_trial(SETTINGS, 0, "COMET", "x")
