"""The command that places experts, from a file of loads to a file of an engine."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import moe_search as ms
from moe_search.bench.commands import app
from moe_search.serving import read_placement

pytestmark = pytest.mark.slow  # compiles kernels

LOADS = np.random.default_rng(0).lognormal(size=(3, 16))


def run(*arguments):
    return CliRunner().invoke(app, ["place", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def loads(tmp_path):
    path = tmp_path / "loads.npz"
    np.savez(path, load=LOADS, other=[1])
    return path


def test_a_placement_and_then_another_at_few_migrations(loads, tmp_path):
    problem = ms.ExpertPlacement(LOADS, ms.Cluster(4, 5, 2), num_groups=4)
    arguments = ("--devices", 4, "--slots", 20, "--nodes", 2, "--groups", 4)
    first = run(loads, *arguments, "--format", "ascend", "-o", tmp_path / "old.json")
    assert first.exit_code == 0, first.stderr
    old = read_placement(tmp_path / "old.json")
    balance = problem.check_solution(old).balancedness
    rows = [line.split() for line in first.stdout.splitlines()]
    assert [row[2] for row in rows if row and row[0] in "012"] == [f"{each:.4f}" for each in balance]
    drifted = tmp_path / "drifted.csv"
    np.savetxt(drifted, LOADS * np.random.default_rng(1).lognormal(sigma=0.3, size=LOADS.shape), delimiter=",")
    page = tmp_path / "page.html"
    most = {"10%": 6, "4": 4}
    for budget, migrations in most.items():
        again = run(drifted, *arguments, "--previous", tmp_path / "old.json", "--budget", budget, "--report", page)
        assert again.exit_code == 0, again.stderr
        (row,) = [line.split() for line in again.stdout.splitlines() if line.strip().startswith("all")]
        assert 0 < int(row[-1]) <= migrations
        assert float(row[2]) > float(row[1])
    assert "4 migrations, of 60 slots." in page.read_text()
    assert page.read_text().count("<svg") == 2
    (tmp_path / "loads.json").write_text(json.dumps([LOADS.tolist(), LOADS.tolist()]))
    windows = run(tmp_path / "loads.json", *arguments, "--previous", tmp_path / "old.json", "--tolerance", "50%")
    assert "all" in windows.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", 3, "--slots", 20), "num_replicas must be a multiple of num_gpus, 3, got 20"),
        (("--devices", 4, "--slots", 8), "the devices must have a slot for each of 16 experts, got 8 slots"),
        (("--devices", 4, "--slots", 20, "--budget", "5%"), "--budget and --tolerance need --previous"),
        (
            ("--devices", 4, "--slots", 20, "--format", "x"),
            "--format must be one of vllm, sglang, tensorrt-llm, ascend",
        ),
        (("--devices", 4, "--slots", 20, "--turns", 0), "--turns must be an integer >= 1, got 0"),
        (("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--budget", "0"), "budget must be an integer >= 1"),
        (("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--tolerance", "x"), "a percentage such as 5%"),
        (("--devices", 5, "--slots", 25, "--previous", "PREVIOUS"), "previous must have shape (3, 25), layers and"),
    ],
)
def test_bad_arguments_end_in_a_line(loads, tmp_path, arguments, message):
    (tmp_path / "PREVIOUS.json").write_text(json.dumps({"physical_to_logical_map": [[*range(16), 0, 1, 2, 3]] * 3}))
    given = [tmp_path / "PREVIOUS.json" if each == "PREVIOUS" else each for each in arguments]
    result = run(loads, *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_files_without_loads_are_told(tmp_path):
    for name, content in (("a.csv", "1,x"), ("a.json", "{}"), ("a.txt", "1")):
        (tmp_path / name).write_text(content)
        result = run(tmp_path / name, "--devices", 2, "--slots", 2)
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1
    np.savez(tmp_path / "two.npz", a=[1.0], b=[2.0])
    assert (
        "must hold one array or one named load, got ['a', 'b']"
        in run(tmp_path / "two.npz", "--devices", 1, "--slots", 1).stderr
    )
