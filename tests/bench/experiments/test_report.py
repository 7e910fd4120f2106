import re
from dataclasses import replace

import pytest
from toy_experiment import TOY, ToySettings
from typer.testing import CliRunner

from moe_search.bench.commands import app
from moe_search.bench.experiments import report as page
from moe_search.bench.experiments.experiment import HOMES, find_experiment
from moe_search.bench.experiments.journal import plain_settings
from moe_search.bench.experiments.report import comparison_table, make_report, read_finished, results_table, section
from moe_search.bench.experiments.run import run_experiment, run_with_progress
from moe_search.plotting.report import render_report


@pytest.fixture(autouse=True)
def _known_toy(monkeypatch):
    monkeypatch.setattr(page, "find_experiment", lambda name: {"toy": TOY}[name])


@pytest.fixture
def finished(tmp_path):
    run_experiment(TOY, tmp_path / "toy")
    (found,) = read_finished(tmp_path)
    return found


def test_results(finished):
    table = results_table(finished)
    assert table.columns == ("gate, search", "seeds", "steps needed", "test loss")
    assert table.rows[0] == ("Hash, none", "3", "101 ± 1", "0.510 ± 0.006")
    assert table.rows[1] == ("Hash, search", "3", "5 ± 0", "0.260 ± 0.006")
    assert len(table.rows) == 4


def test_comparison_of_differences(finished):
    table = comparison_table(finished, TOY.measures[1])
    assert table.title == "test loss: against none, lower is better"
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["gate, search"], row["lower in"], row["r"]) == ("Hash, search", "3 of 3", "-1.00")
    assert row["difference"].startswith("-0.250 ± 0.000")
    assert (row["p"], row["Holm"]) == ("0.2500", "0.5000")


def test_comparison_of_ratios(finished):
    table = comparison_table(finished, TOY.measures[0])
    row = dict(zip(table.columns, table.rows[1], strict=True))
    assert row["times less"] == "20.2"  # the geometric mean of 100, 101 and 102 fifths
    assert row["p of more than 10 times"] == "0.1250"
    assert row["Holm"] == "0.2500"


def test_other_pairs_than_with_the_first_search(tmp_path, monkeypatch):
    turned = replace(TOY, pairs=(("search", "none"),))
    monkeypatch.setattr(page, "find_experiment", lambda _: turned)
    run_experiment(turned, tmp_path)
    (found,) = read_finished(tmp_path)
    table = comparison_table(found, TOY.measures[1])
    assert table.title == "test loss: pairs, lower is better"
    assert [row[0] for row in table.rows] == ["Hash, none against search", "Top-k, none against search"]
    assert table.rows[0][1].startswith("0.250 ± 0.000")
    (headline,) = make_report([found], "moe-search report").headlines
    assert headline.startswith("A toy: steps needed, none against search: Hash 0.0 times less")
    with pytest.raises(ValueError, match="a search of pairs must be one of none, search, got 'magic'"):
        replace(TOY, pairs=(("none", "magic"),))


def test_pairs_are_of_seeds_that_ended_under_both(tmp_path):
    run_experiment(TOY, tmp_path, seeds=2)
    journal = tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join(lines[:-1]) + "\n")  # seed 1, Top-k, search did not end
    (found,) = read_finished(tmp_path)
    assert [row[-1] for row in comparison_table(found, TOY.measures[1]).rows] == ["2 of 2", "1 of 1"]
    assert [row[1] for row in results_table(found).rows] == ["2", "2", "2", "1"]
    assert comparison_table(found, TOY.measures[0]).rows[1][2] == "-"


def test_page_is_self_contained(finished):
    text = render_report(make_report([finished], "moe-search report here"))
    assert text.count("<svg") == 2
    assert "A toy" in text
    assert "moe-search experiment toy --first-seed 0 --seeds 3" in text
    assert "they show that all works, and nothing else" not in text
    assert "20.2" in text
    assert all(a.startswith(("#", "data:")) for a in re.findall(r'(?:src|href)="([^"]*)"', text))


def test_smoke_sizes_are_called_so(tmp_path):
    run_experiment(TOY, tmp_path, settings=ToySettings(size=1), seeds=1)
    text = render_report(make_report(read_finished(tmp_path), "moe-search report"))
    assert "they show that all works, and nothing else" in text
    assert "A toy (smoke)" in text
    assert "moe-search experiment toy --smoke --first-seed 0 --seeds 1" in text


def test_the_report_looks_where_smoke_runs_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moe_search.bench.experiments.run.find_experiment", lambda _: TOY)
    run_with_progress("toy", smoke=True, seeds=None, first_seed=0, jobs=1, output=None, data=None)
    run_with_progress("toy", smoke=False, seeds=1, first_seed=0, jobs=1, output=None, data=None)
    done = CliRunner().invoke(app, ["report"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "moe-search-experiments" / "report.html").read_text(encoding="utf-8")
    assert re.findall("<h2>(A toy.*?)</h2>", text) == ["A toy", "A toy (smoke)"]


def test_the_page_begins_with_what_came_out(finished):
    (headline,) = make_report([finished], "moe-search report").headlines
    assert headline.startswith(
        "A toy: steps needed, search against none: Hash 20.2 times less, Top-k 20.2 times less; "
    )
    assert headline.endswith("lower more than 10 times at the 5% level for 0 of 2 gates.")


def test_the_question_tells_the_numbers_of_the_run_and_columns_count_the_better_side(tmp_path, monkeypatch):
    higher = replace(TOY, question="Within {size} steps?", measures=(replace(TOY.measures[0], better="higher"),))
    monkeypatch.setattr(page, "find_experiment", lambda _: higher)
    run_experiment(higher, tmp_path, settings=ToySettings(size=12), seeds=2)
    (found,) = read_finished(tmp_path)
    assert section(found).paragraphs[0] == "Within 12 steps?"
    table = comparison_table(found, higher.measures[0])
    assert (table.columns[-1], table.rows[0][-1]) == ("higher in", "0 of 2")


@pytest.mark.parametrize("name", HOMES)
def test_every_question_can_be_told_for_both_sizes(name):
    experiment = find_experiment(name)
    for settings in (experiment.settings, experiment.smoke):
        assert "{" not in experiment.question.format(**plain_settings(settings))


def test_several_experiments_on_one_page(tmp_path):
    run_experiment(TOY, tmp_path / "first", seeds=1)
    run_experiment(TOY, tmp_path / "second", seeds=2)
    assert [len(each.entries) for each in read_finished(tmp_path)] == [4, 8]


def test_maps_and_command_of_other_seeds(tmp_path):
    run_experiment(TOY, tmp_path, seeds=2, first_seed=100)
    text = render_report(make_report(read_finished(tmp_path), "moe-search report"))
    assert "moe-search experiment toy --first-seed 100 --seeds 2" in text
    assert "in the trials of seed 100" in text


def test_nothing_to_report(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither it nor a folder in it holds journal.jsonl"):
        read_finished(tmp_path)
    (tmp_path / "journal.jsonl").write_text('{"experiment": "toy", "settings": {}}\n')
    with pytest.raises(ValueError, match="must hold at least one finished trial, got none"):
        read_finished(tmp_path)


@pytest.mark.parametrize("name", HOMES)
def test_every_experiment_is_found(name):
    found = find_experiment(name)
    assert found.name == name
    assert found.smoke != found.settings
    assert type(found.smoke) is type(found.settings)


def test_an_unknown_experiment():
    with pytest.raises(ValueError, match=r"an experiment must be one of scrambled-digits, .*, got 'magic'"):
        find_experiment("magic")
