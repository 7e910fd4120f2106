"""The key of Numba's cache changes with whatever a kernel takes from another file, and with nothing else."""

import ast
import importlib.util
import shutil
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "kernel_key.py"


def load(path):
    spec = importlib.util.spec_from_file_location("kernel_key", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_kernel_uses_a_name_of_a_file_that_the_key_leaves_out():
    script = load(SCRIPT)
    inside = script.inlined_files()
    kernels = 0
    for path in script.ROOT.glob("[psb]*/**/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        home = {alias.asname or alias.name: file for file, names in script.imported(tree) for alias in names}
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            if any(script.uses(each, "njit", "kernel", "overload") for each in function.decorator_list):
                kernels += 1
                used = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
                outside = {name for name in used & set(home) if home[name] not in inside}
                assert not outside, f"{path}: {function.name} uses {outside}"
    assert kernels > 50


@pytest.fixture
def copy(tmp_path):
    """Return a copy of the script and of the folders that it reads, and a function that returns the copy's key."""
    root = SCRIPT.parents[1]
    for name in (".ci", "problems", "solvers", "bench"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz", "results"))
    return tmp_path, lambda: load(tmp_path / ".ci" / "kernel_key.py").key()


def test_the_key_follows_code_and_not_comments(copy):
    root, key = copy
    before = key()
    path = root / "solvers" / "engine" / "random_state.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('    """', '    """More. ', 1) + "\n# A comment.\n", encoding="utf-8")
    (root / "bench" / "new.py").write_text("x = 1\n", encoding="utf-8")
    assert key() == before
    path.write_text(text.replace("* 2.0**-53", "* 2.0**-52"), encoding="utf-8")
    assert key() != before
