"""The comparison from end to end, through the command line."""

import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import moe_search
from moe_search.bench.comparison.runs import work_folder
from moe_search.bench.comparison.solver_files import load_solvers, our_solver_files
from moe_search.bench.comparison.solvers import SOLVERS
from moe_search.problems.random_instances import random_quadratic
from moe_search.solvers.heuristic.tabu_search import TabuSearch

ROOT = Path(moe_search.__file__).parents[1]
DATASETS = ("--dataset", "random-quadratic[size=7,seed=[0,1]]", "--dataset", "trained-gate[gate=hash]")

SOLVERS_OF_MY_OWN = """
import time
from dataclasses import dataclass

import numpy as np

import moe_search as ms
from moe_search.solvers.engine.proposer import Proposer


@dataclass(frozen=True)
class Shuffle(Proposer):
    log: str = ""

    def refuses(self, problem):
        return None if isinstance(problem, ms.QuadraticAssignment) else "my own reason"

    def proposals(self, problem, rng):
        begun, told = time.monotonic(), not self.log
        while True:
            # The warm-up has ended by then.
            if not told and time.monotonic() - begun > 0.25:
                told = True
                with open(self.log, "a") as file:
                    file.write("run\\n")
            yield problem.random_solution(rng)


@dataclass(frozen=True)
class Broken(Shuffle):
    def proposals(self, problem, rng):
        raise ArithmeticError("no luck today")
"""

BENCHOPT_FILE = """
import numpy as np
from benchopt import BaseSolver


class Solver(BaseSolver):
    name = "identity"
    sampling_strategy = "callback"

    def set_objective(self, problem, seconds):
        self.size = problem.size

    def run(self, callback):
        callback()

    def get_result(self):
        return {"permutation": np.arange(self.size), "bound": None}
"""


def runs(folder):
    return pd.read_parquet(folder / "runs.parquet")


def test_a_solver_that_raises_is_marked_failed_and_the_others_go_on(bench, tmp_path):
    (tmp_path / "own.py").write_text(SOLVERS_OF_MY_OWN)
    (tmp_path / "peer.py").write_text(BENCHOPT_FILE)
    output = tmp_path / "out"
    files = "--solver-file", "own.py", "--solver-file", "peer.py"
    options = "--repetitions", "2", "--timeout", "0.05", "--output", output
    done = bench(*DATASETS, "--solver", "Hungarian", *files, *options)
    table = runs(output)
    assert set(table["solver"]) == {"Hungarian", "Shuffle", "Broken", "identity"}
    assert len(table) == 3 * 4 * 2
    status = {key: set(group["status"]) for key, group in table.groupby(["solver", "problem"])}
    assert status == {
        ("Hungarian", "QuadraticAssignment"): {"skipped"},
        ("Hungarian", "LinearAssignment"): {"done"},
        ("Shuffle", "QuadraticAssignment"): {"done"},
        ("Shuffle", "LinearAssignment"): {"skipped"},
        ("Broken", "QuadraticAssignment"): {"failed"},
        ("Broken", "LinearAssignment"): {"skipped"},
        ("identity", "QuadraticAssignment"): {"done"},
        ("identity", "LinearAssignment"): {"done"},
    }
    reasons = table.set_index(["solver", "status"])["reason"]
    assert set(reasons["Broken", "failed"]) == {"ArithmeticError: no luck today"}
    assert set(reasons["Broken", "skipped"]) == {"my own reason"}
    assert np.isinf(table.loc[table["status"] == "failed", "value"]).all()
    for seed in (0, 1):
        mine = table[(table["solver"] == "identity") & (table["dataset"] == f"random-quadratic[n=7, seed={seed}]")]
        assert set(mine["value"]) == {random_quadratic(7, seed=seed).value(np.arange(7))}
    report = (output / "report.html").read_text(encoding="utf-8")
    assert "ArithmeticError: no luck today" in report
    assert "nan" not in report.replace("nan_to_num", "").lower().split("<body>")[1].replace("dominant", "")
    assert "ArithmeticError" in (output / "report.md").read_text(encoding="utf-8")
    assert "written:" in done.stdout

    # The same again comes from the cache: the recorded times are the very same. Only what failed is tried anew.
    again = bench(*DATASETS, "--solver", "Hungarian", *files, *options)
    lines = again.stdout.splitlines()
    assert sum(bool(re.match(r"16 runs in .* s: 12 done, 4 failed, 12 from the cache$", line)) for line in lines) == 1
    assert sum(" skips " in line for line in lines) == 3
    assert sum(line.startswith("failed: Broken on ") for line in lines) == 4
    # No escape sequences where the output is no terminal.
    assert "\x1b" not in again.stdout
    pd.testing.assert_frame_equal(runs(output), table)


