import json
import os
import sys
import time
from dataclasses import replace

import joblib
import optuna
import pandas as pd
import pytest
from killed_run import run_and_kill
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from toy_experiment import DRAWN, TOY, ToySettings, space

from moe_search.bench.experiments import report as page
from moe_search.bench.experiments.experiment import LOSS, Trial
from moe_search.bench.experiments.journal import StudyJournal, draw_parameters, read_journal
from moe_search.bench.experiments.report import make_report, read_finished, tables
from moe_search.bench.experiments.run import run_experiment


def studies(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    return {name: optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)}


def test_optuna_reads_a_study_of_every_gate_and_search(tmp_path):
    table = run_experiment(DRAWN, tmp_path, seeds=3)
    found = studies(tmp_path)
    assert set(found) == {"Hash, none", "Hash, search", "Top-k, none", "Top-k, search"}
    assert not (tmp_path / "journal.jsonl").exists()
    for name, study in found.items():
        gate, search = name.split(", ")
        rows = table[(table["gate"] == gate) & (table["search"] == search)]
        assert [trial.value for trial in study.trials] == rows[LOSS].tolist()
        assert [trial.user_attrs["seed"] for trial in study.trials] == [0, 1, 2]
        assert study.best_value == rows[LOSS].min()
        assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}


def test_a_draw_is_the_same_with_and_without_search_and_of_all_gates_where_they_share_it(tmp_path):
    run_experiment(DRAWN, tmp_path, seeds=4)
    drawn = {name: [trial.params for trial in study.trials] for name, study in studies(tmp_path).items()}
    for gate in ("Hash", "Top-k"):
        expected = [draw_parameters(space(gate), seed) for seed in range(4)]
        assert drawn[f"{gate}, none"] == drawn[f"{gate}, search"] == expected
    assert [each["rate"] for each in drawn["Hash, none"]] == [each["rate"] for each in drawn["Top-k, none"]]
    assert len({each["rate"] for each in drawn["Hash, none"]}) == 4
    assert all("number" in each for each in drawn["Top-k, none"])


def test_a_draw_does_not_depend_on_those_before_it(tmp_path):
    run_experiment(DRAWN, tmp_path / "all", seeds=3)
    run_experiment(DRAWN, tmp_path / "last", seeds=1, first_seed=2)
    last, alone = (studies(tmp_path / folder)["Top-k, none"].trials[-1] for folder in ("all", "last"))
    assert last.params == alone.params


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_trials_in_parallel_give_the_same_table_and_studies(tmp_path, backend, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # for the workers to find the toy
    alone = run_experiment(DRAWN, tmp_path / "alone", seeds=3).drop(columns="seconds")
    with joblib.parallel_config(backend=backend, n_jobs=2):
        together = run_experiment(DRAWN, tmp_path / "together", seeds=3).drop(columns="seconds")
    pd.testing.assert_frame_equal(alone, together)
    first, other = (
        {
            name: sorted((trial.user_attrs["seed"], trial.value, *trial.params.values()) for trial in study.trials)
            for name, study in studies(tmp_path / folder).items()
        }
        for folder in ("alone", "together")
    )
    assert first == other


def test_a_killed_trial_is_run_again_and_no_finished_one(tmp_path):
    code = f"""
import time, dataclasses
import toy_experiment
from moe_search.bench.experiments.run import run_experiment
def slow(settings, seed, gate, search):
    time.sleep(60.0 if (seed, gate, search) == (1, "Hash", "search") else 0.0)
    return toy_experiment.run_trial(settings, seed, gate, search)
run_experiment(dataclasses.replace(toy_experiment.DRAWN, run_trial=slow), {str(tmp_path)!r}, seeds=30)
"""
    log = tmp_path / "optuna.log"
    # Six trials begin, their seeds written down, of which the last never ends.
    run_and_kill(code, log, (b'"user_attr":{"seed"', 6))
    killed = studies(tmp_path)["Hash, search"].trials
    assert [trial.state for trial in killed] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert len(read_journal(tmp_path).entries()) == 5
    with log.open("ab") as file:
        file.write(b'{"op_code":4,"study')  # what a kill in the middle of a line leaves

    traces = tmp_path / "traces"
    traces.mkdir()
    table = run_experiment(DRAWN, tmp_path, settings=ToySettings(path=str(traces)), seeds=2)
    assert len(table) == 8
    assert sorted(file.name for file in traces.iterdir()) == ["1-Hash-search", "1-Top-k-none", "1-Top-k-search"]
    again = studies(tmp_path)["Hash, search"].trials
    assert [trial.state for trial in again] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert again[1].params == again[2].params
    alone = run_experiment(DRAWN, tmp_path / "alone", seeds=2)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), alone.drop(columns="seconds"))


