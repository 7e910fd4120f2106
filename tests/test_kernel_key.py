"""The key of Numba's cache changes with whatever a kernel takes from another file, and with nothing else."""

import ast
import shutil

import kernel_key
import pytest


def test_no_kernel_uses_a_name_of_a_file_that_the_key_leaves_out():
    inside = kernel_key.inlined_files()
    assert len(inside) > 8
    kernels = 0
    for path in kernel_key.ROOT.glob("[psb]*/**/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        home = {alias.asname or alias.name: file for file, names in kernel_key.imported(tree) for alias in names}
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            if any(kernel_key.uses(each, *kernel_key.DECORATORS) for each in function.decorator_list):
                kernels += 1
                used = {node.id for line in function.body for node in ast.walk(line) if isinstance(node, ast.Name)}
                outside = {name for name in used & set(home) if home[name] not in inside}
                assert not outside, f"{path}: {function.name} uses {outside}"
    assert kernels > 50


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Return the root of a copy of the sources that the key is made of."""
    for name in ("problems", "solvers", "bench"):
        shutil.copytree(kernel_key.ROOT / name, tmp_path / name, ignore=lambda _, names: set(names) & {"results"})
    monkeypatch.setattr(kernel_key, "ROOT", tmp_path)
    return tmp_path


def test_the_key_follows_code_and_not_comments(root):
    before = kernel_key.key()
    path = root / "solvers" / "engine" / "random_state.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('    """', '    """More. ', 1) + "\n# A comment.\n", encoding="utf-8")
    (root / "bench" / "new.py").write_text("x = 1\n", encoding="utf-8")
    assert kernel_key.key() == before
    path.write_text(text.replace("* 2.0**-53", "* 2.0**-52"), encoding="utf-8")
    assert kernel_key.key() != before
