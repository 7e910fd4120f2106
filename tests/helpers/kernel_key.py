"""Print a key of the kernels that other files inline, which names a folder of Numba's cache.

Numba compiles a kernel again when its own file was edited, and does not notice when one that it inlines from another
file was. So every state of the files whose kernels others inline gets a cache of its own: those that register kernels
for a function such as `swap_delta`, and those with kernels from which another file with kernels imports. Comments,
docstrings and all other files do not count. tests/test_kernel_key.py checks that no kernel uses a name from beyond.
"""

import ast
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The decorators of kernels; other files find those of REGISTER by the type of their arguments, without an import.
REGISTER = ("kernel", "overload")
DECORATORS = ("compiled", "njit", *REGISTER)


def imported(tree):
    """Yield the files of this repository that a module imports from, and the names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moe_search."):
            yield ROOT / (node.module.removeprefix("moe_search.").replace(".", "/") + ".py"), node.names


def uses(tree, *names):
    """Return whether a module uses one of some names."""
    return any(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))


def without_docstrings(tree):
    """Return the syntax of a module, without docstrings, comments and line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def inlined_files():
    """Return the syntax tree of every file whose kernels others inline, by its path."""
    paths = sorted(path for folder in ("problems", "solvers", "bench") for path in (ROOT / folder).rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    kernels = {path: tree for path, tree in trees.items() if uses(tree, *DECORATORS)}
    wanted = {file for tree in kernels.values() for file, _ in imported(tree)}
    return {path: tree for path, tree in kernels.items() if path in wanted or uses(tree, *REGISTER)}


def key():
    """Return the key."""
    text = "".join(f"{path.relative_to(ROOT)} {without_docstrings(tree)}\n" for path, tree in inlined_files().items())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    print(key())
