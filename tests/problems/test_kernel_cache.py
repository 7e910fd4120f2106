"""The files of compiled kernels: never stale, and nothing fails without them."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBLEM = """
from typing import Any, NamedTuple
import numpy as np
from moe_search.problems.kernels import compiled, kernel
from moe_search.problems.moves import commit_swap, exchange_seats, slide, swap_delta
from weights import WEIGHT

class State(NamedTuple):
    permutation: Any
    order: Any

@compiled
def price(slot, seat):
    # A comment.
    return slot * seat

@kernel(swap_delta, State)
def delta(state: State, a: int, b: int) -> int:
    p = state.permutation
    return WEIGHT * (price(a, p[b]) + price(b, p[a]) - price(a, p[a]) - price(b, p[b]))

@kernel(commit_swap, State)
def commit(state: State, a: int, b: int) -> None:
    exchange_seats(state.permutation, state.order, a, b)

def slid():
    return slide(State(np.arange(5), np.arange(5)), 0, 3)
"""
# Slot 0 goes to seat 3, slots 1, 2 and 3 to seats 0, 1 and 2: 1 * 0 + 2 * 1 + 3 * 2 - (1 + 4 + 9).
SLID = 8 - 14
REPORT = """
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    print(slid())
names = {each.data["dispatcher"].py_func.__name__ for _, each in recorder.buffer}
print(*sorted(names - {"commit", "delta", "exchange_seats", "price"}))  # which are parts of `slide`
"""


@pytest.fixture
def project(tmp_path):
    """Return a folder with a problem of a user's own, and a cache."""
    (tmp_path / "own.py").write_text(PROBLEM, encoding="utf-8")
    (tmp_path / "weights.py").write_text("WEIGHT = 1\n", encoding="utf-8")
    return tmp_path


def run(project, code="from own import slid\n" + REPORT, **environment):
    """Return the lines that a process of its own prints: what it computes, what it compiles, and its warnings."""
    defaults = {"NUMBA_CACHE_DIR": str(project / "cache"), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_DISABLE_JIT": "0"}
    environment = os.environ | defaults | environment
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    slid, compiled, *_ = [*done.stdout.split("\n"), ""]
    return int(slid), compiled.split(), done.stderr


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_kernel_is_compiled_anew_when_any_source_of_it_was_edited_and_only_then(project):
    own, cache = project / "own.py", project / "cache" / "moe_search"
    assert run(project)[:2] == (SLID, ["slide"])
    files = sorted(cache.iterdir())
    edit(own, "# A comment.", "# Another comment,\n    # of two lines.")
    assert run(project)[:2] == (SLID, [])
    # The kernels of a class of the same name in another program are others.
    (project / "other.py").write_text(own.read_text(encoding="utf-8").replace("slot * seat", "0"), encoding="utf-8")
    assert run(project, "from other import slid\n" + REPORT)[:2] == (0, ["slide"])
    assert run(project)[:2] == (SLID, [])
    # A kernel that the library's kernel inlines, by way of one that is registered.
    edit(own, "slot * seat", "-slot * seat")
    assert run(project)[:2] == (-SLID, ["slide"])
    # A number from another module.
    edit(project / "weights.py", "1", "3")
    assert run(project)[:2] == (-3 * SLID, ["slide"])
    # Of every kernel, the file of its last state is left.
    (project / "other.py").unlink()
    left = [path.name for path in cache.iterdir() if not path.name.startswith("other.")]
    assert len(left) == len(files) + 1  # `slide` for the other class
    assert not list(cache.glob("*.part"))


def test_the_order_of_the_fields_of_a_state_counts(project):
    run(project)
    edit(project / "own.py", "permutation: Any\n    order: Any", "order: Any\n    permutation: Any")
    assert run(project)[:2] == (SLID, ["slide"])


FORMS = {
    "forms.py": """
import numpy as np
import pk.inner
from moe_search.problems.kernels import compiled
from numba.extending import register_jitable
from pk.kinds import Kind
from pk.others import second, third
LEAST = np.int64(1000)
SEVERAL = (second,)

@register_jitable
def helper(x):
    return third(x)

@compiled
def total(x):
    return pk.inner.first(x) + Kind.A + SEVERAL[0](x) + helper(x) + LEAST

def slid():
    return total(0)
""",
    "pk/__init__.py": "",
    "pk/inner.py": "from numba import njit\n\n@njit\ndef first(x):\n    return x + 1\n",
    "pk/kinds.py": "from enum import IntEnum\n\nclass Kind(IntEnum):\n    A = 20\n",
    "pk/others.py": "from numba import njit\n\n@njit\ndef second(x):\n    return x + 300\n\n"
    "@njit\ndef third(x):\n    return x + 4000\n",
}


def test_whatever_a_kernel_takes_from_elsewhere_counts(tmp_path):
    (tmp_path / "pk").mkdir()
    for name, text in FORMS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = "from forms import slid\n" + REPORT
    assert run(tmp_path, code)[0] == 5321
    assert run(tmp_path, code)[:2] == (5321, [])
    expected = 5321
    for name, old, new, change in (
        ("pk/inner.py", "x + 1", "x + 2", 1),  # of a module in a module
        ("pk/kinds.py", "20", "30", 10),
        ("pk/others.py", "300", "500", 200),  # of a tuple
        ("pk/others.py", "4000", "7000", 3000),  # of a function that Numba may inline
        ("forms.py", "np.int64(1000)", "np.int64(1003)", 3),
    ):
        edit(tmp_path / name, old, new)
        expected += change
        assert run(tmp_path, code)[0] == expected


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"", lambda data: data[:-1] + b"x"])
def test_damaged_files_are_replaced(project, damage):
    _, names, _ = run(project)
    for path in (project / "cache" / "moe_search").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    slid, compiled, told = run(project)
    assert (slid, compiled) == (SLID, names)
    assert told.count("RuntimeWarning") == 1
    assert "NUMBA_CACHE_DIR" in told
    assert "damaged" in told
    assert run(project) == (SLID, [], "")


