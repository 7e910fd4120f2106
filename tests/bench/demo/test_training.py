import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from moe_search.bench.demo.scenarios import Scenario, count_ticks, exact_value, load_data, train
from moe_search.bench.demo.settings import SHOWN, DemoSettings, find_device, smoke_settings
from moe_search.bench.experiments.gates import make_gate
from moe_search.bench.experiments.pretraining import parts_of, train_specialists
from moe_search.bench.experiments.training import SearchSchedule
from moe_search.bench.experiments.two_image_model import evaluate, make_model, two_task_loss
from moe_search.problems import random_linear, random_mixture

CPU = torch.device("cpu")
SMALL = replace(smoke_settings(seeds=2, epochs=1), pretraining_epochs=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Layers this small gain nothing from threads, which wait for each other where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def results():
    ticks = []
    with ThreadPoolExecutor(1) as executor:
        scenario = Scenario(SMALL, CPU, executor, ticks.append)
        both = scenario.train_from_scratch(), scenario.train_from_bad_initialization()
    assert len(ticks) == count_ticks(SMALL)
    return both


def test_gates_with_and_without_search_start_equal(results):
    for result in results:
        assert len(result.runs) == 2 * 7
        by_name = {(run.gate, run.seed): run for run in result.runs}
        for gate, seed in itertools.product(("Hash", "Top-k", "COMET"), range(2)):
            without, with_search = by_name[gate, seed], by_name[f"{gate}+", seed]
            assert without.losses[0] == with_search.losses[0]
            assert np.array_equal(without.first_map, with_search.first_map)
            assert np.array_equal(without.first_map, without.last_map)
            assert 0 < with_search.search_share < 1
            assert not without.history


def test_every_search_is_held_against_its_optimum(results):
    for result in results:
        searches = {(each.gate, each.seed, each.record.step): each for each in result.searches}
        assert len(searches) == len(result.searches) == sum(len(run.history) for run in result.runs) == 3 * 2
        for run in result.runs:
            for record in run.history:
                search = searches[run.gate, run.seed, record.step]
                assert search.record == record
                assert record.value_found >= search.optimum - 1e-9
                assert record.problem == ("LinearAssignment" if run.gate == "Hash+" else "MixtureAssignment")
                assert search.gap == pytest.approx(1 - search.optimum / record.value_found, abs=1e-9)
                assert search.gap == 0 or run.gate != "Hash+"  # Hungarian is exact


def test_bad_initialization_starts_from_a_scrambled_map(results):
    scratch, bad = results
    assert scratch.intact == ()
    assert len(bad.intact) == 2 * len(SHOWN)
    for run in bad.runs:
        (intact,) = (each for each in bad.intact if (each.gate, each.seed) == (run.gate.rstrip("+"), run.seed))
        assert np.array_equal(intact.expert_map, np.arange(8))
        assert sorted(run.first_map) == list(range(8))
        assert not np.array_equal(run.first_map, intact.expert_map)


@pytest.mark.parametrize(("gate", "experts"), [("Softmax", 8.0), ("Hash", 1.0), ("Top-k", 2.0)])
def test_experts_per_sample(gate, experts):
    data = load_data(SMALL, 0, CPU)
    assert evaluate(make_model(gate, SMALL, 0), data.test).experts_per_sample == experts


def test_evaluation_against_its_definition():
    data = load_data(SMALL, 1, CPU)
    model = make_model("Top-k", SMALL, 1)
    got = evaluate(model, data.test)
    with torch.no_grad():
        logits = model(data.test.inputs).double().numpy()
    targets = data.test.targets.numpy()
    losses = [
        np.log(np.exp(logits[b, task]).sum()) - logits[b, task, targets[b, task]]
        for b in range(len(logits))
        for task in range(2)
    ]
    assert got.loss == pytest.approx(np.mean(losses), rel=1e-5)
    for task in range(2):
        assert got.accuracies[task] == pytest.approx(np.mean(logits[:, task].argmax(1) == targets[:, task]))


def test_test_values_are_those_of_the_best_epoch():
    settings = replace(SMALL, epochs=6)
    data = load_data(settings, 0, CPU)
    model = make_model("Top-k", settings, 0)
    # The learning rate is far too high: the loss goes up and down.
    run = train(model, "Top-k", data, settings, 0.5, 0, settings.from_scratch)
    assert run.best_epoch == run.losses.index(min(run.losses))
    assert run.best_epoch < settings.epochs
    assert evaluate(model, data.validation).loss == pytest.approx(min(run.losses))
    assert evaluate(model, data.test).loss == pytest.approx(run.test.loss)


def test_a_seed_gives_one_run():
    data = load_data(SMALL, 0, CPU)
    first, again = (
        train(make_model("COMET", SMALL, 0), "COMET+", data, SMALL, 1e-2, 0, SMALL.bad_initialization) for _ in range(2)
    )
    assert first.losses == again.losses
    assert [record.value_found for record in first.history] == [record.value_found for record in again.history]


@pytest.mark.parametrize("gate", ["Hash", "Top-k", "COMET"])
def test_search_finds_the_way_back_from_a_scrambled_map(gate):
    settings = replace(smoke_settings(epochs=1), pretraining_epochs=8, num_train=1000, learning_rate=1e-2)
    data = load_data(settings, 0, CPU)
    model = make_model(gate, settings, 0)
    parts = parts_of(model, data.train.inputs, 0)
    assert set(parts.tolist()) == set(range(8))
    train_specialists(model, data.train, parts, settings, 0)
    intact = evaluate(model, data.validation).loss
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(0))
    scrambled = evaluate(model, data.validation).loss
    assert scrambled > intact + 0.2
    schedule = SearchSchedule(period=5, until=30, batches=4, iterations=2000)
    run = train(model, f"{gate}+", data, settings, 0.0, 0, schedule)
    assert run.losses[-1] < scrambled - 0.8 * (scrambled - intact)
    assert (run.last_map == np.arange(8)).sum() >= 6


