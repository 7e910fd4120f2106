"""Where the runs of a comparison leave files: benchopt's cache, and a folder that lasts as long as the comparison."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

import moe_search
from moe_search.solvers.engine.result import installed_versions

LOCK = "lock"


def cache_folder() -> Path:
    """Return the folder, made if need be: below XDG_CACHE_HOME or ``~/.cache``.

    Its name depends on our sources and on the versions of what a result depends on: benchopt's own key knows neither,
    and would hand out the runs of an older solver.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "moe-search" / "bench" / _digest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def work_folder(cache: Path) -> Iterator[Path]:
    """Make a folder for what a comparison needs no longer than it lasts.

    It is locked for so long. Those of comparisons that were killed, in the folders of other sources too, are removed.
    """
    # Nobody may come between making a folder and locking it.
    with FileLock(cache.parent / LOCK):
        for folder in cache.parent.glob("*/work-*"):
            _remove_if_dead(folder)
        work = Path(tempfile.mkdtemp(prefix="work-", dir=cache))
        alive = FileLock(work / LOCK)
        alive.acquire()
    try:
        yield work
    finally:
        alive.release()
        shutil.rmtree(work, ignore_errors=True)


def run_folder(dataset: str, solver: str, repetition: int) -> tuple[str, str, str]:
    """Return the names of the folders, one within the other, that benchopt makes for a run."""
    return folder_name(dataset), folder_name(solver), f"rep_{repetition}"


def folder_name(name: str) -> str:
    """Return what benchopt makes of a name for a folder."""
    return re.sub(r'[/\\:*?"<>|]+', "_", name)


def errors_of_runs(work: Path) -> dict[tuple[str, ...], str]:
    """Return what `AnytimeSolver` wrote of runs that raised, by their `run_folder`."""
    found: dict[tuple[str, ...], str] = {}
    for path in work.glob("runs/*/*/*/*/error.txt"):
        dataset, _, solver, repetition = path.parent.parts[-4:]
        found[dataset, solver, repetition] = path.read_text(encoding="utf-8")
    return found


def _remove_if_dead(folder: Path) -> None:
    # A file that is locked, or cannot be, says that somebody is alive.
    with suppress(OSError, NotImplementedError), FileLock(folder / LOCK, timeout=0):
        shutil.rmtree(folder)


def _digest() -> str:
    home = Path(moe_search.__file__).parent
    digest = hashlib.sha256(repr(installed_versions()).encode())
    for part in ("problems", "solvers", "bench"):
        for path in sorted((home / part).rglob("*.py")):
            digest.update(path.relative_to(home).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
