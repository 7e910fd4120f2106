"""The built wheel in an environment of its own, used from a directory with packages of the user's own.

The environment sees the packages that the tests run with. With MOE_SEARCH_CLEAN_INSTALL=1 (``make release-check``) the
wheel is built in isolation, and what it requires is installed from the index, which takes minutes.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from itertools import chain
from pathlib import Path

import pytest

ON_TOP = {
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "constraints.txt",
    "pyproject.toml",
}
SOURCES = ("**/*.py", "**/*.pyi", "**/*.typed", "**/*.html")
TOP_FOLDERS = {
    "bench": (*SOURCES, "comparison/datasets/*.npz", "demo/*.npz", "results/*.md"),
    "docs": ("*.*", "_static/*", "_templates/**/*.rst", "gallery/*.*"),
    "moe_search": SOURCES,
    "problems": SOURCES,
    "solvers": SOURCES,
    "tests": ("**/*.py", "**/*.json"),
}
CLEAN_INSTALL = os.environ.get("MOE_SEARCH_CLEAN_INSTALL") == "1"
ROOT = Path(__file__).parents[1]
FOLDERS = {"moe_search": ROOT / "moe_search"} | {
    f"moe_search/{name}": ROOT / name for name in ("problems", "solvers", "bench")
}

SOLVE = """
import json, logging
import problems, solvers
import moe_search as ms
told = []
logging.getLogger("moe_search").addFilter(told.append)
result = ms.solve(ms.random_quadratic(12, seed=0), ms.LocalSearch(), ms.MaxIterations(50_000))
print(json.dumps({
    "file": ms.__file__,
    "own": [problems.MINE, solvers.MINE],
    "status": result.status,
    "gap": result.gap,
    "compiled": len(told),
}))
"""


def run(*command, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "NUMBA"))} | environment
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # The source distribution first, and the wheel from that: what is missing in either is missing in the wheel.
    isolation = [] if CLEAN_INSTALL else ["--no-isolation"]
    run(sys.executable, "-m", "build", *isolation, "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(distributions):
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """Return the Python of an environment that holds the wheel, and no other copy of this package."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=CLEAN_INSTALL)
    python = home / "bin" / "python"
    if CLEAN_INSTALL:
        run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=home)
    else:
        pip = (sys.executable, "-m", "pip", "--python", python)
        run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
        # The editable install of this checkout is a .pth file there, and those are read in the first folder only.
        (site_packages(python) / "tested_with.pth").write_text(sysconfig.get_path("purelib"))
    return python


def site_packages(python):
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(run(python, "-c", code, cwd=python.parent).strip())


@pytest.fixture
def user(tmp_path):
    """A directory with the user's own packages, named as two of ours."""
    for name in ("problems", "solvers", "bench"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = 'my {name}'\n")
    return tmp_path


def sources():
    found = set()
    for name, folder in FOLDERS.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            first = inside.parts[0] if inside.parts else ""
            if name == "moe_search" and first in ("problems", "solvers", "bench"):
                continue
            if path.suffix in (".py", ".pyi", ".html", ".npz", ".typed") and "__pycache__" not in inside.parts:
                found.add(f"{name}/{inside.as_posix()}")
    return found


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources() | {"moe_search/py.typed"}


def test_the_source_distribution_holds_sources_tests_and_pages_and_nothing_else(distributions):
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames() if not archive.getmember(name).isdir()}
    expected = set(ON_TOP)
    for folder, patterns in TOP_FOLDERS.items():
        files = chain.from_iterable((ROOT / folder).glob(pattern) for pattern in patterns)
        expected |= {file.relative_to(ROOT).as_posix() for file in files}
    made = {name for name in names if name.startswith("moe_search.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == expected


def test_there_is_one_version():
    told = {
        "pyproject.toml": r'^version = "(.*)"$',
        "moe_search/__init__.py": r'^__version__ = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
        "CHANGELOG.md": r"^## \[(\d.*)\] - ",
    }
    found = {name: re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)[1] for name, pattern in told.items()}
    assert len(set(found.values())) == 1, found


def test_nothing_of_ours_is_at_the_top_of_site_packages_but_the_package(clean):
    site = site_packages(clean)
    top = {path.name for path in site.iterdir()}
    assert "moe_search" in top
    assert top.isdisjoint({"problems", "solvers", "bench", "tests"})
    assert site != Path(sysconfig.get_path("purelib"))


def test_the_wheel_imports_and_solves_beside_packages_of_the_same_names(clean, user):
    for compiled in (True, False):  # a second time from a warm cache
        answer = json.loads(
            run(clean, "-c", SOLVE, cwd=user, PYTHONPATH=str(user), NUMBA_CACHE_DIR=str(user / "cache"))
        )
        assert answer["own"] == ["my problems", "my solvers"]
        assert str(clean.parent.parent) in answer["file"]
        assert (answer["compiled"] > 0) is compiled
        assert answer["gap"] is not None


def test_vllm_finds_its_plug_in_and_the_extra_of_serving_names_yaml(clean, user):
    code = (
        "from importlib import metadata\n"
        "(found,) = metadata.entry_points(group='vllm.general_plugins', name='moe_search')\n"
        "found.load()()\n"
        "print(found.value, *metadata.requires('moe-search'), sep='\\n')"
    )
    value, *requirements = run(clean, "-c", code, cwd=user).splitlines()
    assert value == "moe_search.serving.vllm_policy:register"
    assert any(re.fullmatch(r"pyyaml>=6; extra == .serving.", each) for each in requirements)


def test_the_command_line_runs_from_another_directory(clean, user):
    command = clean.parent / "moe-search"
    run(clean, "-c", "import moe_search as ms; ms.write_qaplib('x.dat', ms.random_quadratic(9, seed=0))", cwd=user)
    summary = run(command, "solve", "x.dat", "--time", "0.5", "--solver", "local-search", cwd=user)
    for word in ("value", "bound", "gap"):
        assert word in summary


@pytest.mark.skipif(not CLEAN_INSTALL, reason="make release-check runs it: no kernel is compiled yet at this path")
def test_the_demo_runs_from_another_directory(clean, user):
    run(clean.parent / "moe-search", "demo", "--smoke", "--report", "report.html", cwd=user)
    assert "</html>" in (user / "report.html").read_text(encoding="utf-8")
