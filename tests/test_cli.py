import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from moe_search.cli import SOLVERS, app
from moe_search.problems.qaplib import read_qaplib, write_qaplib
from moe_search.problems.random_instances import random_quadratic
from moe_search.solvers.engine.result import Result


@pytest.fixture
def instance(tmp_path):
    path = tmp_path / "small.dat"
    write_qaplib(path, random_quadratic(6, seed=4))
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def one_line_error(result):
    """The message of a run that ended as bad arguments should: status 2, one line, no traceback."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("solver", sorted(set(SOLVERS) - {"hungarian", "min-cost-flow", "transport", "cp-sat"}))
def test_solve_prints_value_bound_and_gap(instance, solver):
    result = run("solve", instance, "--time", "0.2", "--solver", solver, "--seed", "5")
    assert result.exit_code == 0, result.stderr
    shown = dict(line.strip().split(maxsplit=1) for line in result.stdout.splitlines())
    assert set(shown) >= {"problem", "value", "bound", "gap", "status", "iterations", "runtime", "solver", "seed"}
    permutation = [int(seat) for seat in shown["permutation"].split()]
    assert int(shown["value"].replace(",", "")) == read_qaplib(instance).value(permutation)
    if solver == "enumeration":
        assert shown["status"] == "optimal"
        assert shown["bound"] == shown["value"]


def test_solve_writes_the_result_as_json(instance, tmp_path):
    path = tmp_path / "result.json"
    result = run("solve", instance, "--time", "0.1", "--solver", "local-search", "--seed", "7", "--json", path)
    assert result.exit_code == 0, result.stderr
    read = Result.from_json(path.read_text())
    assert read.value == read_qaplib(instance).value(read.permutation)
    assert json.loads(path.read_text())["seed"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--time", "0"), "--time must be a positive number of seconds, got 0"),
        (("--time", "-1"), "--time must be a positive number of seconds, got -1"),
        (("--time", "nan"), "--time must be a positive number of seconds, got nan"),
        (("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (("--solver", "magic"), "--solver must be one of auto, local-search, iterated-local-search, tabu-search"),
        (("--solver", "hungarian"), "QuadraticAssignment"),
        (("--json", "/nowhere/result.json"), "--json must lie in a folder that exists, got /nowhere/result.json"),
    ],
)
def test_solve_refuses_bad_arguments(instance, arguments, message):
    line = one_line_error(run("solve", instance, *arguments))
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("content", "message"),
    [("3\n1 2 3", "truncated"), ("two\n1 2", "no QAPLIB file"), ("", "an empty file"), ("-1", "got -1")],
)
def test_solve_refuses_malformed_files(tmp_path, content, message):
    path = tmp_path / "bad.dat"
    path.write_text(content)
    line = one_line_error(run("solve", path))
    assert str(path) in line
    assert message in line


def test_solve_refuses_a_missing_file(tmp_path):
    assert "missing.dat: No such file" in one_line_error(run("solve", tmp_path / "missing.dat"))


def test_a_heuristic_solve_loads_no_heavy_library(instance):
    code = (
        "import sys; from moe_search.cli import app; "
        f"app(['solve', {str(instance)!r}, '--time', '0.05', '--solver', 'local-search'], standalone_mode=False); "
        "print('loaded', sorted({'torch', 'ortools', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "device must be one of auto, cpu, cuda, got 'tpu'"),
        (("--seeds", "0"), "seeds must be an integer >= 1, got 0"),
        (("--epochs", "-2"), "epochs must be an integer >= 1, got -2"),
        (("--report", "/nowhere/report.html"), "report must lie in a folder that exists, got /nowhere/report.html"),
        (("--report", "/"), "report must be a file, got the folder /"),
        (("--picture", "curves.xyz"), "picture must end in one of"),
    ],
)
def test_demo_refuses_bad_arguments_before_any_work(arguments, message):
    assert message in one_line_error(run("demo", "--smoke", *arguments))


def test_demo_without_a_gpu_refuses_cuda(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    line = one_line_error(run("demo", "--smoke", "--device", "cuda", "--report", tmp_path / "report.html"))
    assert "cuda was asked for, but torch sees none" in line