def test_a_killed_comparison_resumes_and_nothing_is_lost(bench, tmp_path):
    log, output = tmp_path / "log", tmp_path / "out"
    (tmp_path / "own.py").write_text(SOLVERS_OF_MY_OWN.split("@dataclass(frozen=True)\nclass Broken")[0])
    with (tmp_path / "own.py").open("a") as file:
        file.write(f"\nshuffle = Shuffle({str(log)!r})\n")
    arguments = "--dataset", "random-quadratic[size=7]", "--solver", "Hungarian", "--solver-file", "own.py"
    arguments += "--repetitions", "6", "--timeout", "0.5", "--output", output
    process = bench(*arguments, start=True)
    while not (log.exists() and log.read_text().count("run") >= 4):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    begun = log.read_text().count("run")
    assert 4 <= begun < 6
    assert not (output / "runs.parquet").exists()
    bench(*arguments)
    table = runs(output)
    assert set(table.loc[table["solver"] == "shuffle", "status"]) == {"done"}
    assert sorted(table.loc[table["solver"] == "shuffle", "repetition"]) == list(range(6))
    # Only the run in progress was done again.
    assert log.read_text().count("run") == 6 + 1


@pytest.mark.parametrize("first", ["the script", "the comparison"])
def test_the_example_of_a_new_solver_runs_as_a_script_and_in_the_comparison(bench, tmp_path, first):
    # Numba's cache of the kernel, which the first leaves to the second, holds the name of the module.
    text = (Path(__file__).parents[3] / "docs" / "new_solver.md").read_text(encoding="utf-8")
    file, script, *_ = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "threshold_accepting.py").write_text(file)
    (tmp_path / "script.py").write_text(script)
    program, command, *arguments = shlex.split(
        re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)[0].replace("\\\n", "")
    )
    assert (program, command) == ("moe-search", "bench")

    def run_script():
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert len(done.stdout.splitlines()) == 3

    if first == "the script":
        run_script()
    bench(*arguments, "--repetitions", "1", "--timeout", "0.05")
    if first == "the comparison":
        run_script()
    table = runs(tmp_path / "moe-search-bench")
    assert sorted(table["solver"]) == ["TabuSearch", "ThresholdAccepting"]
    assert list(table["status"]) == ["done", "done"]


