import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ctrl_c import ctrl_c_after
from typer.main import get_command
from typer.testing import CliRunner

import moe_search
from moe_search.bench.commands import app
from moe_search.bench.experiments.experiment import HOMES
from moe_search.cli.solve import solver_kinds, solver_named
from moe_search.problems.qaplib import read_qaplib, write_qaplib, write_qaplib_solution
from moe_search.problems.random_instances import random_linear, random_pairwise, random_quadratic
from moe_search.solvers.engine.result import Result


@pytest.fixture
def instance(tmp_path):
    path = tmp_path / "small.dat"
    write_qaplib(path, random_quadratic(6, seed=4))
    return path


def run(*arguments, columns=200):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)})


def printed(result):
    """The rows that a solve has printed."""
    return dict(line.strip().split(maxsplit=1) for line in result.stdout.splitlines())


def one_line_error(result):
    """The message of a run that ended as bad arguments should: status 2, one line, no traceback."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    return line


COMMANDS = "solve place simulate statistics prune split warm-up"

OTHER_PROBLEMS = {"hungarian", "min-cost-flow", "transport", "cp-sat", "longest-processing-time"}
OTHER_PROBLEMS |= {"placement-search", "placement-cp-sat", "co-activation-search"}
OTHER_PROBLEMS |= {"partition-search", "subset-search", "subset-enumeration"}


@pytest.mark.parametrize("solver", sorted({"auto", *solver_kinds()} - OTHER_PROBLEMS))
def test_solve_prints_value_bound_and_gap(instance, solver):
    result = run("solve", instance, "--time", "0.2", "--solver", solver, "--seed", "5")
    assert result.exit_code == 0, result.stderr
    shown = printed(result)
    assert set(shown) >= {"problem", "value", "bound", "gap", "status", "iterations", "runtime", "solver", "seed"}
    permutation = [int(seat) for seat in shown["permutation"].split()]
    assert int(shown["value"].replace(",", "")) == read_qaplib(instance).value(permutation)
    if solver == "enumeration":
        assert shown["status"] == "optimal"
        assert shown["bound"] == shown["value"]


def test_solve_uses_threads(instance):
    result = run("solve", instance, "--time", "0.1", "--solver", "local-search", "--jobs", "2")
    assert printed(result)["solver"].startswith("MultiStart(solver=LocalSearch(")


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
        (("--jobs", "0"), "--jobs must be positive, or negative to count from the number of processors, got 0"),
        (("--seed", "-1"), "--seed must be 0 or more, got -1"),
        (
            ("--solver", "magic"),
            "--solver must be one of auto, branch-and-bound, breakout-local-search, co-activation-search, cp-sat",
        ),
        (("--solver", "hungarian"), "QuadraticAssignment"),
        (("--json", "/nowhere/result.json"), "--json must lie in a folder that exists, got /nowhere/result.json"),
        (("--target", "nan"), "--target must be a number, got nan"),
        (("--initial", "/nowhere/x.sln"), "cannot use /nowhere/x.sln: No such file or directory"),
        (("--initial", __file__), "--initial must end in .json, .sln or .csv, got "),
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


WRONG = (
    ("solve", "missing.dat"),
    ("place", "missing.npz", "--devices", "2", "--slots", "4"),
    ("simulate", "missing.npz", "--devices", "2", "--slots", "4"),
    ("bench", "--suite", "nosuch"),
    ("bench", "--timeout", "-1"),
    ("bench", "--solver-file", "missing.py"),
    ("experiment", "nosuch"),
    ("experiment", "fresh-digits", "--seeds", "0"),
    ("experiment", "token-table", "--data", "missing"),
    ("demo", "--device", "tpu"),
    ("demo", "--epochs", "0"),
    ("report", "missing"),
)


@pytest.mark.parametrize(
    ("status", "also", "commands"),
    [
        (0, set(), [("solve", "FILE", "--time", "0.05", "--solver", "local-search")]),
        (0, {"numba"}, [("--help",), ("--version",), ("experiment", "--list"), ("bench", "-h")]),
        (2, {"numba"}, WRONG),
    ],
)
def test_help_wrong_arguments_and_a_heuristic_solve_load_no_heavy_library(instance, status, also, commands):
    commands = [[str(instance) if argument == "FILE" else argument for argument in each] for each in commands]
    heavy = {"torch", "ortools", "matplotlib", "sklearn", "pandas", "benchopt", *also}
    code = (
        "import sys; from moe_search.bench.commands import app\n"
        f"for command in {commands}:\n"
        "    try: app(command)\n"
        f"    except SystemExit as error: assert error.code == {status}, command\n"
        f"    print('loaded', *sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = [line for line in done.stdout.splitlines() if line.startswith("loaded")]
    assert loaded == ["loaded"] * len(commands)


def test_a_solver_has_the_name_of_its_class_too():
    for name, kind in solver_kinds().items():
        assert type(solver_named(kind.__name__)) is type(solver_named(name)) is kind


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", [None, *get_command(app).commands])
def test_help_leaves_nothing_out(name, columns):
    command = get_command(app) if name is None else get_command(app).commands[name]
    before = [] if name is None else [name]
    shown = run(*before, "-h", columns=columns).stdout
    assert run(*before, "--help", columns=columns).stdout == shown
    assert max(map(len, shown.splitlines())) <= columns
    joined = "".join(shown.split())
    assert "<list" not in joined
    for parameter in command.params:
        assert "".join((parameter.help or "").split()) in joined
        if parameter.default not in (None, False, Ellipsis) and parameter.param_type_name == "option":
            assert f"[default:{parameter.default}]" in joined
    # The list of commands cuts what does not fit into a line.
    assert "..." not in shown.partition("Commands:")[2]


def test_version_list_and_the_module_as_a_command():
    assert run("--version").stdout == f"moe-search {moe_search.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "moe_search", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout
    lines = run("experiment", "--list").stdout.splitlines()
    assert sorted(line.strip() for line in lines if line.startswith("    ")) == sorted(HOMES)
    assert "Static gates over many tasks, some of which are alike and should share an expert." in lines


@pytest.mark.parametrize(("words", "offered"), [("so", ["solve"]), ("experiment token-t", ["token-table"])])
def test_the_shell_completes_commands_and_experiments(words, offered):
    code = "import sys; from moe_search.bench.commands import app; sys.argv[:] = ['moe-search']; app()"
    words = f"moe-search {words}"
    asked = {"_MOE_SEARCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == offered


@pytest.mark.parametrize(
    ("name", "problem"),
    [("x.csv", random_linear(6, 3, seed=1)), ("x.npz", random_pairwise(4, 2, seed=1))],
)
def test_linear_and_pairwise_problems_are_solved_too(tmp_path, name, problem):
    path = tmp_path / name
    if name == "x.csv":
        np.savetxt(path, problem.cost, fmt="%d", delimiter=",")
    else:
        np.savez(path, cost=problem.cost)
    result = run("solve", path, "--time", "5")
    assert result.exit_code == 0, result.stderr
    shown = printed(result)
    assert (shown["status"], shown["problem"]) == ("optimal", f"{name}: {problem!r}")
    assert problem.value([int(seat) for seat in shown["permutation"].split()]) == int(shown["value"].replace(",", ""))
    path.write_text("1,2,3\n4")
    assert f"{name} holds no problem" in one_line_error(run("solve", path))


def test_a_solve_starts_where_it_is_told_and_stops_at_its_target(instance, tmp_path):
    problem = read_qaplib(instance)
    best = run("solve", instance, "--json", tmp_path / "best.json")
    assert best.exit_code == 0, best.stderr
    found = Result.from_json((tmp_path / "best.json").read_text())
    write_qaplib_solution(tmp_path / "best.sln", found.value, found.permutation)
    (tmp_path / "best.csv").write_text(",".join(map(str, found.permutation)))
    for name in ("best.json", "best.sln", "best.csv"):
        again = run(
            *("solve", instance, "--initial", tmp_path / name, "--solver", "local-search"),
            *("--target", found.value, "--time", "30"),
        )
        assert again.exit_code == 0, again.stderr
        shown = printed(again)
        assert (shown["value"], shown["iterations"]) == (f"{found.value:,}", "0")
        assert shown["permutation"] == " ".join(map(str, found.permutation))
    (tmp_path / "bad.csv").write_text("0 1 2")
    assert "--initial must have shape (6,)" in one_line_error(run("solve", instance, "--initial", tmp_path / "bad.csv"))
    for text in ("{}", "[" * 200_000):
        (tmp_path / "bad.json").write_text(text)
        assert "holds no solution" in one_line_error(run("solve", instance, "--initial", tmp_path / "bad.json"))
    np.savez(tmp_path / "x.npz", cost=np.ones((6, 6)))
    line = one_line_error(run("solve", tmp_path / "x.npz", "--initial", tmp_path / "best.sln"))
    assert "must not be a .sln for a LinearAssignment" in line
    assert problem.value(found.permutation) == found.value


def test_display_goes_to_the_standard_error(instance):
    result = run("solve", instance, "--display", "--time", "0.1", "--solver", "local-search")
    assert printed(result)["status"]
    assert result.stderr.startswith("QuadraticAssignment(size=6, integral, symmetric)\nby LocalSearch(")


def test_ctrl_c_prints_the_incumbent_and_exits_with_130(tmp_path):
    path = tmp_path / "larger.dat"
    write_qaplib(path, random_quadratic(30, seed=4))
    arguments = ("solve", path, "--solver", "local-search", "--time")
    run(*arguments, "0.01")
    with ctrl_c_after(0.5):
        result = run(*arguments, "60")
    assert result.exit_code == 130
    assert printed(result)["status"] == "interrupted"


def test_the_library_has_its_own_commands_and_the_laboratory_adds_the_others():
    code = (
        "from typer.main import get_command; from moe_search import cli; print(*get_command(cli.app).commands); "
        "import moe_search.bench.commands; print(*get_command(cli.app).commands)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [COMMANDS, f"{COMMANDS} demo bench experiment report"]


def test_the_library_never_imports_the_laboratory():
    home = Path(moe_search.__file__).parent
    folders = {path for path in home.iterdir() if path.name not in ("bench", "__main__.py")}
    files = [path for folder in folders for path in (folder.rglob("*.py") if folder.is_dir() else [folder])]
    assert len(files) > 100
    for path in files:
        if path.suffix in (".py", ".pyi"):
            assert not re.search(r"(from|import) \S*\bbench\b", path.read_text(encoding="utf-8")), path


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