def test_a_file_of_other_classes_is_replaced(project):
    """What cannot be read back, as a class has gone, is compiled anew."""
    run(project)
    for path in (project / "cache" / "moe_search").iterdir():
        payload = pickle.dumps(AssertionError)[:-1]
        path.write_bytes(hashlib.sha256(payload).digest() + payload)
    slid, _, told = run(project)
    assert slid == SLID
    assert told.count("RuntimeWarning") == 1


def test_no_folder_to_write_to_costs_a_warning(project):
    slid, compiled, told = run(project, NUMBA_CACHE_DIR=os.devnull + "/cache")
    assert (slid, compiled) == (SLID, ["slide"])
    assert told.count("RuntimeWarning") == 1
    assert "set NUMBA_CACHE_DIR to a folder that can be written to" in told


def test_an_installation_that_cannot_be_written_to_by_a_user_without_a_home(project):
    """Neither folder can be made, whoever runs the test: what is in the way is a file."""
    for name in ("moe_search", "problems", "solvers", "bench"):
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "problems" / "__pycache__").touch()
    nowhere = {"NUMBA_CACHE_DIR": None, "HOME": os.devnull, "XDG_CACHE_HOME": None, "PYTHONPATH": str(project)}
    slid, _, told = run(project, **nowhere)
    assert slid == SLID
    assert told.count("RuntimeWarning") == 1
    assert told.count("Not a directory") == 2
    assert "NUMBA_CACHE_DIR" in told
    # With a home, what is compiled is kept there.
    home = nowhere | {"HOME": str(project / "home")}
    assert run(project, **home)[2].count("\n") == 1
    assert run(project, **home) == (SLID, [], "")
    assert list((project / "home" / ".cache" / "moe_search").glob("*.kernel"))
    # Beside the package where that can be written to, of which other users read.
    (project / "problems" / "__pycache__").unlink()
    run(project, **home | {"XDG_CACHE_HOME": str(project / "none")})
    assert run(project, **nowhere) == (SLID, [], "")


def test_a_class_of_a_script_is_said_to_be_compiled_anew(project):
    slid, compiled, told = run(project, PROBLEM + REPORT)
    assert slid == SLID
    assert "slide" in compiled
    assert told.count("RuntimeWarning") == 1
    assert "put it into a module that you import" in told
    assert "slide" in run(project, PROBLEM + REPORT)[1]


def test_the_first_compilation_is_told_in_one_line(project):
    told = run(project)[2]
    assert told == (
        "moe_search compiles the kernel slide for State and others: some seconds, once per installation; "
        "moe_search.warm_up() does it ahead\n"
    )
    log = "import logging\nlogging.basicConfig(level=logging.ERROR)\nfrom own import slid\n" + REPORT
    assert run(project, log, NUMBA_CACHE_DIR=str(project / "another"))[2] == ""


INTERRUPTED = """
import signal
import moe_search as ms
from numba.core import event

class Interrupt(event.Listener):
    def on_start(self, event):
        if event.data["dispatcher"].py_func.__name__ == "{kernel}":
            signal.raise_signal(signal.SIGINT)
    def on_end(self, event):
        pass

event.register("numba:compile", Interrupt())
problem = ms.random_quadratic(9, seed=0)
result = {solve}
assert result.value == problem.value(result.permutation)
assert result.compile_seconds > 0 and result.runtime < 1
print(result.status == "interrupted")
"""


@pytest.mark.parametrize(
    ("kernel", "solve"),
    [
        ("assign", "ms.solve(problem, ms.TabuSearch(), ms.MaxRuntime(1e9))"),
        ("search_slice", "ms.LocalSearch().solve(problem, ms.MaxRuntime(1e9))"),
        ("branch_slice", "ms.BranchAndBound().solve(problem, ms.MaxRuntime(1e9))"),
    ],
)
def test_control_c_while_compiling_returns_the_incumbent(project, kernel, solve):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(kernel=kernel, solve=solve)],
        capture_output=True,
        text=True,
        timeout=300,  # for one that goes on
        env=os.environ | {"NUMBA_CACHE_DIR": str(project / "cache"), "NUMBA_DISABLE_JIT": "0"},
    )
    assert done.stdout == "True\n", done.stderr
