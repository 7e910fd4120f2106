"""Imports run one way, and in no circle."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("moe_search", "problems", "solvers", "bench")

# From the ground up: a module imports those on its own floor and below.
FLOORS = (
    ("moe_search.checks",),
    ("moe_search.problems",),
    ("moe_search.solvers.engine",),
    ("moe_search.solvers.bounds",),
    ("moe_search.solvers.exact.expert_flow", "moe_search.solvers.exact.transport"),
    ("moe_search.solvers.heuristic",),
    ("moe_search.solvers",),
    ("moe_search.display", "moe_search.installation"),
    ("moe_search.api", "moe_search.analysis", "moe_search.plotting"),
    ("moe_search.compilation",),
    ("moe_search.gates",),
    ("moe_search.layers",),
    ("moe_search.huggingface.mixture_layers",),
    ("moe_search.training.lowering",),
    ("moe_search.training",),
    ("moe_search.huggingface",),
    ("moe_search.integrations", "moe_search.serving", "moe_search.cli"),
    ("moe_search.bench.datasets", "moe_search.bench.peers"),
    ("moe_search.bench.machine_facts",),
    ("moe_search.bench.experiments",),
    ("moe_search.bench.demo", "moe_search.bench.comparison"),
    ("moe_search.bench.speed",),
    ("moe_search.bench",),
    ("moe_search.__main__",),
)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "moe_search" else ("moe_search", *parts)
    return ".".join(parts).removesuffix(".__init__")


FILES = {
    module_of(path): path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if folder != "moe_search" or path.relative_to(ROOT).parts[1] not in FOLDERS
}


def imports_of(name):
    """Return the modules of the package that a file imports, for its types and inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in FILES else node.module for each in inside}
    return {each for each in found if each.startswith("moe_search.")}


def floor(name):
    floors = {prefix: number for number, prefixes in enumerate(FLOORS) for prefix in prefixes}
    return floors[max((prefix for prefix in floors if f"{name}.".startswith(f"{prefix}.")), key=len)]


@pytest.mark.parametrize("name", sorted(set(FILES) - {"moe_search"}))
def test_no_arrow_runs_up(name):
    assert {each: floor(each) for each in imports_of(name) if floor(each) > floor(name)} == {}


def test_no_circle():
    graph = {name: imports_of(name) for name in FILES}
    assert list(graphlib.TopologicalSorter(graph).static_order())
