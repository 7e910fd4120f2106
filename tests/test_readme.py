"""Every command and example of the README runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import moe_search as ms

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_there_are_two_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES, ids=["solve", "train"])
def test_an_example_runs(example, tmp_path):
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "status" in done.stdout or "SearchRecord" in done.stdout


def test_the_solve_command_runs(tmp_path):
    (command,) = re.findall(r"`(moe-search solve [^`]*)`", TEXT)
    ms.write_qaplib(tmp_path / "FILE.dat", ms.random_quadratic(9, seed=0))
    tool = Path(sys.executable).with_name("moe-search")
    done = subprocess.run([tool, *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("value", "bound", "gap"):
        assert word in done.stdout


def test_make_has_the_targets_named():
    targets = set(re.findall(r"^make (\w+)", TEXT, flags=re.MULTILINE)) | set(re.findall(r"make (bench)", TEXT))
    assert targets == {"demo", "test", "bench"}
    for target in targets:
        done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