def test_the_lock_of_a_killed_run_is_not_waited_for(tmp_path, monkeypatch):
    run_experiment(DRAWN, tmp_path, seeds=1)
    log = tmp_path / "optuna.log"
    log.with_name("optuna.log.lock").symlink_to(log)

    def wait(seconds):
        raise AssertionError("waited for a lock")

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(AssertionError, match="waited for a lock"):
        optuna.create_study(storage=JournalStorage(JournalFileBackend(str(log))))
    assert len(run_experiment(DRAWN, tmp_path, seeds=2)) == 8


def test_a_trial_that_fails_is_run_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_experiment(DRAWN, tmp_path, settings=ToySettings(failing_seed=1), seeds=2)
    assert len(read_journal(tmp_path).entries()) == 4
    log = tmp_path / "optuna.log"
    log.write_text(log.read_text().replace('"failing_seed":1', '"failing_seed":null'))
    assert len(run_experiment(DRAWN, tmp_path, seeds=2)) == 8
    states = [trial.state for trial in studies(tmp_path)["Hash, none"].trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    run_experiment(DRAWN, tmp_path, seeds=1)
    before = (tmp_path / "optuna.log").read_bytes()
    with pytest.raises(ValueError, match=r"journal of another run, with settings .*'size': 3.* instead of .*'size': 1"):
        run_experiment(DRAWN, tmp_path, settings=TOY.smoke, seeds=1)
    with pytest.raises(ValueError, match="with experiment 'toy' instead of 'other'"):
        run_experiment(replace(DRAWN, name="other"), tmp_path, seeds=1)
    assert (tmp_path / "optuna.log").read_bytes() == before


def test_reading_changes_nothing(tmp_path):
    run_experiment(DRAWN, tmp_path, seeds=1)
    before = (tmp_path / "optuna.log").read_bytes()
    journal = read_journal(tmp_path)
    assert isinstance(journal, StudyJournal)
    assert journal.header["experiment"] == "toy"
    assert set(journal.entries()) == {Trial(0, gate, search) for gate in DRAWN.gates for search in DRAWN.searches}
    assert (tmp_path / "optuna.log").read_bytes() == before


def test_report_of_a_random_search(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "find_experiment", lambda name: DRAWN)
    run_experiment(DRAWN, tmp_path / "drawn", seeds=4)
    (found,) = read_finished(tmp_path)
    titles = [table.title for table in tables(found)]
    assert titles == [
        "Best draws",
        "Best of r trials",
        "Trials that are as good as r without",
        "Trials to reach the others' median best",
        "steps needed of all draws",
    ]
    # Every draw is better with the search: one is as good as the best of two, and of all, without.
    row = dict(zip(tables(found)[2].columns, tables(found)[2].rows[0], strict=True))
    assert row == {"gate, search": "Hash, search", "2": "1.0: 2.00 times fewer (2.00 to 2.00)"}
    assert json.loads(make_report([found], "moe-search report").facts["toy, sizes"])["size"] == 3


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no experiment was run in .*: it holds no journal.jsonl"):
        read_journal(tmp_path)
    (tmp_path / "optuna.log").write_text("")
    with pytest.raises(ValueError, match="must hold a study of an experiment, got none"):
        read_journal(tmp_path)


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"seed": 1}'])
def test_damaged_journals(tmp_path, line):
    run_experiment(DRAWN, tmp_path, seeds=1)
    log = tmp_path / "optuna.log"
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([first, line, *others]) + "\n")
    for use in (read_journal, lambda folder: run_experiment(DRAWN, folder, seeds=1)):
        with pytest.raises(ValueError, match=r"optuna.log must be a journal of Optuna: it is damaged"):
            use(tmp_path)


def test_without_optuna(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"optuna, which is missing: pip install 'moe-search\[experiments\]'"):
        run_experiment(DRAWN, tmp_path / "out", seeds=1)
    assert not (tmp_path / "out").exists()
    assert len(run_experiment(TOY, tmp_path, seeds=1)) == 4