def test_parts_of_a_fixed_gate_are_its_slots():
    data = load_data(SMALL, 0, CPU)
    model = make_model("Hash", SMALL, 0)
    parts = parts_of(model, data.train.inputs, 0)
    assert torch.equal(model.moe.gate(data.train.inputs).weights[:, 0].argmax(1), parts)
    assert model.moe.gate.expert_map.experts.tolist() == [list(range(8))]


@pytest.mark.parametrize(
    "problem",
    [random_linear(5, seed=1, integral=False), random_mixture(5, num_samples=20, seed=2, loss="cross_entropy")],
)
def test_exact_value_is_the_least_of_all(problem):
    values = [problem.value(np.array(p)) for p in itertools.permutations(range(5))]
    assert exact_value(problem) == pytest.approx(min(values))


def test_two_task_loss_is_the_mean_of_both_tasks():
    outputs, targets = (
        torch.randn(6, 2, 10, generator=torch.Generator().manual_seed(0)),
        torch.arange(12).view(6, 2) % 10,
    )
    tasks = [torch.nn.functional.cross_entropy(outputs[:, task], targets[:, task]) for task in range(2)]
    assert two_task_loss(outputs, targets) == pytest.approx((tasks[0] + tasks[1]).item() / 2)


def test_unknown_names():
    with pytest.raises(ValueError, match="gate must be one of Softmax, Hash, Top-k, DSelect-k, COMET, got 'Magic'"):
        make_gate("Magic", 4, 8)
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda, got 'tpu'"):
        find_device("tpu")
    assert find_device("cpu") == CPU


@pytest.mark.parametrize("name", ["seeds", "epochs"])
def test_settings_out_of_range(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1, got 0"):
        DemoSettings(**{name: 0})


def test_counts_of_settings():
    settings = DemoSettings(epochs=3, num_train=1000, batch_size=128)
    assert settings.steps == 24
    assert [SearchSchedule(period=10, until=until).count(settings.steps) for until in (9, 20, 1000)] == [0, 2, 2]