def test_a_solver_file_named_after_another_module_is_refused(bench, tmp_path):
    own = "import moe_search as ms\n\nmine = ms.LocalSearch()\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(own)
    (tmp_path / "statistics.py").write_text(own)
    (tmp_path / "own.2.py").write_text(own)
    for files, message in (
        (["a/own.py", "b/own.py"], "b/own.py must be renamed: there is another module own already, "),
        (["statistics.py"], "statistics.py must be renamed: there is another module statistics already, "),
        (["own.2.py"], "a solver file must have a name that can be imported, without dots, got "),
    ):
        arguments = [argument for file in files for argument in ("--solver-file", file)]
        done = bench(*arguments, "--solver", "Hungarian", "--dataset", "random-quadratic[size=7]", check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    # benchopt loads its own files, and often they are named after the library they wrap.
    (tmp_path / "statistics.py").write_text(BENCHOPT_FILE)
    arguments = "--solver-file", "statistics.py", "--solver", "Hungarian", "--dataset", "trained-gate[gate=hash]"
    bench(*arguments, "--repetitions", "1", "--timeout", "0.05", "--output", tmp_path / "out")
    assert list(runs(tmp_path / "out")["status"]) == ["done", "done"]


def test_dask_and_joblib_run_it_in_parallel(bench, tmp_path):
    pytest.importorskip("distributed", reason="pip install 'moe-search[cluster]'")
    options = "--dataset", "trained-gate[gate=hash]", "--solver", "Hungarian", "--repetitions", "2", "--timeout", "0.5"
    values = {}
    for backend in ("loky", "dask"):
        bench(*options, "--n-jobs", "2", "--backend", backend, "--output", tmp_path / backend)
        table = runs(tmp_path / backend)
        assert list(table["status"]) == ["done", "done"]
        assert (table["bound"] == table["value"]).all()
        values[backend] = set(table["value"])
        # Else the second backend would find all in the cache.
        os.rename(tmp_path / "cache", tmp_path / f"cache-{backend}")
    assert values["loky"] == values["dask"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "huge"), "suite must be one of small, medium, qaplib, literature, got 'huge'"),
        (("--repetitions", "0"), "repetitions must be an integer >= 1, got 0"),
        (("--n-jobs", "0"), "n_jobs must be an integer >= 1, got 0"),
        (("--timeout", "0"), "timeout must be a finite number > 0, got 0"),
        (("--backend", "ray"), "backend must be one of loky, dask, got 'ray'"),
        (("--suite", "qaplib"), "suite qaplib needs QAPLIB files"),
        (("--qaplib", "/nowhere"), "qaplib must be a folder of QAPLIB files, got /nowhere"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from moe_search.bench.commands import app

    monkeypatch.delenv("MOE_SEARCH_QAPLIB", raising=False)
    result = CliRunner().invoke(app, ["bench", *arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_unknown_solvers_and_bad_solver_files_are_refused(bench, tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "wrong.py").write_text("import does_not_exist\n")
    for arguments, message in (
        (("--solver", "Magic"), "Magic"),
        (("--solver-file", "empty.py"), "must hold a moe_search Solver"),
        (("--solver-file", "wrong.py"), "cannot be imported: ModuleNotFoundError"),
        (("--solver-file", "missing.py"), "missing.py"),
    ):
        done = bench(*arguments, "--dataset", "random-quadratic[size=7]", check=False)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


KILLER = """
import os
from dataclasses import dataclass

import moe_search as ms
from moe_search.solvers.engine.proposer import Proposer


@dataclass(frozen=True)
class Exits(Proposer):
    def proposals(self, problem, rng):
        if problem.size == 6:
            os._exit(3)
        while True:
            yield problem.random_solution(rng)
"""


@pytest.mark.parametrize(("n_jobs", "backend"), [(1, "loky"), (2, "loky"), (2, "dask")])
def test_a_solver_that_ends_its_process_is_marked_failed_alone(bench, tmp_path, n_jobs, backend):
    if backend == "dask":
        pytest.importorskip("distributed", reason="pip install 'moe-search[cluster]'")
    (tmp_path / "killer.py").write_text(KILLER)
    arguments = "--dataset", "random-quadratic[size=[6,7]]", "--solver", "random permutations"
    arguments += "--solver-file", "killer.py", "--repetitions", "3", "--timeout", "0.2"
    bench(*arguments, "--n-jobs", n_jobs, "--backend", backend, "--output", tmp_path / "out")
    table = runs(tmp_path / "out")
    assert len(table) == 2 * 2 * 3
    died = (table["solver"] == "Exits") & (table["size"] == 6)
    assert set(table.loc[~died, "status"]) == {"done"}
    assert set(table.loc[died, "status"]) == {"failed"}
    assert set(table.loc[died, "reason"]) == {"its process died" + ": EXIT(3)" * (backend == "loky")}


LOCKS = """
import sys
import time

from filelock import FileLock

lock = FileLock(sys.argv[1])
lock.acquire()
print(flush=True)
time.sleep(600)
"""


def test_folders_of_comparisons_that_were_killed_are_removed_and_no_other(tmp_path):
    older, cache = tmp_path / "older", tmp_path / "newer"
    dead, alive, cached = older / "work-dead", older / "work-alive", older / "bench" / "runs"
    for folder in (dead / "runs", alive, cached, cache):
        folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", LOCKS, str(alive / "lock")], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with work_folder(cache) as first, work_folder(cache) as second:
            assert first != second
            assert all(folder.is_dir() for folder in (first, second, alive, cached))
            assert not dead.exists()
        assert not first.exists()
        assert not second.exists()
        other.kill()

    def fail():
        with work_folder(cache) as third:
            (third / "runs").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sorted(path.name for path in tmp_path.rglob("work-*")) == []
    assert cached.is_dir()


def test_solvers_of_one_name_are_refused_before_any_run(bench, tmp_path):
    (tmp_path / "clash.py").write_text("import moe_search as ms\n\nTabuSearch = ms.TabuSearch(tenure=(0.9, 1.1))\n")
    common = "--dataset", "random-quadratic[size=7]", "--solver", "TabuSearch"
    done = bench(*common, "--solver-file", "clash.py", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == "error: solvers must have names of their own, got 2 named TabuSearch"
    assert not list((tmp_path / "cache").rglob("work-*"))


def test_one_object_of_a_file_is_named_by_its_variable(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    path = tmp_path / "one_tabu_of_a_test.py"
    path.write_text("import moe_search as ms\n\nmine = ms.TabuSearch(tenure=(0.9, 1.1))\n")
    assert load_solvers(path) == {"mine": TabuSearch(tenure=(0.9, 1.1))}


def test_every_solver_of_the_table_has_a_file_that_is_written_once(tmp_path):
    paths = our_solver_files(tmp_path / "files")
    kinds = [runpy.run_path(str(path))["Solver"] for path in paths]
    assert [kind.name for kind in kinds] == list(SOLVERS)
    assert [type(kind().solver()) for kind in kinds] == [type(make()) for make in SOLVERS.values()]
    times = [path.stat().st_mtime_ns for path in paths]
    assert our_solver_files(tmp_path / "files") == paths
    assert [path.stat().st_mtime_ns for path in paths] == times
    assert sorted(tmp_path.rglob("*.*")) == sorted(paths)
