import sys
from dataclasses import asdict

import pytest

from moe_search.bench.experiments import fresh_experts
from moe_search.bench.experiments.experiment import Trial, find_experiment
from moe_search.bench.experiments.journal import StudyJournal


def test_a_seed_draws_the_same_again_within_the_ranges():
    drawn = [fresh_experts.draw(seed, "COMET") for seed in range(40)]
    assert drawn == [fresh_experts.draw(seed, "COMET") for seed in range(40)]
    assert {each.batch_size for each in drawn} == {128, 256}
    assert {each.gamma for each in drawn} == set(fresh_experts.GAMMAS)
    assert {each.entropy for each in drawn} == set(fresh_experts.ENTROPIES)
    rates = [each.learning_rate for each in drawn]
    assert 1e-4 <= min(rates) < 3e-4
    assert 3e-3 < max(rates) <= 1e-2


def test_gates_share_the_draws_they_have_in_common():
    for seed in range(5):
        first, other = fresh_experts.draw(seed, "COMET"), fresh_experts.draw(seed, "Top-k")
        assert (first.learning_rate, first.batch_size) == (other.learning_rate, other.batch_size)


@pytest.mark.parametrize("gate", ["COMET", "DSelect-k"])
def test_gates_are_made_as_drawn(gate):
    drawn = fresh_experts.Hyperparameters(1e-3, 128, gamma=0.1, entropy=5.0)
    made = fresh_experts.make_tuned_model(drawn, find_experiment("tuning-budget").smoke, 0, gate).moe.gate
    assert (made.gamma, made.entropy, made.k) == (0.1, 5.0, 2)


@pytest.mark.parametrize(("name", "slots"), [("tuning-budget", 8), ("tuning-budget-slots", 32)])
@pytest.mark.parametrize("gate", ["Hash", "Top-k", "DSelect-k", "COMET"])
def test_gates_have_the_slots_of_the_settings(name, slots, gate):
    experiment = find_experiment(name)
    assert gate in experiment.gates
    drawn = fresh_experts.Hyperparameters(1e-3, 128, gamma=1.0, entropy=0.0)
    first, other = (fresh_experts.make_tuned_model(drawn, experiment.smoke, 3, gate) for _ in range(2))
    assert first.moe.gate.expert_map.num_slots == slots
    assert first.moe.gate.expert_map.num_experts == 8
    for name, tensor in first.state_dict().items():
        assert tensor.equal(other.state_dict()[name])


def test_what_is_drawn_is_what_optuna_writes_down(tmp_path):
    experiment = find_experiment("tuning-budget")
    journal = StudyJournal.open(tmp_path, {"experiment": "tuning-budget"}, experiment.space)
    for gate in experiment.gates:
        for search in experiment.searches:
            journal.begin(Trial(7, gate, search))
            written = journal.begun[Trial(7, gate, search)].params
            drawn = asdict(fresh_experts.draw(7, gate))
            assert written == {name: drawn[name] for name in experiment.space(gate)}


def test_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"optuna, which is missing: pip install 'moe-search\[experiments\]'"):
        fresh_experts.draw(0, "Top-k")
    with pytest.raises(ImportError, match="optuna, which is missing"):
        fresh_experts.space("Hash")
