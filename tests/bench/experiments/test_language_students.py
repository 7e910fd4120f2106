from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_search.bench.experiments import language_students
from moe_search.bench.experiments.experiment import find_experiment
from moe_search.bench.experiments.gates import SPARSE
from moe_search.bench.experiments.language_students import StudentSearch, make_student, taught, told_by

pytest.importorskip("transformers")
EXPERIMENT = find_experiment("language")
SETTINGS = EXPERIMENT.smoke


def test_a_product_review_is_for_training_or_for_tests():
    data = taught(SETTINGS)
    train, test = data.divided(SETTINGS.test_share, 3)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(len(data.texts)))
    assert not set(data.owners[train].tolist()) & set(data.owners[test].tolist())
    assert len(data.owners[data.films :].unique()) < len(data.texts) - data.films  # of several sentences
    for part in (train, test):
        assert (part < data.films).any()
        assert (part >= data.films).any()
    assert data.states.scores[data.films :].abs().min() >= language_students.CLEAR
    assert not torch.equal(test, data.divided(SETTINGS.test_share, 4)[1])


@pytest.mark.parametrize("gate", SPARSE)
def test_trials_of_a_seed_and_gate_begin_alike(gate):
    first, second = (make_student(SETTINGS, 0, gate, "deal").state_dict() for _ in range(2))
    assert all(torch.equal(each, second[name]) for name, each in first.items() if isinstance(each, torch.Tensor))
    other = make_student(SETTINGS, 1, gate, "deal").state_dict()
    gates = [name for name, each in first.items() if ".gate." in name and each.is_floating_point()]
    maps = [name for name in first if name.endswith("expert_map.experts")]
    assert any(not torch.equal(first[name], other[name]) for name in (maps if gate == "Hash" else gates))


def test_a_search_aims_at_what_the_teacher_makes_of_every_token():
    data = taught(SETTINGS)
    student = make_student(SETTINGS, 0, "Top-k", "deal")
    search = StudentSearch(SETTINGS, student, data.states, 0)
    (layer,) = student.layers
    rows = torch.tensor([4, 1, 40])
    (batch,) = search._batches(rows, 0)
    with torch.no_grad():
        made = layer.normalization(batch.targets + batch.inputs)
    states = data.states.select(torch.tensor(sorted(rows.tolist(), key=lambda row: int(data.states.lengths[row]))))
    assert torch.allclose(made, states.states[1], atol=1e-5)
    assert torch.equal(batch.ids, states.ids)
    assert torch.bincount(batch.groups)[rows].tolist() == data.states.lengths[rows].tolist()


def test_embeddings_of_the_teacher_are_as_good_as_they_are():
    data = taught(SETTINGS)
    train, test = (data.states.select(rows) for rows in data.divided(SETTINGS.test_share, 0))
    told = told_by(SETTINGS, 0, *(each.means().double().numpy() for each in (train, test)))
    assert told["similarity_error"] < 1e-6
    assert {name: told[name] for name in ("rating_rmse", "polarity_error")} == language_students.teacher_told(
        SETTINGS, 0
    )
    # The scores themselves tell all.
    scores = [np.tile(each.scores.double().numpy()[:, None], (1, 16)) for each in (train, test)]
    told = told_by(SETTINGS, 0, *scores)
    assert told["polarity_error"] == 0.0
    assert told["rating_rmse"] < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("gate", SPARSE)
def test_trials_differ_in_split_and_search_and_repeat(gate):
    trials = {search: language_students.run_trial(SETTINGS, 0, gate, search) for search in EXPERIMENT.searches}
    for measure in EXPERIMENT.measures:
        assert all(0 <= numbers[measure.name] < 100 for numbers in trials.values())
    assert {numbers["searches"] for numbers in trials.values()} == {0.0, 2.0}
    assert trials["deal"]["test_loss"] != trials["partition"]["test_loss"]
    for split in ("deal", "partition"):
        alone, searched = trials[split], trials[f"{split}, search"]
        assert (alone["test_loss"] == searched["test_loss"]) == (searched["committed"] == 0)
    again = language_students.run_trial(SETTINGS, 0, gate, "partition, search")
    kept = [name for name in again if "seconds" not in name]
    assert {name: again[name] for name in kept} == {name: trials["partition, search"][name] for name in kept}


def test_data_must_be_given(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"--data must be a folder .*, got none: get vader.* with 'pip download"
    ):
        taught(replace(SETTINGS, made=False))
    with pytest.raises(ValueError, match="gate must be one of Hash, Top-k, DSelect-k, COMET, got 'Softmax'"):
        make_student(SETTINGS, 0, "Softmax", "deal")
