import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from made_data import write_images, write_movielens
from typer.testing import CliRunner

from moe_search.bench.commands import app
from moe_search.bench.datasets.hidden_groups import make_hidden_groups
from moe_search.bench.experiments import hidden_groups, recovery_experiments, two_image_trials, user_table
from moe_search.bench.experiments.experiment import HOMES, find_experiment
from moe_search.bench.experiments.training import (
    SearchSchedule,
    StepRun,
    endless_batches,
    evaluation_steps,
    train_by_steps,
)
from moe_search.solvers import MaxIterations
from moe_search.training import PermutationSearch
from moe_search.training.lowering.batch import Batch


@pytest.fixture
def movielens(tmp_path):
    """Six users, each of whom rated ten of 24 films."""
    write_movielens(tmp_path, users=6)
    return tmp_path


@pytest.fixture
def fashion(tmp_path):
    """Random images in the format of Fashion-MNIST."""
    write_images(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def smoke(name, folder, *arguments):
    done = run("experiment", name, "--smoke", "--seeds", "1", "--output", folder, *arguments)
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(folder / "results.parquet")
    experiment = find_experiment(name)
    pairs = {(gate, search) for gate in experiment.gates for search in experiment.searches}
    assert set(zip(table["gate"], table["search"], strict=True)) == pairs
    for measure in experiment.measures:
        assert np.isfinite(table[measure.name]).all()
        assert measure.title.split()[0] in done.output
    if "steps" not in table:
        # What is done to a trained model has no curve.
        assert not experiment.curves
        return table
    for _, row in table.iterrows():
        assert len(row["steps"]) == len(row["validation_losses"])
    # Trials of one gate start alike: same data, same weights, same map. (Among hidden groups, none has fewer slots.)
    others = ["sinkhorn", "none"] if name == "hidden-groups" else ["sinkhorn"]
    for _, rows in table[~table["search"].isin(others)].groupby("gate"):
        assert len({losses[0] for losses in rows["validation_losses"]}) == 1
        assert len({tuple(first) for first in rows["first_map"]}) == 1
    assert (table.loc[table["search"] == "none", "committed"] == 0).all()
    return table


OF_FILES = "fashion", "user-table", "movielens", "published"
"""What names of experiments that read files, and make none up, hold."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HOMES if not any(part in name for part in OF_FILES)])
def test_smoke_and_report(name, tmp_path):
    smoke(name, tmp_path)
    done = run("report", tmp_path)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "report.html").read_text()
    experiment = find_experiment(name)
    assert experiment.title in text
    assert "they show that all works, and nothing else" in text
    expected = experiment.curves + experiment.maps
    assert text.count("<svg") == expected


def test_smoke_of_the_user_table(tmp_path, movielens):
    table = smoke("user-table", tmp_path / "out", "--data", movielens)
    assert table["test_auc"].between(0, 1).all()


def test_smoke_of_experts_a_sample_on_films(tmp_path, movielens):
    table = smoke("cardinality-movielens", tmp_path / "out", "--data", movielens)
    assert table["experts_per_sample"].between(1, 8).all()


def test_smoke_of_experts_that_specialize_on_films(tmp_path, movielens):
    table = smoke("specialize-movielens", tmp_path / "out", "--data", movielens)
    assert set(table["kept"]) <= {0.0, 1.0}


def test_smoke_on_fashion(tmp_path, fashion):
    settings = replace(find_experiment("scrambled-fashion").smoke, path=str(fashion))
    numbers = find_experiment("scrambled-fashion").run_trial(settings, 0, "Hash", "search")
    assert np.isfinite(numbers["test_loss"])


def test_missing_data_says_how_to_get_them(tmp_path):
    done = run("experiment", "user-table", "--smoke", "--data", tmp_path, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "pip install --no-deps recbole==1.2.1" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("magic",), "an experiment must be one of scrambled-digits"),
        (("hidden-groups", "--data", "/"), "--data is for experiments that read files, hidden-groups reads none"),
        (("hidden-groups", "--seeds", "0"), "seeds must be an integer >= 1, got 0"),
        (("hidden-groups", "--first-seed", "-1"), "first_seed must be an integer >= 0, got -1"),
        (("hidden-groups", "--jobs", "0"), "jobs must be 1 or more, or -1 for one a processor, got 0"),
    ],
)
def test_bad_arguments_of_the_command(tmp_path, arguments, message):
    done = run("experiment", *arguments, "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_report_of_nothing(tmp_path):
    done = run("report", tmp_path)
    assert done.exit_code == 2
    assert "no experiment was run in" in done.output


def test_evaluation_steps_are_dense_first_and_end_with_the_last():
    steps = evaluation_steps(1000)
    assert steps[:33] == tuple(range(33))
    assert steps[-1] == 1000
    gaps = np.diff(steps)
    assert all(gap <= max(1, step / 16) for gap, step in zip(gaps, steps[:-1], strict=True))
    assert len(steps) < 130
    assert evaluation_steps(0) == (0,)


def test_endless_batches_show_every_sample_once_an_order():
    data = Batch(torch.arange(10.0), torch.arange(10), torch.arange(10))
    batches = endless_batches(data, 5, seed=0)
    for _ in range(3):
        first, second = next(batches), next(batches)
        assert sorted([*first.targets.tolist(), *second.targets.tolist()]) == list(range(10))
        assert torch.equal(first.inputs.long(), first.ids)
    again = endless_batches(data, 5, seed=0)
    assert torch.equal(next(endless_batches(data, 5, seed=0)).targets, next(again).targets)
    with pytest.raises(ValueError, match="at least 11 samples to fill a batch of 11, got 10"):
        next(endless_batches(data, 11, seed=0))


def test_steps_to_a_loss():
    one_map = np.arange(2)
    run = StepRun((0, 1, 4), (3.0, 1.0, 0.5), {}, one_map, one_map, 0.0, (0.0, 0.1, 0.4))
    assert [run.steps_to(loss) for loss in (5.0, 1.0, 0.7, 0.1)] == [0, 1, 4, None]


def test_an_unknown_search():
    model = hidden_groups.GroupedModel(None)
    with pytest.raises(ValueError, match="search must be one of none, sinkhorn, search, got 'magic'"):
        train_by_steps(
            model,
            None,
            None,
            iter(()),
            lambda: 0.0,
            steps=1,
            learning_rate=0.1,
            search="magic",
            schedule=SearchSchedule(1, 1),
            seed=0,
        )


def test_a_run_that_never_gets_there_counts_with_all_its_steps():
    settings = find_experiment("new-gate-digits").smoke
    model, intact = recovery_experiments.specialists(settings, 0, "Hash")
    never = two_image_trials.train_on(model, settings, 0, "none", 0.0)
    assert (never["steps_to_intact"], never["reached"]) == (settings.steps, 0.0)
    at_once = two_image_trials.train_on(model, settings, 0, "none", 100.0)
    assert (at_once["steps_to_intact"], at_once["reached"]) == (1.0, 1.0)
    assert intact > 0


def test_frozen_steps_change_no_weight_and_search_all_the_same():
    settings = find_experiment("new-gate-digits").smoke
    model, _ = recovery_experiments.specialists(settings, 0, "Hash")
    model.moe.gate.expert_map.assign(model.moe.gate.expert_map.experts.flip(1))
    before = {name: value.clone() for name, value in model.named_parameters()}
    losses = iter(range(settings.steps + 1, 0, -1))
    data = two_image_trials.load(settings, 0).train
    run = train_by_steps(
        model,
        model.moe,
        two_image_trials.two_task_loss,
        endless_batches(data, 32, 0),
        lambda: float(next(losses)),
        steps=settings.steps,
        learning_rate=0.1,
        search="search",
        schedule=settings.schedule,
        seed=0,
        frozen_steps=settings.steps,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert run.committed > 0
    assert not np.array_equal(run.first_map, run.last_map)


@pytest.mark.parametrize("gate", hidden_groups.GATES)
def test_every_task_starts_with_a_slot_of_its_own(gate):
    settings = replace(find_experiment("hidden-groups").smoke, warming_steps=100)
    torch.manual_seed(0)
    started = hidden_groups.start_gate(gate, settings, "search", seed=0)
    weights = started(torch.zeros(settings.tasks, 3), torch.arange(settings.tasks)).weights[:, 0].detach()
    assert weights.argmax(1).tolist() == list(range(settings.tasks))
    assert float(weights.diagonal().min()) > 0.5
    fresh = hidden_groups.start_gate(gate, settings, "none", seed=0)
    assert fresh.num_slots == (settings.tasks if gate == "Hash" else 2 * settings.groups)


def test_search_of_a_table_of_tasks_recovers_the_groups():
    settings = hidden_groups.HiddenGroupsSettings(
        tasks=12,
        groups=3,
        samples_per_task=60,
        batch_size=128,
        steps=150,
        schedule=SearchSchedule(period=10, until=150, batches=8),
    )
    without, with_search = (hidden_groups.run_trial(settings, 0, "Hash", search) for search in ("none", "search"))
    assert without["recovered"] == 0.0
    assert with_search["recovered"] == 1.0
    assert with_search["test_loss"] < 0.5 * without["test_loss"]


def test_search_of_a_user_table_takes_only_what_other_pairs_confirm(movielens):
    settings = replace(find_experiment("user-table").smoke, path=str(movielens))
    data = user_table.load(settings.path, settings.negatives, 0)
    torch.manual_seed(0)
    model = user_table.FilmModel(data, settings)
    users = torch.arange(6).repeat_interleave(40)
    items = torch.randint(24, (240,))
    # Experts that differ, and targets that fit each user under one table.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.moe.gate.expert_map.assign([[3, 0, 2, 1, 1, 0, 3, 2]])
        model.eval()
        targets = torch.sigmoid(model(items, ids=users))
        targets[:, 0] = (targets[:, 0] > 0.5).float()
        targets[:, 1] = model(items, ids=users)[:, 1]
    best = model.moe.gate.expert_map.experts[0, :6].clone()
    pairs = Batch(items, targets, ids=users, groups=users)

    def loss(outputs, told):
        return user_table.film_loss(outputs, told, 1.0)

    def true_loss():
        with torch.no_grad():
            return float(loss(model.eval()(items, ids=users), targets))

    least, generator = true_loss(), np.random.default_rng(0)
    search = PermutationSearch(model, model.moe, loss=loss, stop=MaxIterations(1), seed=0)
    record = user_table.search_table(search, pairs, generator)
    assert record.outcome != "committed"  # its own targets: nothing is better
    model.moe.gate.expert_map.scramble(torch.Generator().manual_seed(1))
    assert not torch.equal(model.moe.gate.expert_map.experts[0, :6], best)
    assert true_loss() > 1.01 * least
    record = user_table.search_table(search, pairs, generator)
    assert (record.outcome, record.problem) == ("committed", "LinearAssignment")
    assert true_loss() == pytest.approx(least, rel=1e-3)


def test_a_search_is_due_every_period_to_the_end():
    schedule = SearchSchedule(period=4, until=10)
    assert [step for step in range(1, 20) if schedule.due(step)] == [4, 8]
    assert [schedule.count(steps) for steps in (3, 4, 9, 100)] == [0, 1, 2, 2]


def test_groups_of_tasks():
    first, other = (make_hidden_groups(8, 4, 50, own_part=0.0, noise=0.0, seed=3, split=split) for split in (0, 1))
    assert np.array_equal(first.groups, other.groups)
    assert np.array_equal(np.bincount(first.groups), [2, 2, 2, 2])
    assert not np.array_equal(first.inputs, other.inputs)
    assert np.array_equal(first.tasks, np.repeat(np.arange(8), 50))
    assert first.targets.std() == pytest.approx(1.0, abs=0.25)
    assert np.array_equal(first.targets, make_hidden_groups(8, 4, 50, own_part=0.0, noise=0.0, seed=3).targets)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tasks": 0}, "num_tasks must be an integer >= 1, got 0"),
        ({"num_tasks": 7, "num_groups": 2}, "num_tasks must be a multiple of num_groups, got 7 tasks in 2 groups"),
        ({"noise": -1.0}, "noise must be a finite number >= 0, got -1"),
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ],
)
def test_groups_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_hidden_groups(**arguments)


def test_unknown_search_of_hidden_groups():
    with pytest.raises(ValueError, match="search must be one of none, own slots, sinkhorn, search, got 'magic'"):
        hidden_groups.run_trial(find_experiment("hidden-groups").smoke, 0, "Hash", "magic")


def test_film_loss_by_hand():
    outputs = torch.tensor([[0.0, 0.5], [0.0, 0.9]])
    targets = torch.tensor([[1.0, 0.7], [0.0, 0.0]])
    expected = np.log(2) + 3.0 * (0.2**2) / 2  # the second pair has no rating
    assert float(user_table.film_loss(outputs, targets, 3.0)) == pytest.approx(expected, rel=1e-6)


def test_no_message_names_a_machine():
    for name in HOMES:
        assert not re.search(r"/(work|home)/", repr(find_experiment(name)))
