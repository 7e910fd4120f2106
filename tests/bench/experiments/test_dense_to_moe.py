import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_search.bench.experiments import dense_to_moe
from moe_search.bench.experiments.experiment import find_experiment
from moe_search.bench.experiments.report import make_report, read_finished
from moe_search.bench.experiments.run import run_experiment
from moe_search.bench.peers.neuron_partitions import cmoe, moebert_deal, moefication

EXPERIMENT = find_experiment("dense-to-moe")


@pytest.mark.slow
def test_all_ways_run_and_are_told_of(tmp_path):
    table = run_experiment(EXPERIMENT, tmp_path, settings=EXPERIMENT.smoke, seeds=1)
    assert len(table) == len(EXPERIMENT.gates) * len(EXPERIMENT.searches)
    for measure in EXPERIMENT.measures:
        assert table[measure.name].between(0, 100).all()
    errors = table.set_index(["gate", "search"])["similarity_error"]
    assert errors.nunique() == len(table)
    report = make_report(read_finished(tmp_path), "moe-search report")
    assert "error of similarities" in str(report.sections[0])
    first = EXPERIMENT.trials(1)[0]
    again = dense_to_moe.run_trial(EXPERIMENT.smoke, 0, first.gate, first.search)
    row = table.iloc[0]
    assert {name: again[name] for name in again if "seconds" not in name} == {
        name: row[name] for name in again if "seconds" not in name
    }


def test_similarities_by_hand():
    whole = torch.eye(3)
    split = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
    found = dense_to_moe.compared("x_", split, whole)
    assert found["x_similarity_error"] == pytest.approx(math.sqrt(2 * 0.6**2 / 9))
    assert found["x_cosine"] == pytest.approx(2.8 / 3)


def test_peers_by_hand():
    mass = torch.tensor([[5.0, 1.0, 4.0, 2.0]])
    assert moebert_deal(mass, 2).tolist() == [[0, 3], [2, 1]]
    # Two directions of input weights, whatever their lengths; from centers of one direction they may be mixed.
    weights = torch.tensor([[1.0, 0], [0, 1], [3, 0.1], [0.1, 2], [2, 0], [0, 5]])
    found = {tuple(map(tuple, np.sort(moefication(weights, 2, seed).numpy()).tolist())) for seed in range(8)}
    assert found & {((0, 2, 4), (1, 3, 5)), ((1, 3, 5), (0, 2, 4))}
    # Eleven neurons of which ten are activated on every token: neuron 0 on the first tokens, 21 on the last.
    activations = torch.zeros(6, 22)
    activations[:3, :10] = 1.0
    activations[3:, 11:21] = 1.0
    activations[0, 9], activations[0, 10] = 0.0, 1.0
    groups = [set(own) for own in cmoe(activations, 2).tolist()]
    assert sorted(map(len, groups)) == [11, 11]
    assert any(set(range(9)) <= own for own in groups)


def test_data_must_be_given():
    with pytest.raises(FileNotFoundError, match=r"--data must be a folder .*, got none"):
        dense_to_moe.run_trial(replace(EXPERIMENT.smoke, made=False), 0, *EXPERIMENT.gates[:1], "deal")
