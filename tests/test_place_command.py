"""The command that places experts, from a file of loads to a file of an engine."""

import json
import re

import numpy as np
import pytest
from ctrl_c import ctrl_c_after
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
    assert [row[1] for row in rows if row and row[0] in "012"] == [f"{each:.4f}" for each in balance]
    assert "before" not in first.stdout
    drifted = tmp_path / "drifted.csv"
    np.savetxt(drifted, LOADS * np.random.default_rng(1).lognormal(sigma=0.3, size=LOADS.shape), delimiter=",")
    page = tmp_path / "page.html"
    most = {"10%": 6, "0.05": 3, "4": 4}
    for budget, migrations in most.items():
        again = run(drifted, *arguments, "--previous", tmp_path / "old.json", "--budget", budget, "--report", page)
        assert again.exit_code == 0, again.stderr
        (row,) = [line.split() for line in again.stdout.splitlines() if line.strip().startswith("all")]
        assert 0 < int(row[-1]) <= migrations
        assert float(row[2]) > float(row[1])
    text = page.read_text()
    assert re.search(r"4 migrations, \d of them between nodes: 6.7% of 60 slots.", text)
    assert text.count("<svg") == 3
    assert "<summary>Migrations (4 rows)</summary>" in text
    (tmp_path / "loads.json").write_text(json.dumps([LOADS.tolist(), LOADS.tolist()]))
    windows = run(tmp_path / "loads.json", *arguments, "--previous", tmp_path / "old.json", "--tolerance", "50%")
    assert "all" in windows.stdout


def test_what_two_replicas_on_a_device_bear_is_told_before_they_are_mended(loads, tmp_path):
    old = [0, 0, 1, 2, 3, *range(4, 16), 1, 2, 3]
    (tmp_path / "old.json").write_text(json.dumps({"physical_to_logical_map": [old] * 3}))
    told = run(loads, "--devices", 4, "--slots", 20, "--previous", tmp_path / "old.json", "--tolerance", "100%")
    rows = [line.split() for line in told.stdout.splitlines() if line.strip().startswith(("0 ", "1 ", "2 "))]
    for row, load in zip(rows, LOADS, strict=True):
        copies = np.bincount(old)
        borne = (load / copies)[old].reshape(4, 5).sum(axis=1)
        assert row[1] == f"{borne.mean() / borne.max():.4f}"
        assert int(row[-1]) >= 1


@pytest.mark.parametrize(("form", "suffix"), [("sglang", "json"), ("tensorrt-llm", "yaml"), ("vllm", "npz")])
def test_layers_are_those_of_the_model_and_idle_ones_keep_their_experts(tmp_path, form, suffix):
    if suffix == "yaml":
        pytest.importorskip("yaml")
    idle = LOADS.copy()
    idle[1] = 0.0
    np.save(tmp_path / "loads.npy", LOADS)
    np.save(tmp_path / "idle.npy", idle)
    arguments = ("--devices", 4, "--slots", 20, "--format", form, "--first-layer", 3)
    for name, more in (("loads", ()), ("idle", ("--previous", tmp_path / f"loads.{suffix}"))):
        told = run(tmp_path / f"{name}.npy", *arguments, *more, "-o", tmp_path / f"{name}.{suffix}")
        assert told.exit_code == 0, told.stderr
    assert [line.split()[0] for line in told.stdout.splitlines() if line.startswith((" 3", " 4", " 5"))] == ["3", "5"]
    assert "Left out, as without any load: 4." in told.stdout
    before, after = (read_placement(tmp_path / f"{name}.{suffix}", layers=[3, 4, 5]) for name in ("loads", "idle"))
    assert after[1].tolist() == before[1].tolist()
    if form == "sglang":
        assert read_placement(tmp_path / "idle.json")[:3].tolist() == [[*range(16), 0, 1, 2, 3]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--devices", 3, "--slots", 20), "--slots must be a multiple of --devices, 3, got 20"),
        (("--devices", 4, "--slots", 20, "--nodes", 3), "--devices must be a multiple of --nodes, 3, got 4"),
        (("--devices", 4, "--slots", 20, "--nodes", 2, "--groups", 3), "num_groups must divide the number of experts"),
        (("--devices", 4, "--slots", 80), "a device must have at most one slot for each of the 16 experts"),
        (("--devices", 4, "--slots", 20, "-o", "x.json"), "--output must end in .npz for the format vllm, got x.json"),
        (("--devices", 4, "--slots", 20, "--seed", -1), "--seed must be an integer >= 0, got -1"),
        (("--devices", 4, "--slots", 8), "the devices must have a slot for each of 16 experts, got 8 slots"),
        (("--devices", 4, "--slots", 20, "--budget", "5%"), "--budget and --tolerance need --previous"),
        (
            ("--devices", 4, "--slots", 20, "--format", "x"),
            "--format must be one of vllm, sglang, tensorrt-llm, ascend",
        ),
        (("--devices", 4, "--slots", 20, "-o", "x.npz", "--report", "x.npz"), "must be two files, got x.npz for both"),
        (("--devices", 4, "--slots", 20, "--turns", 0), "--turns must be an integer >= 1, got 0"),
        (("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--budget", "0"), "allow one migration at least"),
        (("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--budget", "1%"), "got 1% of 60 slots"),
        (
            ("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--budget", "1.5"),
            "--budget must be a number of migrations, a percentage such as 2%, or a part such as 0.02, got '1.5'",
        ),
        (
            ("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--tolerance", "2"),
            "such as 2%, or a part such as",
        ),
        (("--devices", 4, "--slots", 20, "--previous", "PREVIOUS", "--tolerance", "x"), "a percentage such as 2%"),
        (("--devices", 5, "--slots", 25, "--previous", "PREVIOUS"), "--previous must have shape (3, 25), layers and"),
    ],
)
def test_bad_arguments_end_in_a_line(loads, tmp_path, arguments, message):
    (tmp_path / "PREVIOUS.json").write_text(json.dumps({"physical_to_logical_map": [[*range(16), 0, 1, 2, 3]] * 3}))
    given = [tmp_path / "PREVIOUS.json" if each == "PREVIOUS" else each for each in arguments]
    result = run(loads, *given)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (-LOADS, "load must not be negative, got -"),
        (np.where(LOADS > 1, np.nan, LOADS), "load must be finite, got nan at index"),
        (0 * LOADS, "loads.npy must hold a load above 0, got none"),
        (LOADS[:0], "load must not be empty, got shape (0, 16)"),
    ],
)
def test_loads_that_are_none_end_in_a_line(load, message, tmp_path):
    np.save(tmp_path / "loads.npy", load)
    result = run(tmp_path / "loads.npy", "--devices", 4, "--slots", 20)
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert message in result.stderr


def test_a_previous_map_of_all_layers_of_the_model_is_told_apart(loads, tmp_path):
    arguments = (loads, "--devices", 4, "--slots", 20)
    run(*arguments, "--first-layer", 3, "--format", "sglang", "-o", tmp_path / "map.json", "--turns", 1)
    result = run(*arguments, "--previous", tmp_path / "map.json")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert "--previous must be of 3 layers, got 6; where the first ones have no experts, --first-layer" in result.stderr


def test_ctrl_c_leaves_the_best_placement_found(loads, tmp_path):
    arguments = (loads, "--devices", 8, "--slots", 24, "-o", tmp_path / "map.npz")
    run(*arguments, "--turns", 1)
    with ctrl_c_after(0.3):
        result = run(*arguments, "--turns", 10_000_000)
    assert result.exit_code == 130
    assert read_placement(tmp_path / "map.npz").shape == (3, 24)
